"""Drop and grow: what all methods share that move the topology and keep its density.

A relative says which live weights go and which cells live instead. In masked storage it chooses
over the whole matrix of a layer, so the graph is the same whatever the tensor-parallel size. In
packed storage each tensor-parallel slice keeps its count and chooses for itself.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sparsecl.methods.base import Method
from sparsecl.methods.context import MethodContext, Progress, SliceTensors
from sparsecl.methods.dst.choice import largest, places, smallest
from sparsecl.methods.dst.clock import ahead
from sparsecl.methods.dst.config import RewireConfig
from sparsecl.methods.many_steps import ManySteps
from sparsecl.methods.restart import AdamRestart
from sparsecl.optim.slice import Slice
from sparsecl.sparse.rewire import choices


@dataclass(eq=False)
class LayerView:
    """One layer as a rewire sees it, flat: a whole matrix, or this rank's slice in packed storage.
    N = live weights. On the device of the run, the same on all ranks that decide together."""

    name: str
    shape: torch.Size
    """[O, I] of what `live` is flat of."""

    part: int
    """Of the matrix, for random streams: 0, the tensor-parallel rank in packed storage, or the
    head where heads choose for themselves."""

    live: Tensor
    """bool [cells]."""

    values: Tensor
    """fp32 [N], masters of the live weights, in the order of `places`."""

    @functools.cached_property
    def places(self) -> Tensor:
        """int64 [N], the cells that live."""
        return places(self.live)

    @functools.cached_property
    def absent(self) -> Tensor:
        """int64 [cells - N], the others."""
        return places(~self.live)

    @property
    def room(self) -> int:
        """How many are absent."""
        return self.live.numel() - self.values.numel()

    def cpu(self) -> "LayerView":
        """The same on the CPU."""
        return replace(self, live=self.live.cpu(), values=self.values.cpu())


def look(context: MethodContext, name: str) -> LayerView:
    """What a rewire of one layer chooses over. Collective over dp, in masked storage also tp."""
    layer = context.sparse[name].layer
    live = choices(layer)
    if layer.packed:
        return LayerView(name, live.shape, layer.tp_rank, live.view(-1), context.live_values(name))
    matrix = context.matrix(name)
    view = LayerView(name, live.shape, 0, live.view(-1), matrix.view(-1))
    view.values = view.values[view.places]
    return view


def as_chosen(context: MethodContext, name: str, local: Tensor) -> Tensor:
    """A tp-local matrix [O_local, I_local] in the form of `LayerView.live`, [cells]. In masked
    storage collective over tp."""
    packed = context.sparse[name].layer.packed
    return (local if packed else context.joined(name, local)).reshape(-1)


def check_counts(start: Mapping[str, Any]) -> None:
    """Raise ValueError unless these can be live weights by matrix, as a checkpoint keeps them."""
    for name, num in start.items():
        if type(num) is not int or num < 1:
            raise ValueError(f"start.{name}: {num!r:.40} is no number of weights")


class Rewirer(Method):
    """What all methods share that move live weights: a clock, and Adam's age of new weights."""

    config: RewireConfig

    def __init__(self, config: RewireConfig) -> None:
        super().__init__(config)
        self.restart = AdamRestart(config.adam_restart)

    def is_due_after(self, context: MethodContext) -> bool:
        """In `after_step`: the graph moves now, every `every` steps of its stretch."""
        return self.config.is_due(context.progress)

    def is_due_before(self, context: MethodContext) -> bool:
        """In `step_start`: `is_due_after` will hold once this step is applied."""
        return self.config.is_due(ahead(context.progress))

    def is_due(self, progress: Progress) -> bool:
        """The graph moves here."""
        return self.config.is_due(progress)

    def idle_steps(self, context: MethodContext, at: Progress) -> ManySteps | None:
        """For `many_steps`: none of the next steps moves the graph, of which `at` is the first that
        may."""
        if self.restart.kind != "global":
            return None
        idle = 0
        while idle < self.config.every and not self.is_due(at):
            at, idle = ahead(at), idle + 1
        return ManySteps(idle=idle)

    def fraction(self, progress: Progress) -> float:
        """The drop fraction of this moment."""
        return self.config.fraction(progress)

    def phase_start(self, context: MethodContext) -> None:
        self.restart.phase_start(context)

    def after_update(self, context: MethodContext, items: Collection[Slice]) -> None:
        self.restart.after_update(context, items)

    def slice_tensors(self) -> Iterable[SliceTensors]:
        return self.restart.slice_tensors()

    def state_dict(self) -> tuple[Mapping[str, SliceTensors], Mapping[str, Any]]:
        return self.restart.state(), {}

    def check_state(self, tensors: Collection[str], values: Mapping[str, Any]) -> None:
        super().check_state(tensors, values)
        self.restart.check_state(tensors)

    def load_state_dict(
        self, tensors: Mapping[str, SliceTensors], values: Mapping[str, Any]
    ) -> None:
        self.restart.load_state(tensors)

    def set_live(self, context: MethodContext, name: str, mask: Tensor) -> None:
        """Give a layer in masked storage the live set bool [O, I]. Collective over the world."""
        self.restart.mark(context, name, context.set_live(name, mask))


