"""The loop: phases over domains, steps inside a phase, and what happens at the borders.

The engine owns the loop, DeepSpeed owns backward and step, methods answer hooks. What a resume
needs is in `Position` and kept by the observers; nothing else crosses a step, so a resumed run
repeats an uninterrupted one bit for bit on the same layout.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsecl import dist, faults, watchdog
from sparsecl.data.prepare import PreparedData
from sparsecl.engine.build import Built
from sparsecl.engine.loop.context import RunContext
from sparsecl.engine.loop.evaluate import evaluate_domains
from sparsecl.engine.loop.outputs import forward_batch
from sparsecl.engine.loop.phase_data import Stream, phase_stream
from sparsecl.engine.loop.prefetch import BatchPlace, Prefetcher, place_indices, row_reader
from sparsecl.engine.loop.step import Looks, take_step
from sparsecl.engine.loop.stop import StopRequest
from sparsecl.engine.observe.drift import Drift
from sparsecl.engine.observe.early_end import EarlyEnd
from sparsecl.engine.observe.health import Health, RolledBack, Spike
from sparsecl.engine.observe.journal import Journal
from sparsecl.engine.observe.monitor import Monitor
from sparsecl.engine.observe.observer import Observer, Remembered
from sparsecl.engine.observe.plasticity import Panel
from sparsecl.engine.observe.profile import StepProfile
from sparsecl.engine.observe.turnover import Turnover
from sparsecl.engine.outcomes import StepResult
from sparsecl.engine.position import Position
from sparsecl.engine.resume import state
from sparsecl.engine.resume.keeper import Keeper
from sparsecl.engine.resume.rollback import rewind
from sparsecl.engine.run_config import RunConfig
from sparsecl.engine.schedule import Phase, Schedule, learning_rate
from sparsecl.engine.texts import TextName, evaluation_texts
from sparsecl.errors import InvariantError, Preempted, StorageError
from sparsecl.log import RunLog
from sparsecl.methods.context import Batch
from sparsecl.methods.several import Methods
from sparsecl.metrics.records import Score
from sparsecl.optim.build import set_lr
from sparsecl.optim.replicas import check_replicas
from sparsecl.optim.slices import Slices
from sparsecl.progress import ProgressBar

# What a pass of a method over much data may take.
METHOD_SECONDS = 3600.0


class Trainer:
    """One run on this rank. All methods are collective over the world unless they say otherwise."""

    make_journal = Journal

    def __init__(
        self,
        config: RunConfig,
        schedule: Schedule,
        data: PreparedData,
        built: Built,
        methods: Methods,
        *,
        log: RunLog | None,
        checkpoints: Path,
        identity: dict[str, Any],
        position: Position | None = None,
        observers: Remembered | None = None,
        stop: StopRequest | None = None,
    ) -> None:
        """Join the parts.

        Args:
            log: rank 0's writers; None on other ranks.
            identity: what a resume compares: config, fingerprints and digests.
            position: where to go on; None = at the beginning.
            observers: what they had seen there; None = nothing yet.
            stop: signals to this rank; None = nobody listens.
        """
        self.config, self.schedule, self.data = config, schedule, data
        self.built = built
        self.checkpoints = checkpoints
        self.position = position or Position()
        self.journal = self.make_journal(log, schedule, self.position)
        self.health = Health(config.health, self.position, self.journal, checkpoints.parent)
        self.early_end = EarlyEnd(config.phases)
        self.stop = stop
        self.streams: dict[int, Stream] = {}
        self.context = RunContext(
            config, schedule, data, built, self.position, methods, self._phase_stream
        )
        read = row_reader(schedule, config.batch.sequences, self._phase_stream)
        ahead = config.speed.prefetch
        self.loader = Prefetcher(read, accumulation=schedule.accumulation, ahead=ahead)
        vocab_size = data.tokenizer.vocab_size
        self.monitor = Monitor(
            config, built, self.journal, self.loader, methods, vocab_size=vocab_size
        )
        self.profile = StepProfile(config.speed.profile, self.journal, checkpoints.parent / "tb")
        context, batch = schedule.shape.context, config.eval.batch
        self.texts = evaluation_texts(config.eval, data.domains, context=context)
        self.panel = Panel(config.plasticity, built, data.domains, context=context, batch=batch)
        self.drift = Drift(
            built,
            data.domains,
            schedule,
            tokens=config.eval.kl_tokens,
            seed=config.seed,
            batch=batch,
        )
        self.turnover = Turnover(built.engine.module, moves=methods.rewires)
        self.observers: dict[str, Observer[Any]] = {
            "clock": self.journal.clock,
            "health": self.health,
            "early_end": self.early_end,
            "plasticity": self.panel,
            "drift": self.drift,
            "turnover": self.turnover,
        }
        self.keeper = Keeper(
            config.checkpoint,
            checkpoints,
            built,
            self.position,
            self.journal,
            self.observers,
            identity=identity,
        )
        if observers is not None:
            observers.give(self.observers)

    @property
    def domain(self) -> str:
        """Name of the domain that this phase trains."""
        return self.context.domain

    @property
    def step(self) -> int:
        """Optimizer steps done in the whole run."""
        return self.position.step

    @property
    def methods(self) -> Methods:
        """All methods of the run."""
        return self.context.methods

    @property
    def slices(self) -> Slices:
        """This rank's slices."""
        return self.built.slices

    # The loop.

    def run(self) -> None:
        """Train to the end of the last phase.

        Raises:
            Preempted: a signal came to any rank, and the state is saved.
        """
        if self.stop is not None:
            self.stop.arm()
        with self.monitor.attempt():
            self._run()

    def _run(self) -> None:
        if not self.position.started:
            self._evaluate_all("start", phase=-1)
            self._record_plasticity("start", phase=-1)
            self.position.started = True
            with self.monitor.checkpoint():
                self.keeper.save_initial(self.methods)
        self._train()
        with self.monitor.checkpoint():
            self.keeper.wait()
        self.loader.close()
        journal = self.journal
        journal.record(
            "end",
            sealed=True,
            seconds=journal.clock.seconds,
            tokens_per_second=journal.speed,
            performance=self.monitor.performance(),
        )

    def _train(self) -> None:
        """All phases that are left, under one progress bar."""
        show, done = self.journal.log is not None, self.position.step
        progress = ProgressBar("training", total=done + self._steps_left(), done=done, show=show)
        try:
            while self.position.phase < len(self.schedule.phases):
                with suppress(RolledBack):
                    self._run_phase(self.schedule.phases[self.position.phase], progress)
        finally:
            progress.close()

    def _steps_left(self) -> int:
        """Steps to the end of the run, if no phase ends early."""
        left = sum(phase.num_steps for phase in self.schedule.phases[self.position.phase :])
        return left - self.position.phase_step

    def _run_phase(self, phase: Phase, progress: ProgressBar) -> None:
        if self.position.phase_step == 0:
            self._begin_phase(phase)
        self.monitor.begin_phase()
        step, label = self.position.step, f"phase {phase.index} {self.domain}"
        progress.begin(label, total=step + self._steps_left(), done=step)
        while self.position.phase_step < phase.num_steps:
            if self._step_and_watch(phase, progress):
                break
        self._end_phase(phase)

    def _begin_phase(self, phase: Phase) -> None:
        if phase.index and self.config.phases.optimizer_state == "reset":
            state.reset_moments(self.slices)
        self.panel.begin_phase()
        self.journal.record("phase", event="start", domain=self.domain)
        self.methods.phase_start(self.context)

    def _end_phase(self, phase: Phase) -> None:
        faults.point("phase_end", step=self.step)
        with watchdog.patient("the methods, before a phase's evaluation", METHOD_SECONDS):
            self.methods.phase_trained(self.context)
        self._evaluate_all("phase_end", phase=phase.index)
        self._record_plasticity("phase_end", phase=phase.index)
        self._record_drift(phase)
        self.journal.forgetting()
        self._audit()
        with watchdog.patient("the methods' end of a phase", METHOD_SECONDS):
            self.methods.phase_end(self.context)
            figures = self.methods.all_figures(self.context)
        position = self.position
        live = self.turnover.figures(self.step, position.phase_step) | self.monitor.live()
        self.journal.phase_end(self.domain, self.methods.replayed_by_phase, live, figures)
        position.phase, position.phase_step, position.data_shift = phase.index + 1, 0, 0
        self._save()
        if position.phase < len(self.schedule.phases):  # else the end is nearer than a restart
            self._stop_if_asked()

    def _step_and_watch(self, phase: Phase, progress: ProgressBar) -> bool:
        """One step with everything that may follow it. Returns True if the phase ends early."""
        config, position = self.config, self.position
        last = position.phase_step + 1 == phase.num_steps
        audited = last or _due(position.step + 1, config.audit.every)
        logged = last or _due(position.step + 1, config.log.every)
        self.monitor.begin_step()
        lr = learning_rate(config, phase, position.phase_step)
        number = self.step + 1
        with self.profile.step(number), self.monitor.work(number):
            result = self._train_step(lr, audited=audited, logged=logged)
        position.phase_step += 1
        position.step += 1
        if result.applied:
            looked = self.panel.after_update(position.phase_step)
            self.monitor.evaluated(looked)
        self.context.after_step(applied=result.applied, skipped=result.skipped)
        self.turnover.look(self.step)
        if config.precision != "fp16":
            self.health.judge(result, batch=self._batch_name())
        loss = self._log_step(result, lr) if logged else None
        # Logging has waited for the device, so the clock is honest at least there.
        self.journal.clock.step_took(self.monitor.end_step())
        speed = f"{self.journal.speed:,.0f}"
        progress.advance({} if loss is None else {"loss": f"{loss:.3f}", "tok/s": speed})
        stopped = False
        if not last:
            if _due(position.phase_step, config.eval.every):
                stopped = self._evaluate_all("during", phase=phase.index)
            if audited:
                self._audit()
            if self.keeper.is_due() and not stopped:
                self._save()
            if not stopped:
                self._stop_if_asked()
        return stopped

    def _train_step(self, lr: float, *, audited: bool, logged: bool) -> StepResult:
        number = self.step + 1
        watchdog.beat(f"step {number}")
        faults.point("step", step=number)
        set_lr(self.slices.optimizer, lr)
        self._begin_step()
        hooks = [self.context.after_backward]
        if audited:
            hooks.append(self.built.guard.audit_gradients)
        hooks.append(lambda: self._point("gradient", number))
        result = take_step(
            self.built,
            self._micro_losses(),
            name=f"step {number}",
            accumulation=self.schedule.accumulation,
            looks=Looks(grad_norm=logged, bad_gradients=self.health.suspicious),
            before_step=hooks,
            skip=lambda: self.context.skips,
        )
        self._point("weights", number)
        return result

    def _begin_step(self) -> None:
        self.context.micro_step = 0
        if self.context.progress.stage_step == 0:
            self.health.begin_stage()
            self.methods.stage_start(self.context)
        self.methods.step_start(self.context)

    def _micro_losses(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """For each micro-batch its mean loss per token, and the loss to go backward from."""
        for micro_step in range(self.schedule.accumulation):
            self.context.micro_step = micro_step
            watchdog.beat(f"step {self.step + 1}, data of micro-batch {micro_step}")
            with self.monitor.stragglers.data():
                faults.point("batch", step=self.step + 1)
                place = BatchPlace(self.position.phase, self.context.progress.data_step, micro_step)
                read = self.loader.take(place)
                batch = self.methods.batch(self.context, self._batch(place, read.rows))
                tokens = self.loader.tokens(read, batch.rows)
            watchdog.beat(f"step {self.step + 1}, forward of micro-batch {micro_step}")
            with self.monitor.stragglers.forward():
                whole = self.methods.needs_outputs
                outputs, loss = forward_batch(self.built.engine, tokens, batch, with_logits=whole)
            if faults.armed():
                factor = torch.ones(1, device=loss.device)
                faults.point("loss", tensors=[factor], step=self.step + 1)
                loss = loss * factor[0]
            extra = self.methods.loss(self.context, batch, outputs)
            yield loss, loss if extra is None else loss + extra
            self.panel.see(tokens, outputs.losses)

    def _batch(self, place: BatchPlace, rows: np.ndarray) -> Batch:
        """The new sequences of a micro-batch, as methods see them. Local."""
        indices = place_indices(self.schedule, self.config.batch.sequences, place)
        origin = np.stack([np.full_like(indices, place.phase), indices], axis=1)
        return Batch(rows, np.ones(len(rows), np.float32), origin)

    def _batch_name(self) -> dict[str, Any]:
        """What tells the sequences of the step just taken, for diagnostics. Local."""
        first = (self.context.progress.data_step - 1) * self.config.batch.sequences
        return {"domain": self.domain, "first_sequence": first}

    def _point(self, name: str, number: int) -> None:
        """A point at which tensors can be changed on purpose. Local."""
        if faults.armed():
            slices = self.slices
            found = {i.name: i.weight if name == "weights" else slices.grad(i) for i in slices}
            tensors = {key: value for key, value in found.items() if value is not None}
            faults.point(name, tensors=tensors, step=number)

    # What is written down.

    def _log_step(self, result: StepResult, lr: float) -> float | None:
        """Record a step. Returns the loss over all ranks; None if the step was discarded for it."""
        if result.discarded and self.config.precision != "fp16":
            return None
        mean = dist.all_reduce(result.loss, group=dist.dp_group()).div_(self.schedule.dp_size)
        loss, norm = float(mean), result.grad_norm
        if not math.isfinite(loss):
            raise InvariantError(
                f"step {self.step}: the training loss is {loss}. Lower optimizer.lr, or turn on "
                "clipping (optimizer.clip)."
            )
        if norm is not None and not math.isfinite(norm):
            norm = None  # fp16 steps that overflow have none
        self.panel.kept.grad_norm = norm
        self.monitor.compare()
        self.journal.step(loss, norm, lr, replayed=self.methods.replayed_by_method)
        spike = self.health.spike(loss)
        if spike is not None and self.health.may_roll_back:
            self._roll_back(spike)
        return loss

    def _roll_back(self, spike: Spike) -> None:
        """Return to the last checkpoint of this phase; without one, go on.

        Raises:
            RolledBack: the position is another one now.
        """
        step = self.step
        self.keeper.wait()
        found = rewind(self.checkpoints, self.built, self.methods, self.position)
        if found is None:
            self.journal.say("  no checkpoint of this phase to return to: going on")
            return
        number = self.health.kept.rollbacks + 1
        self._take_up(found.position, found.observers)
        self.health.kept.rollbacks = number
        self.methods.resumed(self.context)
        self.built.guard.audit(self.step)
        self.built.guard.checks = found.audit_checks
        self.journal.rewind(found.records)
        self.journal.record("rollback", from_step=step, loss=spike.loss, usual=spike.usual)
        self.journal.say(
            f"  back to step {self.step}; the data of {step - self.step} steps is left out "
            f"(rollback {number} of at most {self.config.health.max_rollbacks})"
        )
        raise RolledBack

    def _take_up(self, position: Position, observers: Remembered) -> None:
        """Be at a place, with what was seen on the way to it. Local."""
        self.position.take(position)
        observers.give(self.observers)

    def _evaluate_all(self, at: str, *, phase: int) -> bool:
        """Score every domain. Returns True if the phase ends early."""
        faults.point("evaluate", step=self.step)
        told: Mapping[str, Mapping[TextName, Score]] = {}
        with self.monitor.evaluation():
            texts: tuple[TextName, ...] = ("inside",) if at == "during" else ("ends", "inside")
            scores = self._scores(texts, lambda domain: nullcontext())
            if at != "during" and self.config.methods.told_domain:  # rows of the matrix only
                told = self._scores(("ends",), lambda one: self.methods.scoring(self.context, one))
        self._check_data()
        self.journal.evaluation(scores, at=at, phase=phase)
        if told:
            self.journal.evaluation_with_identity(told, at=at, phase=phase)
        if at != "during" or not self.early_end.judges(phase):
            return False
        return self.early_end.ends(phase, scores[self.domain]["inside"].loss)

    def _scores(
        self,
        texts: tuple[TextName, ...],
        around: Callable[[str], AbstractContextManager[None]],
    ) -> dict[str, dict[TextName, Score]]:
        return evaluate_domains(
            self.built.engine,
            self.texts,
            self.data.tokenizer.bytes_per_token,
            texts,
            around=around,
            batch=self.config.eval.batch,
            step=self.step,
        )

    def _record_plasticity(self, at: str, *, phase: int) -> None:
        """Measure the network's plasticity and write it down; see engine/observe/plasticity.py."""
        with (
            watchdog.patient("the figures of plasticity", METHOD_SECONDS),
            self.monitor.evaluation(),
        ):
            found = self.panel.measure()
        if found is not None:
            self.journal.plasticity(found, at=at, phase=phase)

    def _record_drift(self, phase: Phase) -> None:
        """Write down how far earlier domains' models are; see engine/observe/drift.py."""
        with watchdog.patient("the figures of drift", METHOD_SECONDS), self.monitor.evaluation():
            found = self.drift.phase_end(phase.index)
        if found:
            self.journal.drift(found)

    def _audit(self) -> None:
        guard = self.built.guard
        try:
            guard.audit(self.step)
        finally:  # a violation ends the run, and its record says so too
            self.journal.audit(checks=guard.checks, nonzero=guard.nonzero, held=guard.held)
        buffers = dict(self.built.engine.module.named_buffers())
        check_replicas(self.slices, buffers, self.step)

    def _stop_if_asked(self) -> None:
        signal = self.stop.agreed() if self.stop is not None else None
        if signal is None:
            return
        if self.keeper.saved_step != self.step:
            self._save()
        self.keeper.wait()
        if self.keeper.saved_step != self.step:
            raise StorageError(f"{signal}: stopping, and step {self.step} could not be saved")
        raise Preempted(
            f"{signal}: stopped after step {self.step}, saved in {self.checkpoints}. "
            "The same command goes on from there."
        )

    def _check_data(self) -> None:
        """Raise DataError on all ranks if somebody has written to tokens that any of them reads, so
        that nothing is recorded or saved of them."""
        with watchdog.patient("the sha256 of token files", METHOD_SECONDS):
            dist.agree(self.data.check)

    def _save(self) -> None:
        self._check_data()
        with self.monitor.checkpoint():
            self.keeper.save(self.methods)

    def _phase_stream(self, index: int) -> Stream:
        """The sequences of one phase, earlier or present. Local."""
        if index not in self.streams:
            self.streams[index] = phase_stream(self.config, self.schedule, self.data, index)
        return self.streams[index]


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
