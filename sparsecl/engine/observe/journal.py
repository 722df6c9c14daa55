"""What a run writes down, and where on the run's axis: records, TensorBoard, lines for people.

Every rank has a journal; only rank 0's has writers behind it, and on the other ranks nothing
happens. scalars.jsonl is the source of every figure (metrics/records.py), the rest a picture of it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sparsecl import dist
from sparsecl.checkpoint.background import Saved
from sparsecl.engine.observe.board import IN_TRAINING, forgetting_scalars
from sparsecl.engine.observe.clock import Clock
from sparsecl.engine.observe.display import evaluation_line
from sparsecl.engine.observe.drift import Moved
from sparsecl.engine.observe.plasticity import scalars
from sparsecl.engine.position import Position
from sparsecl.engine.schedule import JOINT, Phase, Schedule
from sparsecl.engine.texts import TextName
from sparsecl.errors import DataError
from sparsecl.log import RunLog
from sparsecl.metrics.records import WITH_IDENTITY, RunRecords, Score, read_records
from sparsecl.metrics.summary import summarize
from sparsecl.seal import EMPTY, Extent


class Journal:
    """Writes for one run. Local, but for `rewind`."""

    def __init__(self, log: RunLog | None, schedule: Schedule, position: Position) -> None:
        """Args:
        log: rank 0's writers; None on other ranks.
        position: the run's own, read at every entry.
        """
        self.log, self.schedule, self.position = log, schedule, position
        self.clock = Clock()
        self.matrix: dict[str, Any] | None = None
        """The result matrices up to the last finished phase, for checkpoints; see `forgetting`."""

    @property
    def tokens(self) -> int:
        """Tokens trained so far."""
        return self.position.step * self.schedule.tokens_per_step

    @property
    def speed(self) -> float:
        """New training tokens per second, evaluations and checkpoints left out. The seconds hold
        the replayed tokens too, so that replay shows as a lower speed."""
        return self.tokens / max(self.clock.train_seconds, 1e-9)

    def record(self, kind: str, **values: Any) -> None:
        """One line of scalars.jsonl; `sealed=True` seals it (seal.py)."""
        if self.log:
            place = {
                "phase": self.position.phase,
                "step": self.position.step,
                "tokens": self.tokens,
            }
            self.log.record(kind, **{**place, **values})

    def say(self, text: str) -> None:
        """A line for people."""
        if self.log:
            self.log.say(text)

    def scalars(self, values: Mapping[str, float], *, rare: bool = False) -> None:
        """Points of curves; see RunLog.scalars."""
        if self.log:
            self.log.scalars(values, tokens=self.tokens, rare=rare)

    def step(
        self, loss: float, grad_norm: float | None, lr: float, *, replayed: Mapping[str, int]
    ) -> None:
        """A training step whose gradient was finite.

        Args:
            loss: mean over the whole batch, nats per token.
            grad_norm: None if the step was discarded (fp16 steps that overflow).
            replayed: sequences trained again up to now, by method; without those that have none.
        """
        tokens = {name: num * self.schedule.shape.context for name, num in replayed.items()}
        again = {"replayed_tokens": sum(tokens.values()), "replayed_by_method": tokens}
        self.record(
            "train",
            loss=loss,
            lr=lr,
            grad_norm=grad_norm,
            tokens_per_second=self.speed,
            seconds=self.clock.seconds,
            **(again if tokens else {}),
        )
        values = {"loss": loss, "learning_rate": lr}
        if grad_norm is not None:
            values["live_gradient_norm"] = grad_norm
        self.scalars({f"train/{key}": value for key, value in values.items()})
        self.scalars({"progress/phase": self.position.phase})

    def evaluation(
        self, scores: Mapping[str, Mapping[TextName, Score]], *, at: str, phase: int
    ) -> None:
        """All domains, scored at one moment; see metrics/records.py for `at` and `phase`.

        Curves are drawn of the text that is read inside phases, at borders too.
        """
        bits, losses = {}, {}
        for name, found in scores.items():
            inside = found["inside"]
            shown = found.get("ends", inside)
            self.record("eval", phase=phase, at=at, domain=name, **_sums(found))
            losses[name] = shown.loss
            bits[name] = inside.loss_sum / math.log(2) / max(1, inside.num_bytes)
            self.scalars(
                {
                    f"validation_loss/{name}": inside.loss,
                    f"validation_bits_per_byte/{name}": bits[name],
                    f"validation_accuracy/{name}": inside.num_correct / inside.num_tokens,
                }
            )
        trained = self.schedule.domain_name(self.schedule.phases[phase]) if phase >= 0 else None
        self.say(evaluation_line(self.position.step, losses, trained, border=at != "during"))
        self._follow(bits, self.schedule.phases[max(0, phase) : phase + 1 + (at != "during")])

    def evaluation_with_identity(
        self, scores: Mapping[str, Mapping[TextName, Score]], *, at: str, phase: int
    ) -> None:
        """A row of the matrix again, scored by methods that are told which domain it is."""
        losses = {name: found["ends"].loss for name, found in scores.items()}
        for name, found in scores.items():
            values = asdict(found["ends"])
            self.record(WITH_IDENTITY, phase=phase, at=at, domain=name, **values)
            self.scalars({f"validation_loss_with_identity/{name}": losses[name]})
        trained = self.schedule.domain_name(self.schedule.phases[phase]) if phase >= 0 else None
        self.say(evaluation_line(self.position.step, losses, trained, told=True))

    def _follow(self, bits: Mapping[str, float], trained: Sequence[Phase]) -> None:
        """Draw the domain in training; at a border, `trained` is the old and the new phase."""
        for place, phase in enumerate(trained, start=1 - len(trained)):
            if self.log and phase.domain != JOINT:
                # TensorBoard keeps one point of a step: the old phase's stands a token before it.
                now = bits[self.schedule.domain_name(phase)]
                self.log.scalars({IN_TRAINING: now}, tokens=self.tokens + place)

    def live(self, counts: Mapping[str, float]) -> None:
        """How many weights live, as Monitor counts them; nothing is drawn of an empty count."""
        if counts:
            density = counts["live"] / counts["cells"]
            self.scalars({"topology/live": counts["live"], "topology/density": density})

    def phase_end(
        self,
        domain: str,
        replayed: Sequence[int],
        live: Mapping[str, float],
        figures: Mapping[str, Mapping[str, float]],
    ) -> None:
        """A phase is over.

        Args:
            replayed: sequences trained again so far, by their own phase.
            live: as Monitor counts them, and what Turnover says of them.
            figures: what methods measure of themselves, by method and name.
        """
        tokens = [count * self.schedule.shape.context for count in replayed]
        more: dict[str, Any] = {"replayed_by_phase": tokens} if any(tokens) else {}
        if figures:
            more["methods"] = {name: dict(found) for name, found in figures.items()}
            values = {f"{name}/{k}": v for name, found in figures.items() for k, v in found.items()}
            self.scalars(values, rare=True)
        self.record("phase", sealed=True, event="end", domain=domain, **more, **live)
        self.live(live)

    def plasticity(self, found: Mapping[str, Any], *, at: str, phase: int) -> None:
        """Figures of engine/observe/plasticity.py."""
        self.record("plasticity", **{"phase": phase, "at": at, **found})
        self.scalars(scalars(found))

    def drift(self, found: Mapping[str, Moved]) -> None:
        """How far the model has moved since each earlier domain's own phase, by domain."""
        self.record(
            "drift",
            kl={name: one.kl for name, one in found.items()},
            standard_error={name: one.error for name, one in found.items()},
            num_tokens={name: one.num_tokens for name, one in found.items()},
        )
        self.scalars({f"drift/{name}": one.kl for name, one in found.items()}, rare=True)

    def forgetting(self) -> None:
        """Draw what is forgotten so far, from the records as the report does."""
        if self.log is None or self.log.num_waiting:  # the record has gaps while a disk is full
            return
        summary = summarize(self.read_back(self.log))
        self.matrix = summary["matrix"]
        self.scalars(forgetting_scalars(summary), rare=True)

    def read_back(self, log: RunLog) -> RunRecords:
        """What stands in scalars.jsonl, which must be what was written. No record may wait.

        Raises:
            DataError: it is something else.
        """
        records = read_records(log.folder)
        if records.extent != log.extent:
            raise DataError(
                f"{log.path}: is not what this run wrote (sha256 differs). Check the disk, and "
                "start the same command again: it goes on from the last checkpoint, if it can."
            )
        return records

    def audit(self, *, checks: int, nonzero: int, held: int) -> None:
        """An audit of the absent and the held weights."""
        self.record("audit", checks=checks, nonzero=nonzero, **({"held": held} if held else {}))
        self.scalars({"audit/nonzero_absent": nonzero})

    def saved(self, what: Saved, *, stall_seconds: float) -> None:
        """What checkpoints cost. Only in TensorBoard: a resumed run has other checkpoints than one
        that was never stopped, and must have the same records.

        Args:
            what: the last one that is done; in the background that is the one before this.
            stall_seconds: how long training has just waited.
        """
        self.scalars(
            {
                "checkpoint/megabytes": what.bytes / 1e6,
                "checkpoint/stall_seconds": stall_seconds,
                "checkpoint/write_seconds": what.write_seconds,
            }
        )

    def sync(self) -> Extent:
        """Make the records durable. Returns what stands in the file; EMPTY on other ranks."""
        return self.log.sync() if self.log else EMPTY

    def rewind(self, extent: Extent) -> None:
        """Cut off what was written after the moment that `position` is at now. Collective.

        Args:
            extent: what scalars.jsonl held at that moment.

        Raises:
            DataError: it does not begin with that any more.
        """

        def reopen() -> None:
            if self.log:
                self.log.close()
                self.log = RunLog(
                    self.log.folder,
                    resume_at=extent,
                    purge_tokens=self.tokens,
                    wandb=self.log.wandb,
                )

        dist.agree(reopen)


def _sums(found: Mapping[TextName, Score]) -> dict[str, Any]:
    """The fields of an evaluation: at a border those of the text "ends", and in `inside` those of
    the other one, if it is another."""
    inside, shown = found["inside"], found.get("ends", found["inside"])
    other = {} if inside.num_tokens == shown.num_tokens else {"inside": asdict(inside)}
    return {**asdict(shown), **other}
