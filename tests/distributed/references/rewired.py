"""SET and RigL with a global mask in one process, as their papers write them."""

import math
from typing import Any

import torch
from torch import Tensor

from sparsecl import seeding
from tests.distributed.references.run import ReferenceRun


class Rewired(ReferenceRun):
    """A mask that moves; weight and moments of what was dropped are zero."""

    def move(self, name: str, keep: Tensor, grown: Tensor) -> None:
        """Give a matrix the live set `keep` and `grown`, bool of its shape."""
        weight, mask = self.params[name], self.masks[name]
        mask.copy_(keep | grown)
        new_or_gone = ~keep
        with torch.no_grad():
            for tensor in (weight, *self.moments(weight)):
                tensor[new_or_gone] = 0.0

    def moments(self, weight: Tensor) -> list[Tensor]:
        state: Any = self.optimizer.state.get(weight, {})
        return [state[key] for key in ("exp_avg", "exp_avg_sq") if key in state]


class SetReference(Rewired):
    def after_step(self) -> None:
        options = self.config.methods.set
        if self.step % options.every:
            return
        for name, mask in self.masks.items():
            weight, keep = self.params[name], mask.clone()
            for side in (weight > 0, weight < 0):
                alive = sorted((abs(float(weight[tuple(i)])), *i) for i in side.nonzero().tolist())
                for _, row, column in alive[: int(options.drop_fraction * len(alive))]:
                    keep[row, column] = False
            rng = seeding.stream(self.config.seed, "set", name, self.step, 0)
            empty = (~mask).view(-1).nonzero().view(-1)
            num = int(mask.sum() - keep.sum())
            grown = torch.zeros_like(mask)
            grown.view(-1)[empty[torch.from_numpy(rng.choice(len(empty), num, replace=False))]] = 1
            self.move(name, keep, grown)


class RiglReference(Rewired):
    def loss(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        self.seen = rows
        return super().loss(rows)

    def after_backward(self) -> bool:
        options, total = self.config.methods.rigl, sum(p.num_steps for p in self.schedule.phases)
        end = int(options.end * total)
        if self.step % options.every or self.step > end:
            return True
        fraction = options.drop_fraction / 2 * (1 + math.cos(math.pi * self.step / end))
        for (name, mask), gradient in zip(self.masks.items(), self.dense_gradients(), strict=True):
            num_live = int(mask.sum())
            num = int(num_live * fraction)
            size = self.params[name].detach().abs().masked_fill(~mask, -1)
            keep = torch.zeros_like(mask)
            keep.view(-1)[size.view(-1).topk(num_live - num).indices] = True
            grown = torch.zeros_like(mask)
            score = gradient.abs().masked_fill(keep, -1)
            grown.view(-1)[score.view(-1).topk(num).indices] = True
            self.move(name, keep | (mask & grown), grown)
        return False

    def dense_gradients(self) -> list[Tensor]:
        """Of the step's loss, for a model without masks: absent weights are zero."""
        masks, self.model.masks = self.model.masks, {}
        loss = self.model.loss(self.seen[:, :-1], self.seen[:, 1:])
        self.model.masks = masks
        return list(torch.autograd.grad(loss, [self.params[name] for name in masks]))


class PerWeightReference(SetReference):
    """SET with an Adam that counts the age of each weight."""

    def after_backward(self) -> bool:
        self.before = {name: self.params[name].detach().clone() for name in self.masks}
        if self.step == 0:
            self.age = {name: torch.zeros(mask.shape) for name, mask in self.masks.items()}
        return True

    def after_update(self) -> None:
        options = self.optimizer.param_groups[0]
        beta1, beta2 = options["betas"]
        for name, age in self.age.items():
            age += 1
            weight, (mean, square) = self.params[name], self.moments(self.params[name])
            size = (square / (1 - beta2**age)).sqrt() + options["eps"]
            decayed = self.before[name] * (1 - self.lr * options["weight_decay"])
            stepped = decayed - self.lr * mean / (1 - beta1**age) / size
            weight.copy_(torch.where(self.masks[name], stepped, 0.0))

    def move(self, name: str, keep: Tensor, grown: Tensor) -> None:
        super().move(name, keep, grown)
        self.age[name][grown & ~keep] = 0
