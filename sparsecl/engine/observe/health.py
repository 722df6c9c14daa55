"""Steps that go wrong: gradients that are not finite, and losses that jump.

Nothing is silent. A discarded step and a spike are records and lines of the log; a run that cannot
go on says what each rank saw. Everything is decided from numbers that all ranks share.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any

from annotated_types import MaxLen

from sparsecl import dist
from sparsecl.engine.observe.journal import Journal
from sparsecl.engine.observe.observer import Observer
from sparsecl.engine.outcomes import StepResult
from sparsecl.engine.position import Count, Position
from sparsecl.engine.run_config import HealthConfig
from sparsecl.errors import InvariantError, UserError
from sparsecl.files import write_json, writing
from sparsecl.opening import make_folder

WINDOW = 50  # logged losses that the usual loss is the median of
MIN_SEEN = 10  # fewer losses of a phase say nothing: a new domain begins with a jump


class RolledBack(Exception):
    """The run is at an earlier checkpoint again; the phase must be taken up anew."""


@dataclass(frozen=True)
class Spike:
    """A training loss far above the usual."""

    loss: float
    usual: float
    """Median of the last logged losses."""


@dataclass
class Seen:
    """What the judgement of a step needs of those before it. Part of every checkpoint."""

    bad_steps: Count = 0
    """Steps in a row, up to now, whose gradient was not finite."""

    recent_losses: Annotated[list[float], MaxLen(WINDOW)] = field(default_factory=list)
    """The last logged training losses of this stage, oldest first."""

    rollbacks: Count = 0
    """Returns to an earlier checkpoint in the whole run."""


class Health(Observer[Seen]):
    """Judges every step of a run."""

    def __init__(
        self, config: HealthConfig, position: Position, journal: Journal, folder: Path
    ) -> None:
        """Args:
        folder: the run folder, where diagnostics go.
        """
        super().__init__(Seen())
        self.config, self.position, self.journal = config, position, journal
        self.folder = folder

    @property
    def suspicious(self) -> bool:
        """The last step was discarded: the next one should say which gradients are bad."""
        return self.kept.bad_steps > 0

    @property
    def may_roll_back(self) -> bool:
        """A spike is answered with a return to the last checkpoint."""
        config = self.config
        return config.rollback and self.kept.rollbacks < config.max_rollbacks

    def judge(self, result: StepResult, *, batch: Any) -> None:
        """Count steps discarded in a row. Collective over the world if one was.

        Args:
            batch: what tells this rank's sequences of the step, JSON-safe, for the diagnostics.

        Raises:
            InvariantError: after health.max_bad_steps of them.
        """
        kept = self.kept
        if not result.discarded:
            kept.bad_steps = 0
            return
        kept.bad_steps += 1
        self.journal.record("discarded", in_a_row=kept.bad_steps)
        self.journal.say(
            f"  step {self.position.step}: a gradient is not finite; the step is discarded "
            f"({kept.bad_steps} in a row, the run stops at {self.config.max_bad_steps})"
        )
        if kept.bad_steps >= self.config.max_bad_steps:
            raise InvariantError(self._diagnose(result, batch))

    def _diagnose(self, result: StepResult, batch: Any) -> str:
        """Write down what every rank saw; the message that ends the run."""
        mine = {
            "losses": [str(float(loss)) for loss in result.losses],
            "bad_gradients": result.bad_gradients,
            "batch": batch,
        }
        ranks = dist.gather_objects(mine)
        path = self.folder / "diagnostics" / f"step_{self.position.step}.json"
        content = {"position": asdict(self.position), **self.state_dict(), "ranks": ranks}
        kept = dist.agree(lambda: _write_diagnostics(path, content), only_first=True)
        bad = [
            rank
            for rank, seen in enumerate(ranks)
            if not all(math.isfinite(float(loss)) for loss in seen["losses"])
        ]
        where = (
            f"the loss is not finite on rank {', '.join(map(str, bad))}"
            if bad
            else ("every loss is finite, the gradient overflows")
        )
        return (
            f"step {self.position.step}: {self.kept.bad_steps} steps in a row had a gradient "
            f"that is not finite ({where}). {kept} Lower optimizer.lr, or look at the data."
        )

    def begin_stage(self) -> None:
        """A domain or a stage begins, which has a usual loss of its own."""
        self.kept.recent_losses = []

    def spike(self, loss: float) -> Spike | None:
        """Whether a logged loss is far above the usual of this phase; it is remembered if not.
        Local, and the same on all ranks that pass the same loss."""
        recent, factor = self.kept.recent_losses, self.config.spike_factor
        usual = _median(recent)
        if factor and len(recent) >= MIN_SEEN and loss > factor * usual:
            self.journal.say(
                f"  step {self.position.step}: the training loss jumps to {loss:.3f}, the usual is "
                f"{usual:.3f}"
            )
            self.journal.record("spike", loss=loss, usual=usual)
            return Spike(loss, usual)
        recent.append(loss)
        del recent[:-WINDOW]
        return None


def _write_diagnostics(path: Path, content: Any) -> str:
    """Write the file. Returns where it is, or why not: that must not hide what ended the run."""
    try:
        with writing(path):
            make_folder(path.parent)
        write_json(path, content)
    except UserError as error:
        return f"{error}."
    return f"See {path.relative_to(path.parent.parent)} in the run folder."


def _median(values: Sequence[float]) -> float:
    return median(values) if values else math.inf
