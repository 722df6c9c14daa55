"""DEEP R: a weight that would change its sign goes, and a random one comes in its place.

Source: Bellec et al. 2018, https://arxiv.org/abs/1711.05136, and its public code. Every cell has a
fixed random sign s, and a live weight is w = s theta with theta > 0. At every step a live weight
also loses lr l1 of theta and gains lr noise N(0, 1). One whose theta is no longer above 0 goes, and
one drawn evenly from all that are absent then, itself included, comes with theta = 1e-12.

soft: absent cells have a theta too. It takes the same random walk, without a gradient, down to the
floor -(1 - p) lr noise^2 / (2 p l1), and lives as soon as it is above 0.

Differs: the optimizer is any, and noise and l1 are applied to what it has stepped, outside of its
moments (the theory knows no Adam); what comes begins with moments of zero; weights that live at
the start keep the sign that they have. With `every` above 1 a lost weight stays at zero until the
search.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsecl.methods.context import MethodContext, SliceTensors
from sparsecl.methods.dst.base import LayerView, Rewirer, check_counts, look
from sparsecl.methods.dst.choice import places
from sparsecl.methods.dst.clock import ahead
from sparsecl.methods.dst.config import DeepRConfig
from sparsecl.optim.slice import Slice

REVIVED = 1e-12


class DeepR(Rewirer):
    """DEEP R, hard and soft."""

    name = "deep_r"
    config: DeepRConfig
    needs_update = True

    def __init__(self, config: DeepRConfig) -> None:
        super().__init__(config)
        self.signs: dict[str, Tensor] = {}
        """By parameter, int32 [O, I] of the global matrix: +1 or -1. On the CPU."""
        self.walks: dict[str, Tensor] = {}
        """soft: theta of what is absent, fp32 [O, I], 0 where it lives. On the CPU, and on the
        device of the weights while a matrix walks."""
        self.start: dict[str, int] = {}
        """Live weights of each matrix at the start."""

    def step_start(self, context: MethodContext) -> None:
        if self.start:
            return
        for name in context.sparse:
            choice = look(context, name).cpu()
            rng = context.generator(self.name, "signs", name)
            drawn = torch.from_numpy(rng.integers(0, 2, choice.live.numel(), np.int32) * 2 - 1)
            drawn[choice.live] = torch.where(choice.values < 0, -1, 1).to(torch.int32)
            self.signs[name] = drawn.view(choice.shape)
            self.start[name] = choice.values.numel()
            if self.config.variant == "soft":
                self.walks[name] = torch.zeros(choice.shape)

    def after_update(self, context: MethodContext, items: Collection[Slice]) -> None:
        super().after_update(context, items)
        step = context.progress.step
        if self.config.clock(ahead(context.progress)) is None:
            return
        for item in items:
            if item.name not in context.sparse:
                continue
            rate, sign = context.slices.lr(item), context.before(item).sign()
            if self.config.noise:
                drawn = context.noise(item, self.name, step).mul_(sign.abs())
                item.master.add_(drawn, alpha=rate * self.config.noise)
            item.master.sub_(sign, alpha=rate * self.config.l1)
            if self.config.variant == "hard":
                item.master.masked_fill_(item.master * sign <= 0.0, 0.0)

    def after_step(self, context: MethodContext, *, applied: bool) -> None:
        if not (applied and self.is_due_after(context)):
            return
        if self.config.variant == "soft":
            rate = context.slices.optimizer.param_groups[0]["lr"]
            for name in context.sparse:
                self._walk(context, look(context, name), rate)
            return
        views = {name: look(context, name) for name in context.sparse}
        lost = {name: view.places[places(view.values == 0.0)] for name, view in views.items()}
        for name, num in self._shares(context, views, lost).items():
            self._revive(context, views[name], lost[name], num)

    def _shares(
        self, context: MethodContext, views: Mapping[str, LayerView], lost: Mapping[str, Tensor]
    ) -> dict[str, int]:
        """How many come in each matrix."""
        counts = {name: some.numel() for name, some in lost.items()}
        if self.config.scope == "layer":
            return counts
        room = {name: view.room + counts[name] for name, view in views.items()}
        weight = np.array([self.start[name] for name in views], float)
        rng = context.generator(self.name, "shares", context.progress.step)
        drawn = rng.multinomial(sum(counts.values()), weight / weight.sum())
        found, left = {}, 0
        for name, num in zip(views, drawn.tolist(), strict=True):
            found[name] = min(num, room[name])
            left += num - found[name]
        for name in views:  # what found no room goes where there is some
            more = min(left, room[name] - found[name])
            found[name], left = found[name] + more, left - more
        # A matrix keeps one weight.
        return {
            name: max(num, int(views[name].values.numel() == counts[name]))
            for name, num in found.items()
        }

    def _revive(self, context: MethodContext, choice: LayerView, lost: Tensor, num: int) -> None:
        """Let `num` of what is absent or lost live in the place of what is lost."""
        if not num and not lost.numel():
            return
        mask = choice.live.clone()
        mask[lost] = False
        absent = places(~mask)
        rng = context.generator(self.name, choice.name, context.progress.step)
        drawn = torch.from_numpy(rng.choice(absent.numel(), size=num, replace=False))
        come = absent[drawn.to(absent.device)]
        fresh, value = torch.zeros_like(mask), choice.values.new_zeros(mask.numel())
        fresh[come] = True
        signs = self.signs[choice.name].view(-1)[come.cpu()]
        value[come] = (REVIVED * signs).to(value)
        self._begin(context, choice, mask | fresh, fresh, value)

    def _walk(self, context: MethodContext, choice: LayerView, rate: float) -> None:
        """One step of the absent weights of a matrix, and the change of sides."""
        name, l1, noise = choice.name, self.config.l1, self.config.noise
        live, absent, device = choice.places, choice.absent, choice.live.device
        signs, theta = (of[name].view(-1).to(device) for of in (self.signs, self.walks))
        rng = context.generator(self.name, "walk", name, context.progress.step)
        drawn = torch.from_numpy(rng.standard_normal(absent.numel(), dtype=np.float32)).to(device)
        p = self.start[name] / choice.live.numel()
        floor = -(1.0 - p) * rate * noise**2 / (2.0 * p * l1)
        theta[absent] = (theta[absent] + rate * noise * drawn).clamp_(min=floor)
        theta[live] = choice.values * signs[live]
        if not (theta > 0.0).any():
            theta[theta.argmax()] = REVIVED  # a matrix keeps one weight
        mask = theta > 0.0
        fresh = mask & ~choice.live
        if not torch.equal(mask, choice.live):
            self._begin(context, choice, mask, fresh, theta * signs)
        self.walks[name] = theta.masked_fill_(mask, 0.0).view(choice.shape).cpu()

    def _begin(
        self,
        context: MethodContext,
        choice: LayerView,
        mask: Tensor,
        fresh: Tensor,
        value: Tensor,
    ) -> None:
        """Let bool [cells] `mask` live; what is `fresh` begins at its `value`, s theta."""
        name, shape = choice.name, choice.shape
        context.set_live(name, mask.view(shape))
        where = context.local_of(name, fresh.view(shape))
        context.reset_state(name, where)
        context.write(name, context.local_of(name, value.view(shape)), where)
        self.restart.mark(context, name, where)

    def arrays(self) -> Mapping[str, Tensor]:
        signs = {f"sign.{name}": value for name, value in self.signs.items()}
        return signs | {f"walk.{name}": value for name, value in self.walks.items()}

    def check_arrays(self, arrays: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        kinds = ("sign", "walk") if self.config.variant == "soft" else ("sign",)
        wanted = {f"{kind}.{name}" for kind in kinds for name in values["start"]}
        for key in sorted(wanted ^ set(arrays)):
            raise ValueError(f"{key} is {'missing' if key in wanted else 'not known'}")
        for key, value in arrays.items():
            if value.dim() != 2:
                raise ValueError(f"{key}: {list(value.shape)} is no matrix")
            if key.startswith("sign.") and not bool((value.abs() == 1).all()):
                raise ValueError(f"{key}: not all are +1 or -1")

    def load_arrays(self, arrays: Mapping[str, Tensor]) -> None:
        parts = [(*key.split(".", 1), value) for key, value in arrays.items()]
        self.signs = {name: value for kind, name, value in parts if kind == "sign"}
        self.walks = {name: value for kind, name, value in parts if kind == "walk"}

    def state_dict(self) -> tuple[Mapping[str, SliceTensors], Mapping[str, Any]]:
        return super().state_dict()[0], {"start": dict(self.start)}

    def check_state(self, tensors: Collection[str], values: Mapping[str, Any]) -> None:
        super().check_state(tensors, values)
        check_counts(values["start"])

    def load_state_dict(
        self, tensors: Mapping[str, SliceTensors], values: Mapping[str, Any]
    ) -> None:
        super().load_state_dict(tensors, values)
        self.start = dict(values["start"]) if values else {}
