"""UPGD: useful weights move less, and useless ones are perturbed.

Source: Elsayed & Mahmood 2024 (https://arxiv.org/abs/2404.00781) and the public code
mohmdelsayed/upgd. The utility of a weight is what the loss would gain if it were zero, to first
order -g w, to second -g w + H w^2 / 2; of a hidden unit, if its activation were: the same with h
in the place of w, summed over tokens, which is the sum of utilities over its outgoing weights. u, a
running mean with `beta`, is corrected by its age, scaled and squashed: ubar = sigmoid(u / max u),
the largest of all weights or units (`scope: global`), or sigmoid(u / |u|), the norm of its row or
layer (`local`). Then

    protecting      w <- (1 - lr wd) w + (step - lr sigma xi) (1 - ubar)
    not protecting  w <- (1 - lr wd) w + step - lr sigma xi (1 - ubar),      xi ~ N(0, 1)

where `step` is the optimizer's own: -lr g under SGD without momentum, which is the paper's rule,
and Adam's step, which is its AdaUPGD. With `utility: feature` ubar is that of the unit, for all its
incoming weights; all others take the plain step.

`scaling: code` divides the corrected u by the largest of the uncorrected ones, as the public code
does: up to 1 / (1 - beta^t) times too much, and with all utilities below zero their order is
inverted. `corrected` corrects both, and takes a tiny positive number where none is above zero.

Differs: the code's stand-alone optimizer takes twice the step, for 1 - ubar is about 1/2; here lr
is what it says. What methods before this one added to gradients or steps is gated as well, and the
step is one of clipped gradients; a decay that goes through moments is gated too. Vectors are left
alone unless `vectors` is set; a unit's biases go with the unit. Absent and held weights get no
noise and have no part in the maximum. H is the diagonal of the Hessian of the loss by HesScale,
which knows linear layers and elementwise functions, not attention and norms: a GPT has order 1.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from sparsecl import dist
from sparsecl.methods.base import Method, Order
from sparsecl.methods.context import MethodContext, SliceTensors
from sparsecl.methods.many_steps import Gate, ManySteps
from sparsecl.methods.model_side import ModelSide
from sparsecl.methods.plasticity.config import UpgdConfig
from sparsecl.optim.slice import Slice

TINY = 1e-30
"""In the place of a divisor that is not above zero."""


class Upgd(Method):
    """Utilities are made of a step's gradients, and count once the optimizer has stepped."""

    name = "upgd"
    order = Order.GATE
    config: UpgdConfig

    def __init__(self, config: UpgdConfig) -> None:
        super().__init__(config)
        self.needs_update = config.active
        self.count = 0
        """Steps that u has seen."""

        self.utility: SliceTensors = {}
        """u of weights."""

        self.units: dict[str, Tensor] = {}
        """u of units, fp64 [n] by group, the same on all ranks; [N, n] of N networks."""

        # From the gradients of a step to its end: u with them, and what it is divided by.
        self._next: SliceTensors = {}
        self._next_units: dict[str, Tensor] = {}
        self._divisor = torch.empty(0)
        self._norms: Mapping[str, Tensor] = {}

    @property
    def of_units(self) -> bool:
        return self.config.utility == "feature"

    def attach(self, model: ModelSide, num_phases: int) -> None:
        if self.of_units:
            model.units()

    def after_backward(self, context: MethodContext) -> None:
        self._forget_step()
        if self.config.active and self.of_units:
            self._see_units(context)
        elif self.config.active:
            self._see_weights(context)

    def _see_weights(self, context: MethodContext) -> None:
        for item in self._own(context.slices):
            new = self._utility(context, item)
            if new is not None:
                old = self.utility.get(item.name, torch.zeros_like(new))
                self._next[item.name] = self._mixed(old, new)
        if self.config.scope == "global":
            largest = {name: _largest(context, name, u) for name, u in self._next.items()}
            self._divisor = self._scaled(context.maximum(largest))
        else:
            matrices = {
                name: 0
                for name in context.shapes()
                if self.config.vectors or len(context.global_shape(name)) >= 2
            }
            squares = {name: u.square() for name, u in self._next.items()}
            sums = context.line_sums(squares, matrices)
            self._norms = {name: _norm(total).float() for name, total in sums.items()}

    def _see_units(self, context: MethodContext) -> None:
        columns = {name: 1 for group in context.units.values() for name in group.outgoing}
        utilities: SliceTensors = {}
        for item in context.slices:
            found = self._utility(context, item) if item.name in columns else None
            if found is not None:
                utilities[item.name] = found
        sums = context.line_sums(utilities, columns)
        for name, group in context.units.items():
            found = torch.stack([sums[matrix] for matrix in group.outgoing]).sum(0)
            new = group.by_unit(found)
            old = self.units.get(name, torch.zeros_like(new))
            self._next_units[name] = self._mixed(old, new)
        if self.config.scope == "global":
            largest = [u.amax(-1, keepdim=True) for u in self._next_units.values()]
            self._divisor = self._scaled(torch.stack(largest).amax(0))
        else:
            squares = {n: u.square().sum(-1, keepdim=True) for n, u in self._next_units.items()}
            self._norms = {name: _norm(total) for name, total in squares.items()}

    def _utility(self, context: MethodContext, item: Slice) -> Tensor | None:
        """-g w, to second order -g w + H w^2 / 2; fp32 [numel]."""
        gradient = context.gradient(item)
        if gradient is None:
            return None
        utility = -gradient.to(item.master.device) * item.master
        if self.config.order == 2:
            utility.addcmul_(context.curvature(item), item.master.square(), value=0.5)
        return utility

    def _mixed(self, old: Tensor, new: Tensor) -> Tensor:
        return new.mul_(1.0 - self.config.beta).add_(old, alpha=self.config.beta)

    def _scaled(self, largest: Tensor) -> Tensor:
        """What u is divided by, given the largest u [1] (of N networks [N, 1]): both are off by the
        same factor, 1 - beta^t, so it cancels unless one of them is left as it is."""
        if self.config.scaling == "corrected":
            return largest.clamp(min=TINY)
        scaled = largest * (1.0 - self.config.beta ** (self.count + 1))
        return scaled.where(scaled.abs() >= TINY, TINY)

    def after_update(self, context: MethodContext, items: Collection[Slice]) -> None:
        for item in items:
            free = self._freedom(context, item)
            if free is not None:
                self._step(context, item, free)

    def _freedom(self, context: MethodContext, item: Slice) -> Tensor | None:
        """1 - ubar, fp32 [numel]; None where the plain step holds."""
        if item.name in self._next:
            value = self.utility[item.name] = self._next.pop(item.name)
            if self.config.scope == "global":
                return _sigmoid(value / -self._divisor.to(value))
            norm = context.of_lines(item, self._norms[item.name], 0)
            return _sigmoid(-value / norm)
        for name, group in context.units.items() if self._next_units else ():
            if item.name in group.incoming:
                divisor = self._norms[name] if self._norms else self._divisor
                of_unit = _sigmoid(self._next_units[name] / -divisor).float()
                return context.of_lines(item, of_unit, 0 if len(item.matrix_shape) >= 2 else 1)
        return None

    def _step(self, context: MethodContext, item: Slice, free: Tensor) -> None:
        decayed = context.before(item) * (1.0 - context.slices.decay(item))
        if self.config.sigma:
            noise = context.noise(item, self.name, context.progress.step)
            noise.mul_(-context.slices.lr(item) * self.config.sigma)
        else:
            noise = torch.zeros_like(free)
        if self.config.protecting:
            noise.add_(item.master).sub_(decayed).mul_(free)
            item.master.copy_(noise.add_(decayed))
        else:
            item.master.add_(noise.mul_(free))

    def after_step(self, context: MethodContext, *, applied: bool) -> None:
        if applied and self.config.active:
            self.count += 1
            self.units.update(self._next_units)
        self._forget_step()

    def many_steps(self, context: MethodContext) -> ManySteps | None:
        config = self.config
        if not config.active:
            return ManySteps()
        if config.order == 2 or self.of_units or config.scope != "global" or not self.utility:
            return None
        return ManySteps(
            gate=Gate(
                self.utility,
                beta=config.beta,
                count=self.count,
                sigma=config.sigma,
                protecting=config.protecting,
                uncorrected=config.scaling == "code",
                name=self.name,
            )
        )

    def made_steps(self, num: int) -> None:
        if self.config.active:
            self.count += num

    def _forget_step(self) -> None:
        self._next, self._next_units, self._norms = {}, {}, {}

    def _own(self, items: Iterable[Slice]) -> list[Slice]:
        return [item for item in items if self.config.vectors or len(item.matrix_shape) >= 2]

    def slice_tensors(self) -> Iterable[SliceTensors]:
        """A weight that is grown has shown no utility yet."""
        return (self.utility,)

    def state_dict(self) -> tuple[Mapping[str, SliceTensors], Mapping[str, Any]]:
        units = {name: u.tolist() for name, u in self.units.items()}
        tensors = {"utility": self.utility} if self.utility else {}
        return tensors, {"count": self.count, "units": units}

    def check_state(self, tensors: Collection[str], values: Mapping[str, Any]) -> None:
        super().check_state(tensors, values)
        if set(tensors) - {"utility"}:
            raise ValueError(f"it keeps utility, not {', '.join(sorted(tensors))}")
        if values["count"] < 0:
            raise ValueError(f"count: {values['count']} is no count")
        for name, found in values["units"].items():
            several = isinstance(found, list) and any(isinstance(row, list) for row in found)
            rows: list[Any] = found if several else [found]
            if not all(isinstance(row, list) and len(row) == len(rows[0]) for row in rows) or any(
                type(value) is not float or not math.isfinite(value)
                for row in rows
                for value in row
            ):
                raise ValueError(f"units.{name}: {found!r:.40} is no list of finite numbers")

    def load_state_dict(
        self, tensors: Mapping[str, SliceTensors], values: Mapping[str, Any]
    ) -> None:
        self.utility, self.count = dict(tensors.get("utility", {})), values["count"]
        self.units = {
            name: torch.tensor(found, dtype=torch.float64, device=dist.device())
            for name, found in values["units"].items()
        }


def _largest(context: MethodContext, name: str, value: Tensor) -> Tensor:
    """The largest of what may move, [1]; of N networks [N, 1]. Local."""
    movable = context.movable({name: torch.ones_like(value)})[name] > 0
    return torch.where(movable, value, -torch.inf).amax(-1, keepdim=True)


def _sigmoid(value: Tensor) -> Tensor:
    """In place, network by network: the last few elements of a tensor are not computed by the same
    instructions as the others, and may round otherwise."""
    for of_network in value.view(-1, value.shape[-1]):
        of_network.sigmoid_()
    return value


def _norm(squares: Tensor) -> Tensor:
    return squares.sqrt().clamp_(min=TINY)
