"""A pack of networks through all tasks: plain torch, the hooks of methods around it.

N = networks of the pack, B = images of a step.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sparsecl import dist, signals
from sparsecl.errors import InvariantError, Preempted
from sparsecl.methods.context import Batch
from sparsecl.methods.table import build_methods
from sparsecl.optim.masking import MaskGuard
from sparsecl.streams import checkpoint, native
from sparsecl.streams.config import StepConfig, StreamRunConfig
from sparsecl.streams.context import StreamContext, StreamModel, as_rows
from sparsecl.streams.figures import change_eranks, panel
from sparsecl.streams.image_pairs import ImagePairs, accuracy_after, zero_head
from sparsecl.streams.images import Images
from sparsecl.streams.input_permuted import InputPermuted
from sparsecl.streams.label_permuted import LabelPermuted
from sparsecl.streams.models import Networks
from sparsecl.streams.permuted_mnist import PermutedMnist
from sparsecl.streams.position import Position
from sparsecl.streams.slices import NetworkSlices
from sparsecl.streams.tasks import Tasks
from sparsecl.topology.build import build_topologies

CHUNK = 100
"""Steps whose images are read at once."""

MIN_LOSS = 1e-8  # nats; keeps p(Z) finite, as in the code of Elsayed & Mahmood 2024

STREAMS: Mapping[str, Callable[..., Tasks]] = {
    "permuted_mnist": PermutedMnist,
    "input_permuted": InputPermuted,
    "label_permuted": LabelPermuted,
    "image_pairs": ImagePairs,
}

Record = Callable[..., None]
"""(kind, **values) of one network."""


class Pack:
    """Networks that are trained side by side."""

    def __init__(
        self, config: StreamRunConfig, images: Images, pack: int, *, checks: int = 0
    ) -> None:
        """Draw graphs and weights, make optimizer and methods. Local.

        Args:
            pack: which of config.packs.
            checks: audits of the packs before.

        Raises:
            UserError: a graph does not exist for a shape.
        """
        self.config, self.seeds = config, config.packs[pack]
        seeds, num = self.seeds, len(self.seeds)
        shapes = config.learner.shapes(images.num_inputs, images.num_classes)
        graphs = [build_topologies(config.topology, shapes[:-1], seed=seed) for seed in seeds]
        used = config.methods.used().values()
        self._moves = any(block.rewires for block in used)
        """Graphs are part of the state."""

        apart = any(block.networks == "one" for block in used)
        learner: Any = {"activation": config.learner.activation, "norm": config.learner.norm}
        self.model = Networks(shapes, seeds, graphs, apart=apart, **learner)
        self.methods = build_methods(config.methods)
        self.methods.attach(StreamModel(self.model, seeds), config.stream.tasks)
        self.model.to(dist.device())
        self.optimizer = build_optimizer(config.optimizer, self.model)
        self.slices = NetworkSlices(self.model, self.optimizer, self.model.networks)
        self.guard = MaskGuard(self.slices, self.model.masks())
        kind, samples = STREAMS[config.stream.kind], config.stream.samples_per_task
        self.tasks = [kind(images, samples=samples, seed=seed) for seed in seeds]
        self.pairs = [tasks for tasks in self.tasks if isinstance(tasks, ImagePairs)]
        self.position = Position.of(pack, num, checks)
        # It lacks what only text has; `check_methods` refuses those that would ask for it.
        self.context: Any = StreamContext(
            config.stream, self.model, self.slices, self.guard, self.methods,
            seeds=seeds, tasks=self.tasks, position=self.position,
        )  # fmt: skip
        batch = config.stream.batch
        self.many = None
        """Who makes steps without the hooks; None = each is made by itself."""

        self.num_native = 0
        """Steps that it has made."""

        if not self.methods.overrides("batch") and native.takes(self.model, self.optimizer, batch):
            self.many = native.Steps(self.model, self.context, self.methods)
        self._correct = torch.zeros(num, dtype=torch.int64, device=dist.device())
        self._losses = torch.zeros(num, device=dist.device())
        self._asks_batch = self.methods.overrides("batch")
        self._began = {name: weight.clone() for name, weight in self._hidden().items()}

    @property
    def num_steps(self) -> int:
        """Optimizer steps of all tasks."""
        return self.config.stream.tasks * self.config.stream.steps_per_task

    @property
    def num_done(self) -> int:
        """Those that lie behind."""
        return self.position.task * self.config.stream.steps_per_task + self.position.step

    @property
    def nonzero(self) -> int:
        """Absent weights that were found to be there."""
        return self.guard.nonzero

    def state(self) -> tuple[checkpoint.Tensors, Mapping[str, Any]]:
        """What a checkpoint keeps beside the position."""
        tensors, values = checkpoint.gather(self.slices, self.methods)
        return tensors | {name: value.cpu() for name, value in self._own().items()}, values

    def _own(self) -> Mapping[str, Tensor]:
        """What norms have seen, graphs that move, and the weights of hidden layers as the task
        found them."""
        buffers = self.model.named_buffers()
        stats = {f"norm/{name}": x for name, x in buffers if name.endswith(".norm.stats")}
        masks = self.model.masks() if self._moves else {}
        graphs = {f"absent/{name}": dead for name, dead in masks.items()}
        return stats | graphs | {f"began/{name}": value for name, value in self._began.items()}

    def _hidden(self) -> dict[str, Tensor]:
        """[N, O, I] of each hidden layer."""
        layers: list[Any] = list(self.model.layers)
        return {layer.shape.name: layer.matrices for layer in layers[:-1]}

    def go_on(self, saved: checkpoint.Saved) -> None:
        """Be where a checkpoint was written.

        Raises:
            DataError: the checkpoint cannot be true.
        """
        num, tensors = len(self.seeds), dict(saved.tensors)
        for name, kept in self._own().items():
            value = tensors.pop(name, None)
            if value is None or value.shape != kept.shape or not value.isfinite().all():
                raise saved.wrong(f"{name}: is missing, of another shape, or not finite")
            kept.copy_(value)
        for name in self.model.masks():
            self.context.mask_changed(name)
        rest = replace(saved, tensors=tensors)
        checkpoint.put_back(rest, self.slices, self.methods)
        try:
            found = Position.from_json(saved.value["position"], num)
        except (ValueError, TypeError) as error:
            raise saved.wrong(error) from None
        stream = self.config.stream
        if found.task > stream.tasks or found.step >= stream.steps_per_task:
            raise saved.wrong(f"position: task {found.task}, step {found.step} is not in the run")
        for name in vars(found):
            setattr(self.position, name, getattr(found, name))
        self._correct.copy_(torch.from_numpy(found.correct))
        self.methods.resumed(self.context)

    def train(
        self, record: Record, save: Callable[["Pack"], None], advance: Callable[..., None]
    ) -> None:
        """All tasks that are left.

        Args:
            record: gets figures of each network.
            save: keep the state; called between steps.
            advance: (steps, figures to show).

        Raises:
            Preempted: a signal came, and the state is saved.
            InvariantError: a loss is not finite, or what is absent is not zero.
        """
        position, stream = self.position, self.config.stream
        while position.task < stream.tasks:
            if position.step == 0:
                self._look_ahead(record)
                for name, weight in self._hidden().items():
                    self._began[name].copy_(weight)
                if self.pairs:
                    zero_head(self.model)
                self.methods.phase_start(self.context)
                self.methods.stage_start(self.context)
            self._train_task(save, advance)
            self._end_task(record)
            stopped = signals.received()
            if stopped or position.task % self.config.checkpoint.every == 0:
                save(self)
            if stopped:
                raise Preempted(f"{stopped}: saved after task {position.task - 1}")
        self._look_ahead(record)

    def _train_task(self, save: Callable[["Pack"], None], advance: Callable[..., None]) -> None:
        position, stream = self.position, self.config.stream
        orders = [tasks.order(position.task) for tasks in self.tasks]
        while position.step < stream.steps_per_task:
            first = position.step
            end = min(first - first % CHUNK + CHUNK, stream.steps_per_task)
            x, y = self._read(orders, first * stream.batch, end * stream.batch)
            while position.step < end:
                k = position.step - first
                if not self._many_steps(x[:, k:], y[:, k:]):
                    self._step(x[:, k], y[:, k])
                if signals.received() and position.step < stream.steps_per_task:
                    self._collect()
                    save(self)
                    raise Preempted(
                        f"{signals.received()}: saved in task {position.task}, step {position.step}"
                    )
            share = float(self._correct.double().mean()) / (position.step * stream.batch)
            advance(end - first, {"task": f"{position.task + 1}/{stream.tasks}",
                                  "online": f"{share:.3f}"})  # fmt: skip

    def _read(self, orders: Sequence[np.ndarray], first: int, end: int) -> tuple[Tensor, Tensor]:
        """Images `first` to `end` of the task: [N, steps, B, inputs], labels [N, steps, B]."""
        task, batch = self.position.task, self.config.stream.batch
        pairs = [t.read(task, o[first:end]) for t, o in zip(self.tasks, orders, strict=True)]
        x, y = (torch.from_numpy(np.stack(found)) for found in zip(*pairs, strict=True))
        shape = (len(pairs), -1, batch)
        return x.view(*shape, x.shape[-1]).to(dist.device()), y.view(shape).to(dist.device())

    def _many_steps(self, x: Tensor, y: Tensor) -> bool:
        """Some of the steps on x [N, steps, B, inputs], y [N, steps, B], if that can be done."""
        every = self.config.panel.every
        num = every - self.position.step % every if every else x.shape[1]
        found = self.many.train(x[:, :num], y[:, :num]) if self.many is not None else None
        if found is None:
            return False
        losses, correct = found
        self.num_native += losses.shape[1]
        self._correct += correct
        self._losses += losses.sum(1)
        if every and self.position.step % every == 0:
            last = losses.shape[1] - 1
            self._look_back(x[:, last], y[:, last], losses[:, last:])
        return True

    def _step(self, x: Tensor, y: Tensor) -> None:
        """x [N, B, inputs], y [N, B]."""
        context, methods, position = self.context, self.methods, self.position
        methods.step_start(context)
        if self._asks_batch or not self.model.is_plain:
            x, y, logits, losses = self._by_autograd(x, y)
        else:
            logits, losses = self.model.learn(x, y)
            context.see(x, y)
        context.after_backward()
        skipped = context.skips
        if not skipped:
            self.optimizer.step()
        position.step += 1
        context.after_step(applied=not skipped, skipped=skipped)
        with torch.no_grad():
            new = slice(None, self.config.stream.batch)  # not what a method has put behind them
            self._correct += (logits[:, new].argmax(-1) == y[:, new]).sum(1)
            self._losses += losses.sum(1)
        every = self.config.panel.every
        if every and position.step % every == 0:
            self._look_back(x[:, new], y[:, new], losses[:, new])

    def _by_autograd(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As `Networks.learn`, where methods take part; also returns what was read."""
        self.optimizer.zero_grad()
        weight = torch.ones(y.shape[1], device=y.device)
        if self._asks_batch:
            x, y, weight = self._batch(x, y)
        self.context.see(x, y, weight)
        logits = self.model(x)
        losses = _losses(logits, y)
        # The mean over a network's images, and the sum over networks: each gets its own gradient.
        ((losses * weight).sum() / y.shape[1]).backward()
        return x, y, logits.detach(), losses.detach()

    def _batch(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What methods make of a step's images; of one network."""
        position, num = self.position, y.shape[1]
        numbers = position.step * num + np.arange(num)
        origin = np.stack([np.full_like(numbers, position.task), numbers], axis=1)
        rows = as_rows(x[0].cpu().numpy(), y[0].cpu().numpy())
        found = self.methods.batch(self.context, Batch(rows, np.ones(num, np.float32), origin))
        table = torch.from_numpy(found.rows).to(x.device)[None]
        weight = torch.from_numpy(found.weight).to(x.device)
        return table[..., :-1].contiguous(), table[..., -1].long(), weight

    @torch.no_grad()
    def _look_back(self, x: Tensor, y: Tensor, before: Tensor) -> None:
        """What the update has gained on the images that it was made of: p(Z) of Elsayed & Mahmood
        2024, clamp(1 - L(W+, Z) / max(L(W, Z), 1e-8), 0, 1)."""
        after = x
        for layer in self.model.layers:
            activate: Any = layer.activate
            after = activate(after)
        now, then = (loss.double().mean(1) for loss in (_losses(after, y), before))
        p = 1.0 - now / then.clamp(min=MIN_LOSS)
        both = torch.stack([p.clamp(0.0, 1.0), p]).cpu().numpy()
        if np.isfinite(both).all():
            self.position.p, self.position.looks = self.position.p + both, self.position.looks + 1

    def _look_ahead(self, record: Record) -> None:
        """Figures on the task to come, before it is learned."""
        task, num = self.position.task, self.config.panel.samples
        pairs = [t.read(task, t.order(task)[:num]) for t in self.tasks]
        x, y = (torch.from_numpy(np.stack(part)) for part in zip(*pairs, strict=True))
        figures = panel(self.model, x.to(dist.device()), y.to(dist.device()))
        for seed, found in zip(self.seeds, figures, strict=True):
            record("before", seed=seed, task=task, **found)

    def _collect(self) -> None:
        self.position.correct = self._correct.cpu().numpy().copy()

    def _end_task(self, record: Record) -> None:
        position, context = self.position, self.context
        self._collect()
        losses = self._losses.cpu().numpy() / self.config.stream.samples_per_task
        weights = [param.detach().view(len(losses), -1) for param in self.model.parameters()]
        sound = torch.stack([weight.isfinite().all(1) for weight in weights]).all(0).cpu().numpy()
        for name, finite in (("loss is", np.isfinite(losses)), ("weights are", sound)):
            if not finite.all():
                seed = self.seeds[int(finite.argmin())]
                raise InvariantError(
                    f"task {position.task}: seed {seed}: its {name} not finite; lower optimizer.lr"
                )
        self.methods.phase_trained(context)
        self.guard.audit(context.progress.step)
        position.checks += 1
        after = accuracy_after(self.model, self.pairs, position.task)
        eranks = change_eranks(self._began, self._hidden())
        for k, seed in enumerate(self.seeds):
            p = position.p[:, k] / max(position.looks, 1)
            looked: Mapping[str, Any] = {"p": p[0], "p_unclamped": p[1]} if position.looks else {}
            share = float(position.correct[k]) / self.config.stream.samples_per_task
            tested = {"accuracy_after": after[k]} if after else {}
            changed = {"change_erank": eranks[k]} if eranks else {}
            given = {**tested, **looked, **changed}
            record("task", seed=seed, task=position.task, online_accuracy=share, **given)
        self.methods.phase_end(context)
        position.task, position.step = position.task + 1, 0
        position.cleared(len(self.seeds))
        self._correct.zero_()
        self._losses.zero_()


def _losses(logits: Tensor, y: Tensor) -> Tensor:
    """Nats of each image, [N, B]."""
    found = functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
    return found.view(y.shape)


def build_optimizer(config: StepConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    """The optimizer of all networks: element by element, so they know nothing of each other."""
    given: Any = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.kind == "sgd":
        return torch.optim.SGD(model.parameters(), momentum=config.momentum, foreach=True, **given)
    kind = torch.optim.Adam if config.kind == "adam" else torch.optim.AdamW
    betas: Any = config.betas
    return kind(model.parameters(), betas=betas, eps=config.eps, foreach=True, **given)
