"""Methods that freeze a graph for each domain, with dense masks in one process."""

import math

import numpy as np
import torch
from torch import Tensor

from sparsecl import seeding
from tests.distributed.references.rewired import DenseGradients, Rewired


class Isolated(DenseGradients):
    """What does not move is put back after every step; `kept` has the values of what is frozen."""

    name = ""

    def phase_start(self) -> None:
        if self.phase == 0:
            self.frozen = {name: torch.zeros_like(mask) for name, mask in self.masks.items()}
            self.kept = {name: torch.zeros(mask.shape) for name, mask in self.masks.items()}
        for name, mask in self.begin().items():
            self.give(name, mask, self.fresh(name, mask))

    def begin(self) -> dict[str, Tensor]:
        return {}

    def fresh(self, name: str, mask: Tensor) -> Tensor:
        """As the initial weights of a model on this mask."""
        rng = seeding.stream(self.config.seed, self.name, "weights", self.phase, name)
        std = self.config.model.init_std
        if name.endswith(("o.weight", "down.weight")):
            std /= math.sqrt(2 * self.config.model.layers)
        drawn = torch.from_numpy(rng.standard_normal(tuple(mask.shape), dtype="float32")) * std
        return drawn * (mask.shape[1] / mask.sum(1, keepdim=True).clamp(min=1)).sqrt()

    @torch.no_grad()
    def give(self, name: str, mask: Tensor, fresh: Tensor) -> None:
        weight, comes = self.params[name], mask & ~self.masks[name]
        for tensor in (weight, *self.moments(weight)):
            tensor[comes | ~mask] = 0.0
        value = torch.where(self.frozen[name], self.kept[name], fresh)
        weight[comes] = value[comes]
        self.masks[name].copy_(mask)

    def held(self, name: str) -> Tensor:
        if name in self.masks:
            return self.frozen[name] & self.masks[name]
        return torch.full(self.params[name].shape, self.phase > 0)

    def after_backward(self) -> bool:
        super().after_backward()
        self.before = {name: param.detach().clone() for name, param in self.params.items()}
        for name, param in self.params.items():
            param.grad[self.held(name)] = 0.0
        return True

    def after_update(self) -> None:
        for name, param in self.params.items():
            held = self.held(name)
            param[held] = self.before[name][held]
            for moment in self.moments(param):
                moment[held] = 0.0

    def phase_end(self) -> None:
        for name, mask in self.masks.items():
            own = mask & ~self.frozen[name]
            self.kept[name][own] = self.params[name].detach()[own]
            self.frozen[name] |= mask


class DstClReference(Isolated):
    name = "dst_cl"

    def begin(self) -> dict[str, Tensor]:
        self.mean = {name: torch.zeros(mask.shape) for name, mask in self.masks.items()}
        self.square = {name: torch.zeros(mask.shape) for name, mask in self.masks.items()}
        found = {}
        if self.phase == 0:
            self.lived = {name: mask.clone() for name, mask in self.masks.items()}
        for name, mask in self.masks.items() if self.phase else ():
            rng = seeding.stream(self.config.seed, "dst_cl", "graph", self.phase, name)
            found[name] = chosen(mask, rng.choice(mask.numel(), int(mask.sum()), replace=False))
            self.lived[name] |= found[name]
        return found

    def after_step(self) -> None:
        options, t = self.config.methods.dst_cl, self.phase_step + 1
        end = self.schedule.phases[self.phase].num_steps
        f = 0.005 + (0.5 - 0.005) / 2 * (1 + math.cos(math.pi * t / end))
        for name, mask in self.masks.items():
            g, weight = self.gradients[name], self.params[name].detach()
            self.mean[name].mul_(0.9).add_(0.1 * g)
            self.square[name].mul_(0.999).add_(0.001 * g**2)
            if t % options.every or t == end:
                continue
            size = weight.abs() if options.drop != "gradient" else (weight * g) ** 2
            sides = (weight > 0, weight < 0) if options.drop == "per_sign" else (mask,)
            gone = torch.zeros_like(mask)
            for side in sides:
                num = math.ceil(f * int(side.sum()))
                order = size.masked_fill(~side, math.inf).view(-1).sort(stable=True).indices
                gone |= chosen(mask, order[:num])
            grown = self.grown(name, mask, int(gone.sum()))
            self.give(name, mask & ~gone | grown, torch.zeros(mask.shape))
            self.lived[name] |= grown

    def grown(self, name: str, mask: Tensor, num: int) -> Tensor:
        growth, step = self.config.methods.dst_cl.growth, self.step
        rng = seeding.stream(self.config.seed, "dst_cl", name, step, *([0] * (growth == "random")))
        if growth in ("random", "unfired"):
            lived = self.lived[name] if growth == "unfired" else mask
            empty = (~lived).view(-1).nonzero().view(-1)
            return chosen(mask, empty[torch.from_numpy(rng.choice(len(empty), num, replace=False))])
        score = self.gradients[name].abs()
        if growth == "momentum":
            score = (self.mean[name] / (self.square[name].sqrt() + 1e-8)).abs()
        return chosen(mask, score.masked_fill(mask | self.frozen[name], -1).view(-1).topk(num)[1])