class InPlaceOfAStep(Rewirer):
    """The graph moves in place of the weights' step, the first time at once. One that was discarded
    is made up for by the next."""

    def __init__(self, config: RewireConfig) -> None:
        super().__init__(config)
        self.last = -1
        """The step of the last rewire, 0-based; -1 = none yet."""
        self.at: Progress | None = None
        """Before the step at hand, if it is to rewire."""

    def is_due(self, progress: Progress) -> bool:
        """Before a step."""
        return self.config.is_due_in_place(progress, self.last)

    @abstractmethod
    def move(self, context: MethodContext, at: Progress) -> None:
        """Move the graph; `at` is from before the step. Collective over the world."""

    def step_start(self, context: MethodContext) -> None:
        self.at = context.progress if self.is_due(context.progress) else None

    def after_backward(self, context: MethodContext) -> None:
        if self.at is not None:
            context.skip_update()

    def after_step(self, context: MethodContext, *, applied: bool) -> None:
        """Unless the step's gradients were bad."""
        if self.at is not None and context.update_skipped:
            self.move(context, self.at)
            self.last = self.at.step

    def state_dict(self) -> tuple[Mapping[str, SliceTensors], Mapping[str, Any]]:
        return super().state_dict()[0], {"last": self.last}

    def check_state(self, tensors: Collection[str], values: Mapping[str, Any]) -> None:
        super().check_state(tensors, values)
        if not -1 <= values["last"] < 2**62:
            raise ValueError(f"last: {values['last']} is no step")

    def load_state_dict(
        self, tensors: Mapping[str, SliceTensors], values: Mapping[str, Any]
    ) -> None:
        super().load_state_dict(tensors, values)
        self.last = values["last"] if values else -1


class DropAndGrow(Rewirer, ABC):
    """The skeleton; `drop` and `grow` are what a relative means."""

    @abstractmethod
    def drop(self, context: MethodContext, choice: LayerView) -> Tensor:
        """Which live weights go: bool [N], like `choice.values`."""

    @abstractmethod
    def grow(self, context: MethodContext, choice: LayerView, dropped: Tensor) -> Tensor:
        """Which cells live instead: int64, as many as `dropped` [K], the cells that go.
        A cell that was just dropped may be among them; it stays as it is then."""

    def rewire(self, context: MethodContext, names: Iterable[str] | None = None) -> None:
        """Drop and grow in every layer. Collective over the world."""
        for name in context.sparse if names is None else names:
            choice = look(context, name)
            dropped = choice.places[places(self.drop(context, choice))]
            grown = self.grow(context, choice, dropped)
            goes, comes = (torch.zeros_like(choice.live) for _ in range(2))
            goes[dropped], comes[grown] = True, True
            new = context.rewire(name, places(goes & ~comes), places(comes & ~goes))
            self.restart.mark(context, name, new)


def weakest(choice: LayerView, num: int) -> Tensor:
    """The `num` live weights of smallest |w|, bool [N]; of equal ones the first of the matrix."""
    return smallest(choice.values.abs(), num)


def largest_absent(
    context: MethodContext, choice: LayerView, dropped: Tensor, local: Tensor
) -> Tensor:
    """Where |local|, a tp-local matrix, is largest among all cells that are not kept: int64, as
    many as were dropped. In masked storage collective over tp."""
    score = as_chosen(context, choice.name, local).abs()
    open_to = score[dropped]
    score[choice.places] = -1.0
    score[dropped] = open_to
    return places(largest(score, dropped.numel()))


def random_absent(context: MethodContext, method: str, choice: LayerView, num: int) -> Tensor:
    """Cells that were absent, evenly at random: int64 [num], or fewer if there is no room."""
    rng = context.generator(method, choice.name, context.progress.step, choice.part)
    drawn = rng.choice(choice.room, size=min(num, choice.room), replace=False)
    return choice.absent[torch.from_numpy(drawn).to(choice.absent.device)]
