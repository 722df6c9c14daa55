"""An estimate beside the run that it was made for: how far its memory and its times are off.

The run says what it measured in its last record (`performance` in results.json). What its roofline
lacks on this machine is the number that --reached takes, so one short run makes the estimates
of all others better.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparsecl.errors import DataError, MissingInputError
from sparsecl.metrics.results import RESULTS, read_ended
from sparsecl.planning.estimate import Estimate
from sparsecl.planning.text import size_text


@dataclass(frozen=True)
class Measured:
    """What a finished run says of itself."""

    folder: Path
    ranks: int
    step_seconds: float
    """Median over ranks of the time of a step, evaluations and checkpoints left out."""

    memory_bytes: int
    """Largest over ranks; of a GPU what tensors took, of a CPU all that the process held."""

    mfu: float | None

    @property
    def config(self) -> Path:
        """Its run config."""
        return self.folder / "config.yaml"

    @property
    def ds_config(self) -> Path:
        """Its DeepSpeed JSON, resolved."""
        return self.folder / "ds_config.json"


@dataclass(frozen=True)
class Compared:
    """One figure, planned and measured."""

    planned: float
    measured: float

    @property
    def ratio(self) -> float:
        """Measured / planned."""
        return self.measured / self.planned


def read_run(folder: Path) -> Measured:
    """Read a run folder.

    Raises:
        MissingInputError: the run has not ended.
        DataError: it says nothing of its speed, or its records are damaged.
    """
    path = folder / RESULTS
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file. Give the folder of a run that has ended.")
    found = read_ended(folder).performance or {}
    steps, memory = found.get("step_seconds") or {}, found.get("peak_memory_bytes")
    if not steps.get("median") or not memory or not found.get("ranks"):
        raise DataError(
            f"{path}: has no step time and memory under `performance`. Runs of earlier versions "
            "and of less than two steps do not; train a few steps and give that run's folder."
        )
    return Measured(folder, found["ranks"], steps["median"], memory, found.get("mfu"))


def compare(planned: Estimate, measured: Measured) -> dict[str, Any]:
    """Figures for the JSON file; the text is made of them."""
    context = planned.machine.context_gib * 2**30
    on_gpu = not planned.machine.name.startswith("CPU")
    # What tensors take is not what the driver shows: no context there.
    memory = planned.fit.needed - (context if on_gpu else 0)
    rows = {
        "memory_bytes": Compared(memory, measured.memory_bytes),
        "step_seconds": Compared(planned.time.step, measured.step_seconds),
        "tokens_per_second": Compared(
            planned.tokens_per_second, planned.schedule.tokens_per_step / measured.step_seconds
        ),
    }
    return {
        "run": str(measured.folder),
        **{name: {**asdict(row), "ratio": row.ratio} for name, row in rows.items()},
        "reached": reached(planned, measured.step_seconds),
    }


def reached(planned: Estimate, step_seconds: float) -> float | None:
    """Share of the roofline's speed that the run reached; None if its communication alone was
    planned to take longer than its steps took."""
    ideal = planned.time.compute * planned.machine.reached
    own = step_seconds - planned.time.exposed
    return ideal / own if own > 0 else None


def comparison_text(figures: dict[str, Any]) -> str:
    """A table for people."""
    shown = {
        "memory": ("memory_bytes", size_text),
        "step": ("step_seconds", lambda value: f"{value * 1e3:.2f} ms"),
        "tokens/s": ("tokens_per_second", lambda value: f"{value:,.0f}"),
    }
    lines = [
        f"  Against {figures['run']}",
        f"    {'':<10}{'planned':>14}{'measured':>14}{'ratio':>8}",
    ]
    for label, (key, form) in shown.items():
        row = figures[key]
        lines.append(
            f"    {label:<10}{form(row['planned']):>14}{form(row['measured']):>14}"
            f"{row['ratio']:>8.3f}"
        )
    if figures["reached"] is not None:
        lines.append(
            f"    the run reached {figures['reached']:.0%} of the roofline's speed: "
            f"--reached {figures['reached']:.2f} plans others like it"
        )
    return "\n".join(lines)
