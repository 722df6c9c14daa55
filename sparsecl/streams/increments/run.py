"""A run of classes in increments, from config to results; see streams/run.py."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparsecl import config as configs
from sparsecl.config_nodes import one_line
from sparsecl.errors import UserError
from sparsecl.streams import run as streams
from sparsecl.streams.config import StreamRunConfig, check_methods
from sparsecl.streams.image_sets import ImageSplit
from sparsecl.streams.increments import records
from sparsecl.streams.increments.concepts import ConceptPack
from sparsecl.streams.increments.config import NETWORKS
from sparsecl.streams.increments.data import (
    check_split,
    class_order,
    pieces,
    read_increments,
    side,
)
from sparsecl.streams.increments.pack import IncrementPack
from sparsecl.streams.increments.training import NetworkPack
from sparsecl.topology.build import build_topologies
from sparsecl.topology.layer import LayerShape


@dataclass(frozen=True, eq=False)
class Prepared(streams.Prepared):
    """What a run needs; everything that a user can get wrong is known."""

    split: ImageSplit


def check(config: StreamRunConfig, folder: Path | None) -> Prepared:
    """Read the data and check what depends on it.

    Raises:
        UserError: with the key as the user wrote it.
    """
    split, settings = read_increments(config.stream.data), config.stream.increments
    check_split(split, settings, config.stream.tasks)
    if config.learner.kind in NETWORKS and settings.crop >= side(split.train):
        raise UserError(
            f"stream.increments.crop={settings.crop} must be below the {side(split.train)} pixels "
            "of an image's side"
        )
    try:
        check_methods(config, shapes := _shapes(config, split))
    except ValueError as error:
        raise UserError(one_line(str(error))) from None
    build_topologies(config.topology, shapes[:-1], seed=config.seed)  # is there such a graph?
    default = Path("runs") / f"{config.name}-{configs.digest(config)[:10]}"
    return Prepared(config, split.train, folder or default, split)


def run(prepared: Prepared) -> dict[str, Any]:
    """Train what is left to be trained. Returns results.json. Errors as streams.run."""
    if prepared.config.learner.kind != "resnet18":  # whose steps are large enough for threads
        torch.set_num_threads(1)
    return streams.start(prepared, Run)


def _shapes(config: StreamRunConfig, split: ImageSplit) -> tuple[LayerShape, ...]:
    """Matrices that a graph may be on."""
    if config.learner.kind != "mlp":
        return ()
    return config.learner.shapes(split.train.num_inputs, split.num_classes)


class Run(streams.Run):
    """One start of a run, in a folder that is held."""

    prepared: Prepared

    def make_pack(self, number: int, checks: int) -> IncrementPack:
        kind = NetworkPack if self.config.learner.kind in NETWORKS else ConceptPack
        return kind(self.config, self.prepared.split, number, checks=checks)

    def axis(self, task: int) -> int:
        return task

    def results(self, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return records.results(lines)

    def _begin(self, pack: IncrementPack) -> None:
        config, split, tasks = self.config, self.prepared.split, self.config.stream.tasks
        weights = live = 0
        if isinstance(pack, NetworkPack):
            masks = pack.model.masks()
            weights = sum(p.numel() for p in pack.model.parameters() if p.dim() > 1)
            live = weights - sum(int(mask.sum()) for mask in masks.values())
        seeds = [seed for seeds in self.packs for seed in seeds]
        settings = config.stream.increments
        orders = {
            str(seed): [part.tolist() for part in pieces(order, settings, tasks)]
            for seed in seeds
            for order in [class_order(split.num_classes, seed)]
        }
        images = split.train
        self.log.record(
            "stream",
            name=config.name,
            stream=config.stream.kind,
            seeds=seeds,
            tasks=tasks,
            classes=[settings.num_classes(task + 1) for task in range(tasks)],
            classes_by_seed=orders,
            methods=config.methods.about(_shapes(config, split), tasks),
            parameters={"weights": weights, "live": live},
            data={
                "name": images.name,
                "images": len(images.labels),
                "test_images": len(split.test.labels),
                "sha256": images.sha256,
            },
            config=configs.to_dict(config),
        )
        self.log.say(header(config, split, weights, live))


def header(config: StreamRunConfig, split: ImageSplit, weights: int, live: int) -> str:
    """What is about to be trained, in a few aligned lines."""
    stream, settings, learner = config.stream, config.stream.increments, config.learner.kind
    last, images = config.seed + config.seeds - 1, split.train
    lines = {
        "run": f"{config.name}, seed {config.seed}" + (f" to {last}" if config.seeds > 1 else ""),
        "stream": f"{stream.kind}, {stream.tasks} tasks: {settings.start} classes, then "
        f"{settings.more} more each",
        "data": f"{images.name}, {len(images.labels):,} images of {images.num_inputs} pixels, "
        f"{split.num_classes} classes",
        "learner": learner,
    }
    if learner in NETWORKS:
        lines["learner"] += f", width {config.learner.width}, {live:,} live weights of {weights:,}"
        lines["training"] = (
            f"{settings.epochs} epochs a task, batch {stream.batch}, {config.optimizer.kind}, step "
            f"size {config.optimizer.lr:g}, reset {settings.reset}"
        )
        lines["methods"] = ", ".join(config.methods.used()) or "none"
    return "\n".join(f"  {key:<10} {value}" for key, value in lines.items())
