"""The loop: phases over domains, steps inside a phase, and what happens at the borders.

The engine owns the loop, DeepSpeed owns backward and step, methods answer hooks. Everything that a
resume needs is in `Position`; nothing else crosses a step, so a resumed run repeats an
uninterrupted one bit for bit on the same layout.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsecl import dist, seeding
from sparsecl.data.batches import evaluation_windows, sample_indices
from sparsecl.data.prepare import PreparedData
from sparsecl.engine import state
from sparsecl.engine.board import CHART, IN_TRAINING, forgetting_scalars
from sparsecl.engine.build import Built
from sparsecl.engine.display import Progress, evaluation_line
from sparsecl.engine.evaluate import evaluate, mean_squared_gradients
from sparsecl.engine.plan import JOINT, Phase, Plan, learning_rate
from sparsecl.engine.plasticity import Panel, PhaseSums, scalars
from sparsecl.engine.run_config import RunConfig
from sparsecl.engine.streams import Stream, phase_stream
from sparsecl.errors import InvariantError
from sparsecl.log import RunLog
from sparsecl.methods.base import Methods, SliceTensors
from sparsecl.metrics.records import read_records
from sparsecl.metrics.summary import summarize
from sparsecl.optim.build import set_lr
from sparsecl.optim.moving import move_parameter, move_slices, whole
from sparsecl.optim.slices import Slices
from sparsecl.sparse.registry import SparseParameter, sparse_parameters
from sparsecl.sparse.rewire import rewire

# Keeps fp16 gradients of single sequences clear of underflow, and of overflow by the scale alone.
FISHER_SCALE = 1024.0


@dataclass
class Position:
    """Where the run is: the next step to take, and what early stopping has seen."""

    phase: int = 0
    phase_step: int = 0
    step: int = 0
    """Optimizer steps done in the whole run."""

    started: bool = False
    """The evaluation before training is done."""

    best_loss: float = 1e30
    num_bad: int = 0
    train_seconds: float = 0.0
    seconds: float = 0.0
    """Wall time of the run up to its last checkpoint, over all restarts."""

    plasticity: PhaseSums = field(default_factory=PhaseSums)

    def __post_init__(self) -> None:
        if isinstance(self.plasticity, dict):  # as a checkpoint keeps it
            self.plasticity = PhaseSums(**self.plasticity)


class Trainer:
    """One run on this rank. All methods are collective over the world unless they say otherwise."""

    def __init__(
        self,
        config: RunConfig,
        plan: Plan,
        data: PreparedData,
        built: Built,
        methods: Methods,
        *,
        log: RunLog | None,
        checkpoints: Path,
        identity: dict[str, Any],
        position: Position | None = None,
    ) -> None:
        """Join the parts.

        Args:
            log: rank 0's writers; None on other ranks.
            identity: what a resume compares: config, fingerprints and digests.
            position: where to go on; None = at the beginning.
        """
        self.config, self.plan, self.data = config, plan, data
        self.built, self.methods = built, methods
        self.log, self.checkpoints, self.identity = log, checkpoints, identity
        self.position = position or Position()
        self.begun = time.monotonic() - self.position.seconds
        self.micro_step = 0
        self.streams: dict[int, Stream] = {}
        self.stream = self._stream()
        self.panel = Panel(
            config.plasticity,
            built,
            data.domains,
            context=plan.shape.context,
            batch=config.eval.batch,
        )

    # What methods see (methods/base.py, MethodContext).

    @property
    def phase(self) -> int:
        """0-based phase."""
        return self.position.phase

    @property
    def domain(self) -> str:
        """Name of the domain that this phase trains."""
        return self.plan.domain_name(self.plan.phases[self.phase])

    @property
    def step(self) -> int:
        """Optimizer steps done in the whole run."""
        return self.position.step

    @property
    def phase_step(self) -> int:
        """Optimizer steps done in this phase."""
        return self.position.phase_step

    @property
    def num_micro_steps(self) -> int:
        """Micro-batches of each rank per optimizer step."""
        return self.plan.accumulation

    @property
    def batch_sequences(self) -> int:
        """New sequences per optimizer step, over all ranks."""
        return self.config.batch.sequences

    @property
    def slices(self) -> Slices:
        """This rank's slices."""
        return self.built.slices

    def rows(self, phase: int, indices: np.ndarray) -> np.ndarray:
        """Training sequences of any phase by their numbers in it. Local."""
        return self._phase_stream(phase).rows(indices)

    def generator(self, *names: str | int) -> np.random.Generator:
        """A named random stream of the run. Local."""
        return seeding.stream(self.config.seed, *names)

    def mean_squared_gradients(self, *, num_sequences: int) -> SliceTensors:
        """Mean squared gradient over sequences of this phase, on slices."""
        calls = -(-num_sequences // dist.dp_size())
        mine = np.arange(calls) * dist.dp_size() + dist.dp_rank()
        whole = mean_squared_gradients(
            self.built.engine,
            self.stream.rows(mine),
            list(mine < num_sequences),
            num_sequences,
            scale=min(self.slices.loss_scale, FISHER_SCALE),
        )
        return {item.name: item.part(whole[item.name]).clone() for item in self.slices}

    @property
    def sparse(self) -> Mapping[str, SparseParameter]:
        """The parameters on a topology. Local."""
        return sparse_parameters(self.built.engine.module)

    def live_values(self, name: str) -> torch.Tensor:
        """Master values of the live weights of this tp slice, fp32 [N]. Collective over dp only."""
        layer = self.sparse[name].layer
        item = self.slices.find(name)
        numel = layer.storage_shape.numel()
        values = whole(self.slices, item, item.master if item else None, numel)
        return values if layer.packed else values[layer.live_mask().view(-1).to(values.device)]

    def rewire(self, name: str, drop: torch.Tensor, grow: torch.Tensor) -> None:
        """Move live weights of this tp slice; see MethodContext."""
        layer = self.sparse[name].layer
        index_map = rewire(layer, drop, grow)
        move_parameter(self.slices, name, layer.weight, index_map.move)
        for tensors in self.methods.slice_tensors():
            move_slices(self.slices, name, layer.weight, tensors, index_map.move)
        self.built.guard.refresh()

    # The loop.

    @property
    def tokens(self) -> int:
        """Tokens trained so far."""
        return self.position.step * self.plan.tokens_per_step

    def run(self) -> None:
        """Train to the end of the last phase."""
        if not self.position.started:
            self._evaluate_all("start", phase=-1)
            self._record_plasticity("start", phase=-1)
            self.position.started = True
        while self.position.phase < len(self.plan.phases):
            self._run_phase(self.plan.phases[self.position.phase])
        if self.log:
            self.log.record("end", seconds=self._seconds(), tokens_per_second=self._speed())

    def _run_phase(self, phase: Phase) -> None:
        if self.position.phase_step == 0:
            self._begin_phase(phase)
        progress = Progress(
            f"phase {phase.index} {self.domain}",
            total=phase.num_steps,
            done=self.position.phase_step,
            show=self.log is not None,
        )
        try:
            stopped = False
            while self.position.phase_step < phase.num_steps and not stopped:
                stopped = self._step_and_watch(phase, progress)
        finally:
            progress.close()
        self._end_phase(phase)

    def _begin_phase(self, phase: Phase) -> None:
        if phase.index and self.config.phases.optimizer_state == "reset":
            state.reset_moments(self.slices)
        self.stream = self._stream()
        self.position.plasticity = PhaseSums()
        self._record("phase", event="start", domain=self.domain)
        self.methods.phase_start(self)

    def _end_phase(self, phase: Phase) -> None:
        self._evaluate_all("phase_end", phase=phase.index)
        self._record_plasticity("phase_end", phase=phase.index)
        self._show_forgetting()
        self._audit()
        self.methods.phase_end(self)
        self._record("phase", event="end", domain=self.domain)
        self.position.phase, self.position.phase_step = phase.index + 1, 0
        self._save()

    def _step_and_watch(self, phase: Phase, progress: Progress) -> bool:
        """One step with everything that may follow it. Returns True if the phase ends early."""
        config, position = self.config, self.position
        last = position.phase_step + 1 == phase.num_steps
        audited = last or _due(position.step + 1, config.audit.every)
        logged = last or _due(position.step + 1, config.log.every)
        begin = time.monotonic()
        lr = learning_rate(config, phase, position.phase_step)
        loss, grad_norm = self._train_step(lr, audited=audited, logged=logged)
        position.phase_step += 1
        position.step += 1
        begin += self.panel.after_update(position.phase_step, position.plasticity)
        self.methods.after_step(self)
        if logged:
            self._log_step(loss, grad_norm, lr)
        # Logging has waited for the device, so the clock is honest at least there.
        position.train_seconds += time.monotonic() - begin
        progress.advance(
            **({"loss": f"{float(loss):.3f}", "tok/s": f"{self._speed():,.0f}"} if logged else {})
        )
        stopped = False
        if not last:
            if _due(position.phase_step, config.eval.every):
                stopped = self._evaluate_all("during", phase=phase.index)
            if audited:
                self._audit()
            if _due(position.phase_step, config.checkpoint.every) and not stopped:
                self._save()
        return stopped

    def _train_step(
        self, lr: float, *, audited: bool, logged: bool
    ) -> tuple[torch.Tensor, float | None]:
        """Returns the mean loss of this rank's tokens, and the gradient norm if `logged`."""
        engine, plan, batch = self.built.engine, self.plan, self.config.batch
        set_lr(self.slices.optimizer, lr)
        total = torch.zeros((), device=dist.device())
        norm = None
        for micro_step in range(plan.accumulation):
            indices = sample_indices(
                self.position.phase_step,
                sequences=batch.sequences,
                micro=plan.micro,
                dp_rank=dist.dp_rank(),
                dp_size=plan.dp_size,
                micro_step=micro_step,
            )
            self.micro_step = micro_step
            rows = self.methods.batch(self, self.stream.rows(indices))
            tokens = torch.from_numpy(rows).to(dist.device())
            losses, _ = engine(tokens[:, :-1], tokens[:, 1:])
            loss = losses.mean()
            total += loss.detach() / plan.accumulation
            extra = self.methods.extra_loss(self)
            whole = loss if extra is None else loss + extra
            engine.backward(whole * self.slices.missing_scale)
            if micro_step + 1 == plan.accumulation:
                self.methods.after_backward(self)
                if audited:
                    self.built.guard.audit_gradients()
                norm = self.slices.grad_norm() if logged else None
            engine.step()
            self.panel.see(tokens, loss)
        return total, norm

    # What is written down.

    def _log_step(self, loss: torch.Tensor, grad_norm: float | None, lr: float) -> None:
        dist.all_reduce(loss, group=dist.dp_group()).div_(self.plan.dp_size)
        value = float(loss)
        if not math.isfinite(value):
            raise InvariantError(
                f"step {self.step}: the training loss is {value}. Lower optimizer.lr, or turn on "
                "clipping (optimizer.clip)."
            )
        finite = grad_norm is not None and math.isfinite(grad_norm)
        self.position.plasticity.grad_norm = grad_norm if finite else None
        again = self.methods.replayed_sequences * self.plan.shape.context
        self._record(
            "train",
            loss=value,
            lr=lr,
            grad_norm=grad_norm if finite else None,  # fp16 steps that overflow have none
            tokens_per_second=self._speed(),
            seconds=self._seconds(),
            **({"replayed_tokens": again} if again else {}),
        )
        if self.log:
            values = {"loss": value, "learning_rate": lr, "tokens_per_second": self._speed()}
            if grad_norm is not None and finite:
                values["live_gradient_norm"] = grad_norm
            self.log.scalars({f"train/{key}": v for key, v in values.items()}, tokens=self.tokens)
            self.log.scalars({"progress/phase": self.phase}, tokens=self.tokens)

    def _evaluate_all(self, at: str, *, phase: int) -> bool:
        """Score every domain. Returns True if patience has run out in the first phase."""
        losses, bits = {}, {}
        for domain in self.data.domains:
            windows = evaluation_windows(
                domain.validation,
                context=self.plan.shape.context,
                max_tokens=self.config.eval.tokens,
            )
            score = evaluate(
                self.built.engine,
                windows,
                self.data.tokenizer.bytes_per_token,
                batch=self.config.eval.batch,
            )
            if not math.isfinite(score.loss):
                raise InvariantError(
                    f"step {self.step}: the validation loss on {domain.name} is {score.loss}. "
                    "Lower optimizer.lr, or turn on clipping (optimizer.clip)."
                )
            losses[domain.name] = score.loss
            self._record("eval", phase=phase, at=at, domain=domain.name, **asdict(score))
            bits[domain.name] = score.loss_sum / math.log(2) / max(1, score.num_bytes)
            if self.log:
                self.log.scalars(
                    {
                        f"validation_loss/{domain.name}": score.loss,
                        f"validation_bits_per_byte/{domain.name}": bits[domain.name],
                        f"validation_accuracy/{domain.name}": score.num_correct / score.num_tokens,
                    },
                    tokens=self.tokens,
                )
        if self.log:
            self.log.say(evaluation_line(self.step, losses, self.domain if phase >= 0 else None))
            self._chart_bits(bits, self.plan.phases[max(0, phase) : phase + 1 + (at != "during")])
        return at == "during" and self._ends_early(losses)

    def _record_plasticity(self, at: str, *, phase: int) -> None:
        """Measure the network's plasticity and write it down; see engine/plasticity.py."""
        found = self.panel.measure(self.position.plasticity)
        if found is not None:
            self._record("plasticity", **{"phase": phase, "at": at, **found})
            if self.log:
                self.log.scalars(scalars(found), tokens=self.tokens)

    def _chart_bits(self, bits: Mapping[str, float], trained: Sequence[Phase]) -> None:
        """Draw all domains in one chart; at a border, `trained` is the old and the new phase."""
        if self.log:
            tag = f"{CHART}/validation_bits_per_byte"
            self.log.chart(tag, bits, tokens=self.tokens)
            for phase in trained:  # two points at a border make the curve jump
                if phase.domain != JOINT:
                    now = bits[self.plan.domain_name(phase)]
                    self.log.chart(tag, {IN_TRAINING: now}, tokens=self.tokens)

    def _show_forgetting(self) -> None:
        """Draw what is forgotten so far, from the records as the report does. Local."""
        if self.log:
            summary = summarize(read_records(self.log.folder))
            self.log.scalars(forgetting_scalars(summary), tokens=self.tokens)
            risen = summary["forgetting"]["per_domain"]
            known = {name: value for name, value in risen.items() if value is not None}
            self.log.chart(f"{CHART}/forgotten_nats", known, tokens=self.tokens)

    def _ends_early(self, losses: Mapping[str, float]) -> bool:
        """True if the first phase is good enough, or does not get better."""
        phases, position = self.config.phases, self.position
        if position.phase != 0 or (phases.until_loss is None and not phases.patience):
            return False
        loss = losses[self.domain]
        if phases.until_loss is not None and loss <= phases.until_loss:
            return True
        if loss < position.best_loss - phases.min_improvement:
            position.best_loss, position.num_bad = loss, 0
        else:
            position.num_bad += 1
        return 0 < phases.patience <= position.num_bad

    def _audit(self) -> None:
        guard = self.built.guard
        try:
            guard.audit(self.step)
        finally:  # a violation ends the run, and its record says so too
            self._record("audit", checks=guard.checks, nonzero=guard.nonzero)
            if self.log:
                self.log.scalars({"audit/nonzero_absent": guard.nonzero}, tokens=self.tokens)

    def _save(self) -> None:
        self.position.seconds = self._seconds()
        here = {
            **self.identity,
            "position": asdict(self.position),
            "scalars_bytes": self.log.sync() if self.log else 0,
            "audit_checks": self.built.guard.checks,
        }
        state.save(
            self.checkpoints,
            self.built,
            self.methods,
            here,
            step=self.step,
            keep=self.config.checkpoint.keep,
        )

    def _record(self, kind: str, **values: Any) -> None:
        """Write one line of scalars.jsonl. Local; nothing happens on ranks other than 0."""
        if self.log:
            place = {"phase": self.phase, "step": self.step, "tokens": self.tokens}
            self.log.record(kind, **{**place, **values})

    def _stream(self) -> Stream:
        return self._phase_stream(min(self.position.phase, len(self.plan.phases) - 1))

    def _phase_stream(self, index: int) -> Stream:
        """The sequences of one phase, earlier or present. Local."""
        if index not in self.streams:
            self.streams[index] = phase_stream(self.config, self.plan, self.data, index)
        return self.streams[index]

    def _speed(self) -> float:
        """New training tokens per second, evaluations and checkpoints left out. The seconds hold
        the replayed tokens too, so that replay shows as a lower speed."""
        return self.tokens / max(self.position.train_seconds, 1e-9)

    def _seconds(self) -> float:
        return time.monotonic() - self.begun


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
