"""A run on a stream from config to results: its folder, its records, and going on after a stop."""

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsecl import config as configs
from sparsecl import signals
from sparsecl.config_nodes import one_line
from sparsecl.errors import DataError, UserError
from sparsecl.files import atomic_open, check_entries, remove_leftovers, write_json
from sparsecl.locks import lock_folder
from sparsecl.log import RunLog
from sparsecl.opening import make_folder, read_plain
from sparsecl.progress import ProgressBar
from sparsecl.seal import readable_lines
from sparsecl.streams import checkpoint, records
from sparsecl.streams.config import StreamConfig, StreamRunConfig, check_methods
from sparsecl.streams.images import Images, read_images
from sparsecl.streams.loop import Pack
from sparsecl.streams.pair_sets import read_pairs
from sparsecl.streams.size import network_size

FILES = ("config.yaml", "scalars.jsonl", "results.json", "log.txt", "stream.png")
FOLDERS = ("checkpoints", "tb")
PLACES = {"before": "task", "rollout": "rollout"}
"""Kind of a record -> what of it counts checkpoints (`checkpoint.every`)."""

FREE = ("name", "together", "checkpoint.every")
"""Keys that change no result: a run goes on with others."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a run needs; everything that a user can get wrong is known."""

    config: StreamRunConfig
    images: Images
    folder: Path


def check(config: StreamRunConfig, folder: Path | None) -> Prepared:
    """Read the data and check what depends on it.

    Raises:
        UserError: with the key as the user wrote it.
    """
    images = read(config.stream)
    check_config(config, images)
    network_size(config, images.num_inputs, images.num_classes)  # is there such a graph?
    default = Path("runs") / f"{config.name}-{configs.digest(config)[:10]}"
    return Prepared(config, images, folder or default)


def check_config(config: StreamRunConfig, images: Images) -> None:
    """Check what depends on the data.

    Raises:
        UserError: with the key as the user wrote it.
    """
    try:
        check_methods(config, config.learner.shapes(images.num_inputs, images.num_classes))
    except ValueError as error:
        raise UserError(one_line(str(error))) from None
    if config.panel.samples > config.stream.samples_per_task:
        raise UserError(
            f"panel.samples={config.panel.samples} is more than a task has "
            f"(stream.samples_per_task={config.stream.samples_per_task})"
        )


def read(stream: StreamConfig) -> Images:
    """The images of a stream. Raises UserError, MissingInputError or DataError for its data."""
    if stream.kind == "image_pairs":
        return read_pairs(stream.data, test_per_class=stream.test_per_class)
    return read_images(stream.data)


def run(prepared: Prepared) -> dict[str, Any]:
    """Train what is left to be trained. Returns results.json.

    Raises:
        Preempted: stopped by a signal, and saved.
        DataError, CannotCreateError, StorageError: of the run folder.
    """
    # A step is so small that threads would only wait for each other; and sums keep their order.
    torch.set_num_threads(1)
    return start(prepared, Run)


def start(prepared: Any, kind: "type[Run]") -> dict[str, Any]:
    """Hold the run folder, and run."""
    with lock_folder(prepared.folder, "--run_dir"):
        check_entries(prepared.folder, files=FILES, folders=FOLDERS)
        checkpoints = prepared.folder / "checkpoints"
        make_folder(checkpoints)
        for place in (prepared.folder, checkpoints):
            remove_leftovers(place)
        return kind(prepared, checkpoints).run()


