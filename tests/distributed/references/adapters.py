"""Adapters in plain PyTorch: y += scale * B A x, the penalty by autograd, all else put back."""

from itertools import combinations

import torch
from torch import Tensor, nn

from sparsecl import seeding
from tests.distributed.references.run import ReferenceRun


class AdapterReference(ReferenceRun):
    block = "lora"

    def __init__(self, cache: str, overrides: tuple[str, ...]) -> None:
        super().__init__(cache, overrides)
        self.options = getattr(self.config.methods, self.block)
        self.pairs = self.options.num_pairs(len(self.schedule.phases))
        plain, adapters, scale = self.model.linear, {}, self.options.alpha / self.options.rank

        def linear(x: Tensor, name: str) -> Tensor:
            y = plain(x, name)
            if name in adapters:
                a, b = adapters[name]
                y = y + scale * (x @ a.T @ b.T)
            return y

        self.model.linear = linear
        total = self.options.rank * self.pairs
        for name in [n.removesuffix(".weight") for n in self.masks]:
            if name.split(".")[-1] in self.options.kinds:
                outputs, inputs = self.params[f"{name}.weight"].shape
                rng = seeding.stream(self.config.seed, self.block, name)
                drawn = rng.uniform(-(inputs**-0.5), inputs**-0.5, (total, inputs))
                adapters[name] = (
                    nn.Parameter(torch.from_numpy(drawn).float()),
                    nn.Parameter(torch.zeros(outputs, total)),
                )
                for key, value in zip("ab", adapters[name], strict=True):
                    self.params[f"{name}.parts.{self.block}.{key}"] = value
                    self.optimizer.param_groups[0]["params"].append(value)

    def learns(self, name: str) -> Tensor:
        """bool, the shape of the parameter."""
        where = torch.full(self.params[name].shape, self.phase == 0 and ".parts." not in name)
        if self.phase and ".parts." in name:
            begin = self.options.rank * (min(self.phase, self.pairs) - 1)
            where.narrow("ab".index(name[-1]), begin, self.options.rank).fill_(True)
        return where

    def penalty(self, old: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Of one linear, from the A's of earlier pairs and the newest pair."""
        return torch.zeros(())

    def loss(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        loss, _ = super().loss(rows)
        begin, whole = self.options.rank * (min(self.phase, self.pairs) - 1), loss
        for name, a in self.params.items():
            if name.endswith(f".parts.{self.block}.a") and begin >= 0:
                newest = slice(begin, begin + self.options.rank)
                b = self.params[name.removesuffix("a") + "b"]
                whole = whole + self.penalty(a[:begin].detach(), a[newest], b[:, newest])
        return loss, whole

    def after_backward(self) -> bool:
        self.before = {name: value.detach().clone() for name, value in self.params.items()}
        for name, value in self.params.items():
            value.grad = torch.where(self.learns(name), value.grad, 0.0)
        return True

    def after_update(self) -> None:
        for name, value in self.params.items():
            value.copy_(torch.where(self.learns(name), value, self.before[name]))
            for key in ("exp_avg", "exp_avg_sq"):
                self.optimizer.state[value][key][~self.learns(name)] = 0.0

    @torch.no_grad()
    def phase_end(self) -> None:
        """What the updates of the trained pairs have in common."""
        num, rank = min(self.phase, self.pairs), self.options.rank
        if not num:
            return
        filled, collided, overlaps, ranks, limits = [], [], [], [], []
        for name, a in self.params.items():
            if not name.endswith(f".parts.{self.block}.a"):
                continue
            ups, downs = a.split(rank)[:num], self.params[name[:-1] + "b"].split(rank, dim=1)[:num]
            updates = [self.options.alpha / rank * b @ a for a, b in zip(ups, downs, strict=True)]
            filled += [update.abs().flatten() > 1e-5 for update in updates]
            ranks.append(float(torch.linalg.matrix_rank(sum(updates))))
            limits.append(min(updates[0].shape))
            for one, two in combinations(range(num), 2):
                collided.append(filled[one - num] & filled[two - num])
                overlaps.append((ups[one] @ ups[two].T).norm() / ups[one].norm() / ups[two].norm())
        found = {
            "filled": float(torch.cat(filled).float().mean()),
            "rank": sum(ranks) / len(ranks),
            "capacity": sum(ranks) / sum(limits),
        }
        if collided:
            found["collision"] = float(torch.cat(collided).float().mean())
            found["overlap"] = float(sum(overlaps)) / len(overlaps)
        self.trace.figures.append({self.block: found})


class OLoraReference(AdapterReference):
    block = "o_lora"

    def penalty(self, old: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return self.options.l1 * (old @ a.T).abs().sum()


class NLoraReference(AdapterReference):
    block = "n_lora"

    def penalty(self, old: Tensor, a: Tensor, b: Tensor) -> Tensor:
        product = b @ a if self.options.penalty == "dW" else a @ b
        return self.options.l1 * product.abs().sum()
