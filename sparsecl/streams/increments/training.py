"""A network through all increments, as Dohare et al. 2024 train CIFAR-100
(https://doi.org/10.1038/s41586-024-07711-7, public code shibhansh/loss-of-plasticity): in each task
the images of all classes that have come, only their logits in the loss, a step size that drops and
begins anew with the task, and at its end the weights of the epoch that was best on images held
back. B = images of a step.

Differs: an epoch leaves out what fills no batch; weights are restored at the end of a task, so it
is tested with them. Momentum goes on from task to task, also where the head begins anew; with
reset=network it is zero.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sparsecl import dist, seeding, signals
from sparsecl.errors import InvariantError, Preempted
from sparsecl.methods.context import Progress
from sparsecl.methods.table import build_methods
from sparsecl.methods.work import Moment
from sparsecl.optim.masking import MaskGuard
from sparsecl.streams import checkpoint
from sparsecl.streams.config import StreamRunConfig
from sparsecl.streams.image_sets import ImageSplit
from sparsecl.streams.increments.augment import augment
from sparsecl.streams.increments.context import ImageContext, ImageSide
from sparsecl.streams.increments.data import Pixels, Rows, side
from sparsecl.streams.increments.figures import panel
from sparsecl.streams.increments.networks import build_network
from sparsecl.streams.increments.pack import Advance, IncrementPack, Save
from sparsecl.streams.loop import build_optimizer
from sparsecl.streams.slices import NetworkSlices

TESTED = 500
"""Images that are answered at once."""


class NetworkPack(IncrementPack):
    """A network of one seed, its optimizer and its methods."""

    def __init__(
        self, config: StreamRunConfig, split: ImageSplit, pack: int, *, checks: int = 0
    ) -> None:
        super().__init__(config, split, pack, checks=checks)
        self.pixels = Pixels(split, self.data.places)
        self.model = build_network(
            config.learner,
            config.topology,
            channels=split.train.channels,
            side=side(split.train),
            classes=split.num_classes,
            seed=self.seed,
        )
        self.methods = build_methods(config.methods)
        self.methods.attach(ImageSide(self.model, self.seed), config.stream.tasks)
        self.model.to(dist.device())
        self.optimizer = build_optimizer(config.optimizer, self.model)
        self.slices = NetworkSlices(self.model, self.optimizer, ())
        self.guard = MaskGuard(self.slices, self.model.masks())
        self.context: Any = ImageContext(
            self.model, self.slices, self.guard, self.methods,
            seed=self.seed, progress=self._progress,
        )  # fmt: skip
        self._best: dict[str, Tensor] = {}
        self._best_share, self._loss = -1.0, 0.0

    # How far it is.

    def _steps_of_epoch(self, task: int) -> int:
        return max(1, len(self.data.train_rows(task)) // self.config.stream.batch)

    def steps_of(self, task: int) -> int:
        return self.config.stream.increments.epochs * self._steps_of_epoch(task)

    @property
    def num_steps(self) -> int:
        return sum(self.steps_of(task) for task in range(self.config.stream.tasks))

    @property
    def num_done(self) -> int:
        return sum(map(self.steps_of, range(self.position.task))) + self.position.step

    @property
    def nonzero(self) -> int:
        return self.guard.nonzero

    def _progress(self) -> Progress:
        position, tasks = self.position, self.config.stream.tasks
        steps = self.steps_of(min(position.task, tasks - 1))
        return Progress.plain(
            Moment(
                step=self.num_done,
                total_steps=self.num_steps,
                phase=position.task,
                phase_step=position.step,
                phase_steps=steps,
            )
        )

    # What is kept.

    def state(self) -> tuple[checkpoint.Tensors, Mapping[str, Any]]:
        tensors, values = checkpoint.gather(self.slices, self.methods)
        own = {f"buffer/{name}": value for name, value in self._buffers().items()}
        own |= {f"best/{name}": value for name, value in self._best.items()}
        own["task"] = torch.tensor([self._best_share, self._loss], dtype=torch.float64)
        return tensors | {key: value.contiguous().cpu() for key, value in own.items()}, values

    def put_back(self, saved: checkpoint.Saved) -> None:
        rest, best, buffers = dict(saved.tensors), {}, self._buffers()
        wanted = {**dict(self.model.named_parameters()), **buffers}
        for key in list(rest):
            kind, _, name = key.partition("/")
            if kind not in ("buffer", "best"):
                continue
            value, known = rest.pop(key), (buffers if kind == "buffer" else wanted).get(name)
            if known is None or value.shape != known.shape or value.dtype != known.dtype:
                raise saved.wrong(f"{key}: is of no tensor of this network")
            if kind == "best":
                best[name] = value.to(known.device)
            else:
                buffers.pop(name).copy_(value)
        numbers = rest.pop("task", torch.empty(0))
        if buffers or (best and set(best) != set(wanted)) or numbers.shape != (2,):
            raise saved.wrong("a tensor of the network is missing")
        self._best, (self._best_share, self._loss) = best, numbers.tolist()
        checkpoint.put_back(
            checkpoint.Saved(saved.path, saved.value, rest), self.slices, self.methods
        )
        self.methods.resumed(self.context)

    def _buffers(self) -> dict[str, Tensor]:
        """What is no parameter and yet changes by training."""
        names = ("running_mean", "running_var", "num_batches_tracked")
        return {
            name: value
            for name, value in self.model.named_buffers()
            if name.rpartition(".")[2] in names
        }

    # A task.

    @torch.no_grad()
    def look_ahead(self, task: int) -> Mapping[str, float]:
        rows = self.data.parts[task].train[: self.config.panel.samples]
        self.model.eval()
        images = (self.pixels.read(part)[0] for part in _parts(rows))
        found = panel(self.model, images)
        self.model.train()
        return found

    def begin(self) -> None:
        task, reset = self.position.task, self.config.stream.increments.reset
        self._best, self._best_share, self._loss = {}, -1.0, 0.0
        if task and reset == "head":
            self.model.draw(self.seed, "task", task, only=self.model.head)
        elif task and reset == "network":
            self.model.draw(self.seed, "task", task)
            self.optimizer.state.clear()
        self.methods.phase_start(self.context)
        self.methods.stage_start(self.context)

    def learn(self, save: Save, advance: Advance) -> None:
        position, settings = self.position, self.config.stream.increments
        task, num = position.task, self._steps_of_epoch(position.task)
        batch, rows = self.config.stream.batch, self.data.train_rows(position.task)
        self.model.train()
        while position.step < self.steps_of(task):
            epoch, first = divmod(position.step, num)
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.optimizer.lr * settings.factor(epoch)
            order = self._rng("order", epoch).permutation(rows)
            for k in range(first, num):
                self._step(order[k * batch : (k + 1) * batch])
                if k == num - 1:
                    self._end_epoch()
                figures = {"task": f"{task + 1}/{self.config.stream.tasks}",
                           "epoch": f"{epoch + 1}/{settings.epochs}"}  # fmt: skip
                if self._best_share >= 0:
                    figures["best"] = f"{self._best_share:.3f}"
                advance(1, figures)
                if signals.received() and position.step < self.steps_of(task):
                    save(self)
                    raise Preempted(
                        f"{signals.received()}: saved in task {task}, step {position.step}"
                    )

    def _step(self, rows: Rows) -> None:
        context, position = self.context, self.position
        x, y = self.pixels.read(rows)
        x = augment(x, self.config.stream.increments, self._rng("augment", position.step))
        self.methods.step_start(context)
        self.optimizer.zero_grad()
        logits = self.model(x)[:, : self.data.num_seen(position.task)]
        loss = functional.cross_entropy(logits, y)
        loss.backward()
        context.after_backward()
        skipped = context.skips
        if not skipped:
            self.optimizer.step()
        position.step += 1
        context.after_step(applied=not skipped, skipped=skipped)
        self._loss = float(loss.detach())
        if not math.isfinite(self._loss):
            raise InvariantError(
                f"task {position.task}: the loss of seed {self.seed} is not finite; lower "
                "optimizer.lr"
            )

    def _end_epoch(self) -> None:
        """Keep the weights of the epoch if it is the best one."""
        if not self.config.stream.increments.validation:
            return
        task = self.position.task
        share = self._right(self.data.validation_rows(task), self.data.num_seen(task))
        if share > self._best_share:
            self._best_share = share
            found = {**dict(self.model.named_parameters()), **self._buffers()}
            self._best = {name: value.detach().clone() for name, value in found.items()}

    @torch.no_grad()
    def finish(self) -> Mapping[str, float]:
        if self._best:
            for name, value in {
                **dict(self.model.named_parameters()), **self._buffers()
            }.items():  # fmt: skip
                value.copy_(self._best[name])
        self.methods.phase_trained(self.context)
        self.guard.audit(self.context.progress.step)
        self.position.checks += 1
        self.methods.phase_end(self.context)
        held = {"accuracy_validation": self._best_share} if self._best else {}
        self._best = {}
        return {"loss": self._loss, **held}

    def right(self, rows: Rows, seen: int) -> float:
        return self._right(rows, seen, test=True)

    @torch.no_grad()
    def _right(self, rows: Rows, seen: int, *, test: bool = False) -> float:
        self.model.eval()
        hits = 0
        for part in _parts(rows):
            x, y = self.pixels.read(part, test=test)
            hits += int((self.model(x)[:, :seen].argmax(1) == y).sum())
        self.model.train()
        return hits / len(rows)

    def _rng(self, what: str, at: int) -> np.random.Generator:
        return seeding.stream(self.seed, "class_incremental", what, self.position.task, at)


def _parts(rows: Rows) -> list[Rows]:
    return np.array_split(rows, -(-len(rows) // TESTED))
