"""Small runs through the real engine, as functions that a pool worker can call."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsecl import config as configs
from sparsecl import dist
from sparsecl.checkpoint.reader import Reader
from sparsecl.data.prepare import PreparedData, prepare
from sparsecl.engine.build import Built, attach
from sparsecl.engine.deepspeed import ds_config
from sparsecl.engine.loop.train import Trainer
from sparsecl.engine.observe.health import RolledBack, Spike
from sparsecl.engine.observe.journal import Journal
from sparsecl.engine.position import Position
from sparsecl.engine.resume import rollback, state
from sparsecl.engine.run import run_numbers
from sparsecl.engine.run_config import RunConfig
from sparsecl.engine.schedule import Schedule, make_schedule
from sparsecl.methods.table import build_methods
from sparsecl.model.build import build_gpt
from sparsecl.model.surgery import GptSide

ROOT = Path(__file__).resolve().parent.parent.parent

TINY = (
    "model.preset=null",
    "model.layers=2",
    "model.width=32",
    "model.heads=4",
    "model.context=16",
    "topology.density=0.25",
    "tokenizer.kind=bytes",
    "data.domains=[{name: a, source: synthetic, synthetic: {train_tokens: 4000, "
    "validation_tokens: 400, num_symbols: 8}}]",
    "phases.steps=20",
    "batch.sequences=8",
    "optimizer.lr=0.003",
    # Larger than the default: where a gradient is zero but for rounding, Adam's step is its sign.
    "optimizer.eps=1.0e-5",
    "eval.every=0",
    "eval.tokens=160",
    "audit.every=5",
    "log.every=1",
    "speed.sample_every=0",  # tests/engine/observe/test_monitor.py has samples
)


TWO_DOMAINS = (
    "data.domains=[{name: a, source: synthetic, synthetic: {train_tokens: 4000, "
    "validation_tokens: 400, num_symbols: 8}}, {name: b, source: synthetic, synthetic: "
    "{train_tokens: 4000, validation_tokens: 400, num_symbols: 8}}]",
    "phases.steps=10",
)
# The gradient of the penalty is then of the size of the loss's.
EWC = (*TWO_DOMAINS, "methods.ewc={strength: 1000.0, sequences: 5}")


class RecordingJournal(Journal):
    """Keeps the records that a run log would write."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.records: list[dict[str, Any]] = []

    def record(self, kind: str, **values: Any) -> None:
        place = {"phase": self.position.phase, "step": self.position.step, "tokens": self.tokens}
        self.records.append({"kind": kind, **place, **values})


class RecordingTrainer(Trainer):
    """Its journal is read by tests."""

    make_journal = RecordingJournal

    @property
    def records(self) -> list[dict[str, Any]]:
        return self.journal.records

    def take_up(self, folder: Path, *, weights_only: bool = False) -> None:
        """Go to where a checkpoint was saved. Collective over the world."""
        saved = state.restore(folder, self.built, self.methods, weights_only=weights_only)
        self._take_up(Position(**saved["position"]), state.remembered(folder))
        (self.methods.began_anew if weights_only else self.methods.resumed)(self.context)

    def run_with_rollback(self, at: int, look: Callable[[], Any]) -> list[Any]:
        """Train to the end, and once, after step `at`, go back to the checkpoint before it.

        Returns:
            What `look` gave right after the rollback, in a list; empty if there was none.
        """
        step, seen = self._step_and_watch, list[Any]()

        def watched(phase: Any, progress: Any) -> bool:
            stopped = step(phase, progress)
            if self.step == at and not seen:
                try:
                    self._roll_back(Spike(9.0, 1.0))
                except RolledBack:
                    seen.append(look())
                    raise
            return stopped

        self._step_and_watch = watched
        # The checkpoints of these tests name no run that they are of.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rollback, "check_lawful", lambda folder: None)
            self.run()
        return seen

    def losses(self) -> list[float]:
        return [record["loss"] for record in self.records if record["kind"] == "train"]


def slow(*values: Any) -> Any:
    """A case of parametrize that only `make test-slow` runs."""
    return pytest.param(*values, marks=pytest.mark.slow)


def load(cache: str, overrides: tuple[str, ...]) -> RunConfig:
    return configs.load(RunConfig, None, [*TINY, f"data.cache_dir={cache}", *overrides])


def resolve(
    config: RunConfig, schedule: Schedule, stage: str, json_overrides: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The DeepSpeed config of `ds_configs/<stage>.json`, with blocks replaced."""
    numbers = run_numbers(config, schedule)
    found = ds_config.resolve(ROOT / "ds_configs" / f"{stage}.json", numbers).config
    for key, value in (json_overrides or {}).items():
        if isinstance(value, dict):
            found[key] = {**found.get(key, {}), **value}
        else:
            found[key] = value
    return found


def assemble(
    config: RunConfig,
    stage: str,
    folder: str,
    json_overrides: dict[str, Any] | None = None,
) -> tuple[RecordingTrainer, PreparedData, Built]:
    """A trainer on this rank. Collective over the world."""
    dist.init(config.parallel.tensor)
    schedule = make_schedule(config, world_size=dist.world_size())
    data = prepare(
        config.data,
        config.tokenizer,
        context=schedule.shape.context,
        seed=config.seed,
        show_progress=False,
    )
    model = build_gpt(
        config.model,
        config.topology,
        vocab_size=data.tokenizer.vocab_size,
        seed=config.seed,
        sequence=config.parallel.sequence,
        loss_chunk=config.speed.loss_chunk,
        shape=config.shape,
    )
    methods = build_methods(config.methods)
    methods.attach(GptSide(model, config.seed), len(schedule.phases))
    built = attach(model, config, resolve(config, schedule, stage, json_overrides))
    trainer = RecordingTrainer(
        config,
        schedule,
        data,
        built,
        methods,
        log=None,
        checkpoints=Path(folder),
        identity={},
    )
    return trainer, data, built


def train(
    cache: str,
    stage: str,
    overrides: tuple[str, ...],
    folder: str,
    json_overrides: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A whole run; its end is a checkpoint in `folder`."""
    config = load(cache, overrides)
    trainer, _, built = assemble(config, stage, folder, json_overrides)
    trainer.run()
    return {
        "losses": trainer.losses(),
        "evals": [r for r in trainer.records if r["kind"] == "eval"],
        "figures": [r["methods"] for r in trainer.records if "methods" in r],
        "norms": [r["grad_norm"] for r in trainer.records if r["kind"] == "train"],
        "audit": (built.guard.checks, built.guard.nonzero),
        "wrapper": type(built.engine.optimizer).__name__,
    }


def masters(folder: str | Path) -> dict[str, torch.Tensor]:
    """Global fp32 masters of the newest checkpoint in `folder`."""
    newest = max(Path(folder).glob("step_*"), key=lambda path: int(path.name.split("_")[1]))
    reader = Reader(newest)
    return {name: reader.read("master", name) for name in reader.manifest.parameters}