def chosen(like: Tensor, places) -> Tensor:
    """bool of the shape of `like`, True at flat places."""
    found = torch.zeros_like(like)
    found.view(-1)[torch.as_tensor(places)] = True
    return found


class AfafReference(Isolated):
    name = "afaf"

    def begin(self) -> dict[str, Tensor]:
        self.mlps = [f"layers.{block}.mlp" for block in range(self.config.model.layers)]
        ends = [f"{mlp}.{kind}.weight" for mlp in self.mlps for kind in ("up", "down")]
        self.score = {name: torch.zeros(self.masks[name].shape) for name in ends}
        if self.phase == 0:
            num = self.params[ends[0]].shape[0]
            self.fixed = {mlp: torch.zeros(num).bool() for mlp in self.mlps}
            self.units = {mlp: torch.ones(num).bool() for mlp in self.mlps}
            self.first = {name: int(self.masks[name].sum()) for name in ends}
            return {}
        options, found, seed = self.config.methods.afaf, {}, self.config.seed
        rows = self.rows(self.phase, np.arange(options.sequences))
        loss = self.model.loss(rows[:, :-1], rows[:, 1:])
        downs = [self.params[f"{mlp}.down.weight"] for mlp in self.mlps]
        slopes = torch.autograd.grad(loss, downs)
        for mlp, down, slope in zip(self.mlps, downs, slopes, strict=True):
            fixed = self.fixed[mlp]
            num = round(options.allocate * len(fixed))
            matters = (down * slope).abs().sum(0).masked_fill(~fixed, -1)
            again = matters.topk(round(options.reuse * num)).indices
            free = (~fixed).nonzero().view(-1)
            rng = seeding.stream(seed, "afaf", "units", self.phase, mlp)
            drawn = rng.choice(len(free), num - len(again), replace=False)
            self.units[mlp] = chosen(fixed, torch.cat([again, free[torch.from_numpy(drawn)]]))
            for name in (f"{mlp}.up.weight", f"{mlp}.down.weight"):
                places = self.allowed(name).view(-1).nonzero().view(-1)
                rng = seeding.stream(seed, "afaf", "links", self.phase, name)
                drawn = rng.choice(len(places), round(options.links * self.first[name]), False)
                found[name] = self.frozen[name] | chosen(
                    self.frozen[name], places[torch.from_numpy(drawn)]
                )
        return found

    def allowed(self, name: str) -> Tensor:
        mlp = name.removesuffix(".up.weight").removesuffix(".down.weight")
        if name.endswith("up.weight"):
            return (self.units[mlp] & ~self.fixed[mlp])[:, None] & ~self.frozen[name]
        return self.units[mlp][None] & ~self.frozen[name]

    def give(self, name: str, mask: Tensor, fresh: Tensor) -> None:
        self.score[name][~(self.masks[name] & mask)] = 0.0
        super().give(name, mask, fresh)

    def after_backward(self) -> bool:
        super().after_backward()
        self.slope = {name: self.params[name].grad.clone() for name in self.score}
        return True

    def after_update(self) -> None:
        super().after_update()
        for name, score in self.score.items():
            score += ((self.params[name] - self.before[name]) * self.slope[name]).abs()

    def importance(self) -> tuple[dict[str, Tensor], Tensor]:
        """Of hidden units, and of the features of the stream."""
        units = {mlp: self.score[f"{mlp}.down.weight"].sum(0) for mlp in self.mlps}
        return units, sum(self.score[f"{mlp}.up.weight"].sum(0) for mlp in self.mlps)

    def after_step(self) -> None:
        options, t = self.config.methods.afaf, self.phase_step + 1
        if t % options.every or t == self.schedule.phases[self.phase].num_steps:
            return
        units, stream = self.importance()
        for name in list(self.score):
            mask, unit = self.masks[name], units[name.rsplit(".", 2)[0]]
            own = mask & ~self.frozen[name]
            num = int(options.drop_fraction * int(own.sum()))
            order = self.score[name].masked_fill(~own, math.inf).view(-1).sort(stable=True).indices
            pairs = (unit, stream) if name.endswith("up.weight") else (stream, unit)
            product = torch.outer(*pairs).masked_fill(~self.allowed(name) | mask, -1)
            come = product.view(-1).sort(stable=True, descending=True).indices[:num]
            gone, grown = chosen(mask, order[:num]), chosen(mask, come)
            self.give(name, mask & ~gone | grown, torch.zeros(mask.shape))

    def phase_end(self) -> None:
        units, _ = self.importance()
        for mlp, importance in units.items():
            able = self.units[mlp] & ~self.fixed[mlp]
            num = round(self.config.methods.afaf.fix * int(able.sum()))
            self.fixed[mlp][importance.masked_fill(~able, -1).topk(num).indices] = True
        super().phase_end()