class Run:
    """One start of a run, in a folder that is held."""

    def __init__(self, prepared: Any, checkpoints: Path) -> None:
        """`prepared`: as `Prepared`."""
        self.prepared, self.config = prepared, prepared.config
        self.folder, self.checkpoints = prepared.folder, checkpoints
        self.packs = self.config.packs
        self.nonzero = 0
        self.native = False
        self.begun = time.monotonic()

    def run(self) -> dict[str, Any]:
        if (self.folder / records.RESULTS).exists():
            self._check_config(records.read_lines(self.folder)[0]["config"])
            return self._finish()
        saved = checkpoint.load(self.checkpoints)
        given_up = 0
        if saved is None:
            given_up = self._check_unbegun()
        else:
            self._check_config(saved.config)
        self.before = 0.0 if saved is None else float(saved.value["seconds"])
        with atomic_open(self.folder / "config.yaml") as file:
            file.write(configs.dump(self.config))
        resume = None if saved is None else saved.records
        first = 0 if saved is None else self._first_pack(saved)
        self.log = RunLog(self.folder, resume_at=resume, purge_tokens=self._samples(saved))
        if given_up:
            self.log.say(f"Begins anew: {given_up} records, and no checkpoint")
        try:
            self._train(first, saved)
        finally:
            self.log.close()
        return self._finish()

    def _check_unbegun(self) -> int:
        """Refuse to begin anew over a run whose checkpoints are gone, or over that of another
        config: one that was killed before its first checkpoint has nothing to go on from, but
        whoever ended, or went on behind it, had one. Returns how many records are given up.

        Raises:
            DataError: a checkpoint was there.
        """
        found, had_one = [], False
        with contextlib.suppress(FileNotFoundError):
            found = list(readable_lines(read_plain(self.folder / records.SCALARS)))
        if found and found[0].get("kind") == "stream":
            self._check_config(found[0].get("config"))
        every = self.config.checkpoint.every
        for record in found:
            place = record.get(PLACES.get(str(record.get("kind")), ""))
            had_one |= record.get("kind") == "end" or (type(place) is int and place > every)
        if had_one:
            text = f"{self.checkpoints}: no checkpoint is left of the run in this folder. Restore"
            way_out = "it, or start in another --run_dir; to give that run up, remove"
            raise DataError(one_line(f"{text} {way_out} {self.folder}."))
        return len(found)

    def _check_config(self, old: Any) -> None:
        """Refuse to go on with another config."""
        new = configs.to_dict(self.config)
        if not isinstance(old, dict):
            raise DataError(f"{self.folder}: its config is none. Start in another --run_dir.")
        lines = configs.differences(old, new)
        changed = [line for line in lines if line.partition(":")[0] not in FREE]
        if changed:
            raise UserError(
                one_line(f"{self.folder}: holds a run with another config ({'; '.join(changed)}). ")
                + "Give the old one, or start in another --run_dir."
            )
        if "together" in {line.partition(":")[0] for line in lines}:
            raise UserError(
                f"{self.folder}: a run goes on with as many networks side by side as it began with "
                f"(together={old['together']}). Give that, or start in another --run_dir."
            )

    def _first_pack(self, saved: checkpoint.Saved) -> int:
        if saved.pack >= len(self.packs):
            raise saved.wrong(f"position.pack: {saved.pack} is not in the run")
        return saved.pack

    def _samples(self, saved: checkpoint.Saved | None) -> int:
        """The place of a checkpoint on TensorBoard's axis."""
        position = saved.value["position"] if saved is not None else {}
        task = position.get("task") if isinstance(position, dict) else None
        return self.axis(task) if type(task) is int else 0

    def axis(self, task: int) -> int:
        """Where the begin of a task is on TensorBoard's axis: the images of one network."""
        return task * self.config.stream.samples_per_task

    def _train(self, first: int, saved: checkpoint.Saved | None) -> None:
        pack = self.make_pack(first, 0)
        steps = pack.num_steps
        if saved is not None:
            pack.go_on(saved)
            at = pack.position
            self.log.say(f"Goes on    pack {first + 1}, task {at.task + 1}, step {at.step}")
        else:
            self._begin(pack)
        done = first * steps + pack.num_done
        checks = pack.position.checks
        bar = ProgressBar(self.config.name, total=len(self.packs) * steps, done=done)
        signals.answer_by(None)  # from here on the loop looks
        try:
            for number in range(first, len(self.packs)):
                if number > first:
                    pack = self.make_pack(number, checks)
                self._train_pack(pack, bar)
                checks = pack.position.checks
        finally:
            bar.close()
        self.log.record(
            "end",
            sealed=True,
            audit={"checks": checks, "nonzero": self.nonzero},
            steps="native" if self.native else "torch",
            seconds=self._seconds(),
        )

    def make_pack(self, number: int, checks: int) -> Any:
        """A pack at its beginning."""
        return Pack(self.config, self.prepared.images, number, checks=checks)

    def _train_pack(self, pack: Any, bar: ProgressBar) -> None:
        found: dict[str, list[float]] = {}

        def record(kind: str, *, seed: int, task: int, **figures: Any) -> None:
            self.log.record(kind, seed=seed, task=task, **figures)
            for name, value in figures.items():
                if isinstance(value, float):
                    found.setdefault(name, []).append(value)
            if seed == pack.seeds[-1]:
                self._draw(pack, task + (kind == "task"), found)
                found.clear()

        def advance(steps: int, figures: Mapping[str, str]) -> None:
            bar.advance(figures, steps=steps)

        pack.train(record, self._save, advance)
        self.nonzero += pack.nonzero
        self.native |= getattr(pack, "num_native", 0) > 0

    def _draw(self, pack: Any, task: int, found: Mapping[str, list[float]]) -> None:
        """Means over the networks of a pack; with several packs each has its curves."""
        group = "stream" if len(self.packs) == 1 else f"seed_{pack.seeds[0]}"
        values = {f"{group}/{name}": float(np.mean(row)) for name, row in found.items()}
        self.log.scalars(values, tokens=self.axis(task))

    def _save(self, pack: Any) -> None:
        checkpoint.save(
            self.checkpoints,
            pack.position,
            pack.state(),
            config=configs.to_dict(self.config),
            records=self.log.sync(),
            seconds=self._seconds(),
        )

    def _seconds(self) -> float:
        """Of all starts, without what was done twice."""
        return self.before + time.monotonic() - self.begun

    def _begin(self, pack: Any) -> None:
        """The first record, and the header on the screen."""
        config, images = self.config, self.prepared.images
        shapes = config.learner.shapes(images.num_inputs, images.num_classes)
        cells = sum(shape.num_cells for shape in shapes)
        absent = sum(int(mask.sum()) for mask in pack.model.masks().values()) // len(pack.seeds)
        parameters = {"weights": cells, "live": cells - absent}
        self.log.record(
            "stream",
            name=config.name,
            stream=config.stream.kind,
            seeds=[seed for seeds in self.packs for seed in seeds],
            tasks=config.stream.tasks,
            samples_per_task=config.stream.samples_per_task,
            methods=config.methods.about(shapes, config.stream.tasks),
            parameters=parameters,
            data={"name": images.name, "images": len(images.labels), "sha256": images.sha256},
            config=configs.to_dict(config),
        )
        self.log.say(header(config, images, parameters))

    def results(self, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """results.json, from the records."""
        return records.results(lines)

    def _finish(self) -> dict[str, Any]:
        found = self.results(records.read_lines(self.folder))
        write_json(self.folder / records.RESULTS, found)
        return found


def header(config: StreamRunConfig, images: Images, parameters: Mapping[str, int]) -> str:
    """What is about to be trained, in a few aligned lines."""
    stream, learner, optimizer = config.stream, config.learner, config.optimizer
    units = f"{'-'.join(map(str, learner.units))} units" if learner.units else "linear"
    last, topology = config.seed + config.seeds - 1, config.topology
    graph = topology.kind + ("" if topology.kind == "dense" else f", density {topology.density:g}")
    lines = {
        "run": f"{config.name}, seed {config.seed}" + (f" to {last}" if config.seeds > 1 else ""),
        "stream": f"{stream.kind}, {stream.tasks} tasks x {stream.samples_per_task:,} samples, "
        f"batch {stream.batch}",
        "data": f"{images.name}, {len(images.labels):,} images of {images.num_inputs} pixels",
        "network": f"{units}, {parameters['live']:,} live weights "
        f"of {parameters['weights']:,} ({graph})",
        "optimizer": f"{optimizer.kind}, step size {optimizer.lr:g}",
        "methods": ", ".join(config.methods.used()) or "none",
        "together": f"{config.num_together} of {config.seeds} networks side by side",
    }
    return "\n".join(f"  {key:<10} {value}" for key, value in lines.items())
