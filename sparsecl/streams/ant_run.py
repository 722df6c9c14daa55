"""A run on the slippery Ant from config to results; its folder and resume are those of run.py."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparsecl import config as configs
from sparsecl.config_nodes import one_line
from sparsecl.errors import UserError
from sparsecl.progress import ProgressBar
from sparsecl.streams import ant_records as records
from sparsecl.streams import run as runs
from sparsecl.streams.ant_config import AntRunConfig, check_methods
from sparsecl.streams.ant_loop import AntPack
from sparsecl.streams.checkpoint import Saved
from sparsecl.streams.ppo import agent_shapes
from sparsecl.streams.slippery_ant import (
    NUM_ACTIONS,
    NUM_OBSERVATIONS,
    check_installed,
    friction,
)
from sparsecl.topology.build import build_topologies


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a run needs."""

    config: AntRunConfig
    folder: Path


def check(config: AntRunConfig, folder: Path | None) -> Prepared:
    """Raises UserError, with the key as the user wrote it."""
    check_installed()
    policy, value = agent_shapes(config.learner, NUM_OBSERVATIONS, NUM_ACTIONS)
    try:
        check_methods(config, (*policy, *value))
    except ValueError as error:
        raise UserError(one_line(str(error))) from None
    # Is there such a graph?
    build_topologies(config.topology, (*policy[:-1], *value[:-1]), seed=config.seed)
    default = Path("runs") / f"{config.name}-{configs.digest(config)[:10]}"
    return Prepared(config, folder or default)


def run(prepared: Prepared) -> dict[str, Any]:
    """Train what is left to be trained. Returns results.json. Errors as run.run."""
    torch.set_num_threads(1)
    return runs.start(prepared, AntRun)


class AntRun(runs.Run):
    """Steps of the bar are those of the environment."""

    def make_pack(self, number: int, checks: int) -> AntPack:
        return AntPack(self.config, number, checks=checks)

    def _samples(self, saved: Saved | None) -> int:
        position = saved.value["position"] if saved is not None else {}
        step = position.get("step") if isinstance(position, dict) else None
        return step if type(step) is int else 0

    def _train_pack(self, pack: AntPack, bar: ProgressBar) -> None:
        def record(kind: str, **values: Any) -> None:
            self._record(pack, kind, **values)

        def advance(steps: int, figures: Mapping[str, str]) -> None:
            bar.advance(figures, steps=steps)

        pack.train(record, self._save, advance)
        self.nonzero += pack.nonzero

    def _record(self, pack: AntPack, kind: str, **values: Any) -> None:
        self.log.record(kind, **values)
        group = "stream" if len(self.packs) == 1 else f"seed_{pack.seed}"
        about = ("seed", "task", "step", "rollout", "episode")
        drawn = {f"{group}/{name}": v for name, v in values.items() if name not in about}
        self.log.scalars(drawn, tokens=values["step"])

    def _begin(self, pack: AntPack) -> None:
        config = self.config
        policy, value = agent_shapes(config.learner, NUM_OBSERVATIONS, NUM_ACTIONS)
        cells = sum(shape.num_cells for shape in (*policy, *value))
        absent = sum(int(mask.sum()) for mask in pack.model.masks().values())
        parameters = {"weights": cells, "live": cells - absent}
        self.log.record(
            "stream",
            name=config.name,
            stream=config.stream.kind,
            seeds=[seed for seeds in self.packs for seed in seeds],
            tasks=config.stream.tasks,
            steps_per_task=config.stream.steps_per_task,
            methods=config.methods.about((*policy, *value), config.stream.tasks),
            parameters=parameters,
            config=configs.to_dict(config),
        )
        self.log.say(header(config, parameters))

    def results(self, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return records.results(lines)


def header(config: AntRunConfig, parameters: Mapping[str, int]) -> str:
    """What is about to be trained, in a few aligned lines."""
    stream, learner, ppo, step = config.stream, config.learner, config.ppo, config.optimizer
    last, topology = config.seed + config.seeds - 1, config.topology
    graph = topology.kind + ("" if topology.kind == "dense" else f", density {topology.density:g}")
    frictions = ", ".join(f"{friction(config.seed, k):.3g}" for k in range(min(stream.tasks, 8)))
    lines = {
        "run": f"{config.name}, seed {config.seed}" + (f" to {last}" if config.seeds > 1 else ""),
        "stream": f"{stream.kind}, {stream.tasks} tasks x {stream.steps_per_task:,} steps",
        "frictions": frictions + (", ..." if stream.tasks > 8 else "") + f" (seed {config.seed})",
        "networks": f"policy and value, {learner.layers} x {learner.width} units, "
        f"{learner.activation}, {parameters['live']:,} live weights of "
        f"{parameters['weights']:,} ({graph})",
        "updates": f"{ppo.updates} steps of {ppo.rollout // ppo.minibatches} after every "
        f"{ppo.rollout}",
        "optimizer": f"{step.kind}, step size {step.lr:g}, betas {step.betas[0]:g} and "
        f"{step.betas[1]:g}",
        "methods": ", ".join(config.methods.used()) or "none",
    }
    return "\n".join(f"  {key:<10} {value}" for key, value in lines.items())