class SparclReference(Rewired):
    def phase_start(self) -> None:
        options = self.config.methods.sparcl
        self.history: dict[int, list[float]] = {}
        self.gone: set[int] = set()
        self.num_chunks = 0
        if self.phase == 0:
            self.num = {name: int(mask.sum()) for name, mask in self.masks.items()}
            self.open = {}
        for name, mask in self.masks.items():
            self.fill(name, mask.clone(), self.num[name] + round(options.band * mask.numel()))

    def fill(self, name: str, keep: Tensor, num: int) -> None:
        empty = (~self.masks[name]).view(-1).nonzero().view(-1)
        rng = seeding.stream(self.config.seed, "sparcl", name, self.step)
        drawn = rng.choice(len(empty), max(0, num - int(keep.sum())), replace=False)
        grown = chosen(keep, empty[torch.from_numpy(drawn)])
        if name in self.open:
            self.open[name] &= keep
        self.move(name, keep, grown)

    def loss(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        numbers = np.arange(len(rows)) + len(rows) * self.phase_step
        self.chunks = self.stream(self.phase).chunks(numbers).tolist()
        self.row = self.row_losses(rows)
        kept = torch.tensor([chunk not in self.gone for chunk in self.chunks])
        loss = self.row[kept].mean()
        return loss, loss

    def after_backward(self) -> bool:
        options = self.config.methods.sparcl
        self.slope = {name: self.params[name].grad.clone() for name in self.masks}
        for name, mask in self.masks.items():
            if self.phase_step % options.refresh == 0:
                cells = mask.numel() if options.denominator == "all" else int(mask.sum())
                num = min(int(mask.sum()), round(options.keep * cells))
                size = self.slope[name].abs().masked_fill(~mask, -1)
                self.open[name] = chosen(mask, size.view(-1).topk(num).indices)
            self.params[name].grad[~self.open[name]] = 0.0
        return True

    def after_step(self) -> None:
        options, t = self.config.methods.sparcl, self.phase_step + 1
        steps = self.schedule.phases[self.phase].num_steps
        for chunk, loss in zip(self.chunks, self.row.tolist(), strict=True):
            self.history.setdefault(chunk, []).append(loss)
            self.num_chunks = max(self.num_chunks, chunk + 1)
        if t in [round(options.remove_until * steps * k / options.portions) for k in (1, 2)]:
            self.remove(options.remove / options.portions)
        for name, mask in self.masks.items() if t % options.every == 0 and t < steps else ():
            num = self.num[name]
            settled = t >= options.settle * steps
            left = num if settled else num - round(options.band * mask.numel())
            size = self.params[name].detach().abs() + options.gradient * self.slope[name].abs()
            gone = max(0, int(mask.sum()) - left)
            order = size.masked_fill(~mask, math.inf).view(-1).argsort(stable=True)[:gone]
            self.fill(name, mask & ~chosen(mask, order), num)

    def remove(self, share: float) -> None:
        """The steadiest of what was seen twice since the last time, whose loss is lowest."""

        def rises(chunk: int) -> int:
            seen = self.history[chunk]
            return sum(b > a for a, b in zip(seen, seen[1:], strict=False))

        able = [c for c, seen in self.history.items() if len(seen) > 1 and c not in self.gone]
        order = sorted(able, key=lambda c: (rises(c), self.history[c][-1], c))
        num = round(share * self.num_chunks)
        self.gone |= set(order[:num])
        self.history = {}
