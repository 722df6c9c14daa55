"""Methods that move a global mask, in one process, as their papers write them."""

import math
from typing import Any

import torch
from torch import Tensor

from sparsecl import seeding
from sparsecl.methods.dst.scores import scores
from sparsecl.methods.noise import mixed, normal
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


class DenseGradients(RiglReference):
    """The weights step, then the mask moves: on the gradients of that step."""

    def after_backward(self) -> bool:
        self.gradients = dict(zip(self.masks, self.dense_gradients(), strict=True))
        return True


class MestReference(DenseGradients):
    def after_step(self) -> None:
        options = self.config.methods.set
        for name, mask in self.masks.items() if self.step % options.every == 0 else ():
            size = self.params[name].abs() + options.mest_gradient * self.gradients[name].abs()
            num = int(options.drop_fraction * mask.sum())
            keep = smallest_gone(size, mask, num)
            rng = seeding.stream(self.config.seed, "set", name, self.step, 0)
            empty = (~mask).view(-1).nonzero().view(-1)
            grown = torch.zeros_like(mask)
            grown.view(-1)[empty[torch.from_numpy(rng.choice(len(empty), num, replace=False))]] = 1
            self.move(name, keep, grown)


class SnfsReference(DenseGradients):
    def after_step(self) -> None:
        options, total = self.config.methods.snfs, sum(p.num_steps for p in self.schedule.phases)
        if self.step == 1:
            self.mean = {name: torch.zeros(mask.shape) for name, mask in self.masks.items()}
        end = int(options.end * total)
        f = options.drop_fraction / 2 * (1 + math.cos(math.pi * self.step / end))
        for name, mask in self.masks.items():
            mean, decay = self.mean[name], options.decay
            mean.copy_(decay * mean + (1 - decay) * self.gradients[name])
            if self.step % options.every == 0 and self.step <= end:
                num = int(f * mask.sum())
                keep = smallest_gone(self.params[name].abs(), mask, num)
                grown = largest_come(mean.abs(), keep, num)
                self.move(name, keep | (mask & grown), grown)


class GranetReference(DenseGradients):
    def after_step(self) -> None:
        options, total = self.config.methods.granet, sum(p.num_steps for p in self.schedule.phases)
        if self.step % options.every:
            return
        cells = sum(mask.numel() for mask in self.masks.values())
        if self.step == options.every:
            self.first = {name: int(mask.sum()) for name, mask in self.masks.items()}
        start = sum(self.first.values()) / cells
        num_prunings = int(options.prune_end * total) // options.every
        done = self.step // options.every
        if done <= num_prunings:
            left = (1 - done / num_prunings) ** 3
            density = options.final_density + (start - options.final_density) * left
            self.prune(options.scope, density, density / start)
        height = options.drop_fraction - options.final_fraction
        f = options.final_fraction + height / 2 * (1 + math.cos(math.pi * self.step / total))
        for name, mask in self.masks.items():
            num = math.ceil(f * int(mask.sum()))
            keep = smallest_gone(self.params[name].abs(), mask, num)
            grown = largest_come(self.gradients[name].abs(), keep, num)
            self.move(name, keep | (mask & grown), grown)

    def prune(self, scope: str, density: float, share: float) -> None:
        live = {name: self.params[name].abs()[mask] for name, mask in self.masks.items()}
        cells = sum(mask.numel() for mask in self.masks.values())
        bar = torch.cat(list(live.values())).sort(descending=True).values[round(density * cells)]
        for name, mask in self.masks.items():
            if scope == "layer":
                num = int(mask.sum()) - round(share * self.first[name])
                keep = smallest_gone(self.params[name].abs(), mask, num)
            else:
                keep = mask & (self.params[name].abs() > bar)
            self.move(name, keep, torch.zeros_like(mask))


class DeepRReference(Rewired):
    """Signs and walks of all cells; theta = s w."""

    def loss(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        if self.step == 0:
            self.sign, self.start = {}, {n: int(m.sum()) for n, m in self.masks.items()}
            for name, mask in self.masks.items():
                rng = seeding.stream(self.config.seed, "deep_r", "signs", name)
                drawn = torch.from_numpy(rng.integers(0, 2, mask.numel(), dtype="int32") * 2 - 1)
                drawn = drawn.view(mask.shape).float()
                weight = self.params[name].detach()
                self.sign[name] = torch.where(mask, torch.where(weight < 0, -1.0, 1.0), drawn)
            self.walk = {name: torch.zeros(mask.shape) for name, mask in self.masks.items()}
        self.before = {name: self.params[name].detach().clone() for name in self.masks}
        return super().loss(rows)

    def after_update(self) -> None:
        options = self.config.methods.deep_r
        for name, mask in self.masks.items():
            names = ("noise", "deep_r", self.step, name)
            key = int(seeding.stream(self.config.seed, *names).integers(2**63))
            drawn = normal(key, torch.arange(mask.numel())).view(mask.shape)
            moving = mask & (self.before[name] != 0)
            pull = options.noise * drawn - options.l1 * self.sign[name]
            weight = self.params[name].add_(self.lr * torch.where(moving, pull, 0.0)).mul_(mask)
            if options.variant == "hard":
                weight[~moving | (weight * self.sign[name] <= 0)] = 0.0

    def after_step(self) -> None:
        options = self.config.methods.deep_r
        if options.variant == "soft":
            return self.soft(options)
        if self.step % options.every:
            return None
        lost = {n: m & (self.params[n] == 0) for n, m in self.masks.items()}
        counts = {name: int(some.sum()) for name, some in lost.items()}
        if options.scope == "global":
            weight = torch.tensor([*self.start.values()]).double().numpy()
            rng = seeding.stream(self.config.seed, "deep_r", "shares", self.step)
            shares = rng.multinomial(sum(counts.values()), weight / weight.sum())
            counts = dict(zip(counts, shares.tolist(), strict=True))
        for name, mask in self.masks.items():
            keep = mask & ~lost[name]
            empty = (~keep).view(-1).nonzero().view(-1)
            rng = seeding.stream(self.config.seed, "deep_r", name, self.step)
            grown = torch.zeros_like(mask)
            if counts[name] or lost[name].any():
                drawn = rng.choice(len(empty), counts[name], replace=False)
                grown.view(-1)[empty[torch.from_numpy(drawn)]] = True
            self.move(name, keep, grown)
            self.params[name][grown] = 1e-12 * self.sign[name][grown]
        return None

    def soft(self, options: Any) -> None:
        for name, mask in self.masks.items():
            weight, walk, sign = self.params[name], self.walk[name], self.sign[name]
            rng = seeding.stream(self.config.seed, "deep_r", "walk", name, self.step)
            drawn = torch.from_numpy(rng.standard_normal(int((~mask).sum()), dtype="float32"))
            p, temperature = self.start[name] / mask.numel(), self.lr * options.noise**2 / 2
            floor = -(1 - p) / (p * (options.l1 / temperature))
            walk[~mask] = (walk[~mask] + self.lr * options.noise * drawn).clamp(min=floor)
            theta = torch.where(mask, weight * sign, walk)
            new = (theta > 0) & ~mask
            self.walk[name] = torch.where(theta > 0, 0.0, theta)
            self.move(name, mask & (theta > 0), new)
            weight[new] = (sign * theta)[new]


class ChtReference(Rewired):
    """Paths counted one by one are in tests/methods/dst; here the score is a function."""

    def after_step(self) -> None:
        options = self.config.methods.cht
        if self.step % options.every:
            return
        masks, counts = {}, {name: int(mask.sum()) for name, mask in self.masks.items()}
        for name, mask in self.masks.items():
            num = int(options.drop_fraction * counts[name])
            masks[name] = smallest_gone(self.params[name].abs(), mask, num)
        for block in {name.rsplit(".", 3)[0] for name in masks}:
            q, k, v, o, up, down = (
                masks[f"{block}.{part}.weight"]
                for part in ("attention.q", "attention.k", "attention.v", "attention.o",
                             "mlp.up", "mlp.down")
            )  # fmt: skip
            for first, second in ((up, down.t()), (v, o.t()), (q, k)):
                used = first.any(dim=1) & second.any(dim=1)
                first[~used], second[~used] = False, False
        for name, keep in masks.items():
            num = counts[name] - int(keep.sum())
            score = scores(keep, options.score)
            if int((score > 0).sum()) < num:
                score[~keep] += 1e-5
            rng = seeding.stream(self.config.seed, "cht", name, self.step)
            order = mixed(int(rng.integers(2**63)), torch.arange(keep.numel())).argsort()
            best = sorted(order.tolist(), key=lambda cell: -float(score.view(-1)[cell]))[:num]
            grown = torch.zeros_like(keep)
            grown.view(-1)[best] = True
            self.move(name, keep, grown)


class ChtsReference(Rewired):
    def after_backward(self) -> bool:
        options, total = self.config.methods.chts, sum(p.num_steps for p in self.schedule.phases)
        end, last = int(options.end * total), int(options.prune_end * total)
        due = self.step % options.every == 0
        falls = due and options.final_density is not None and self.step <= last
        moves = due and self.step <= end
        if self.step == 0:
            self.start = {name: int(mask.sum()) for name, mask in self.masks.items()}
        with torch.no_grad():
            if falls:
                self.fall(options.final_density, self.step // options.every, last // options.every)
            if moves:
                self.turn(options, end)
        return not (falls or moves)

    def fall(self, final: float, done: int, num: int) -> None:
        cells = sum(mask.numel() for mask in self.masks.values())
        first, middle = sum(self.start.values()) / cells, num / 2
        plain = [1 / (1 + math.exp(-6 / middle * (x - middle))) for x in (0, num, done)]
        shaped = (plain[2] - 0.5) / (plain[1] - plain[0]) + 0.5
        share = (first + (final - first) * shaped) / first
        for name, mask in self.masks.items():
            gone = int(mask.sum()) - round(share * self.start[name])
            keep = smallest_gone(self.relative(name), mask, gone)
            self.move(name, keep, torch.zeros_like(mask))

    def turn(self, options: Any, end: int) -> None:
        f = options.drop_fraction / 2 * (1 + math.cos(math.pi * self.step / end))
        low, high = options.temperature
        power, now = low + (high - low) * self.step / end, self.step + 1
        for name, mask in self.masks.items():
            num = int(mask.sum())
            rng = seeding.stream(self.config.seed, "chts", "keep", name, now)
            noise = -torch.log(-torch.log(torch.from_numpy(rng.random(num))))
            logs = power * self.relative(name)[mask].double().log()
            keep = torch.zeros_like(mask)
            places = mask.view(-1).nonzero().view(-1)
            keep.view(-1)[places[(logs + noise).topk(num - int(f * num)).indices]] = True
            rng = seeding.stream(self.config.seed, "chts", name, now)
            noise = -torch.log(-torch.log(torch.from_numpy(rng.random(mask.numel()))))
            score = scores(keep, options.score).view(-1)
            assert (score > 0).sum() >= int(f * num)
            grown = torch.zeros_like(mask)
            grown.view(-1)[(score.double().log() + noise).topk(int(f * num)).indices] = True
            self.move(name, keep, grown)

    def relative(self, name: str) -> Tensor:
        size = self.params[name].detach().abs() * self.masks[name]
        return size / size.sum(1, keepdim=True) + size / size.sum(0, keepdim=True) + 1e-5


class EmsReference(ChtsReference):
    """Down to the target and up again beyond it; q, k and v by heads of 8 rows."""

    def turn(self, options: Any, end: int) -> None:
        low, high = options.temperature
        power, now = low + (high - low) * self.step / end, self.step + 1
        above = options.em_s[0 if self.step <= 0.6 * end else 1]
        above = 0.0 if self.step + options.every > end else above
        cells = sum(mask.numel() for mask in self.masks.values())
        density = sum(self.start.values()) / cells
        target = density - options.em_s[0]
        for name, mask in self.masks.items():
            heads = 4 if name.split(".")[-2] in "qkv" else 1
            sizes = [int(part.sum()) for part in mask.chunk(heads)]
            left = self.parts(round(target / density * self.start[name]), sizes)
            wanted = self.parts(round((target + above) / density * self.start[name]), sizes)
            keep, grown, size = [], [], self.params[name].detach().abs()
            for head, (part, own) in enumerate(
                zip(mask.chunk(heads), size.chunk(heads), strict=True)
            ):
                ends = (head,) if head else ()
                own = own * part
                share = own / own.sum(1, keepdim=True).clamp(min=1e-30)
                share = share + own / own.sum(0, keepdim=True).clamp(min=1e-30) + 1e-5
                rng = seeding.stream(self.config.seed, "chts", "keep", name, now, *ends)
                drawn = torch.from_numpy(rng.random(sizes[head]))
                chance = power * share[part].double().log() - torch.log(-torch.log(drawn))
                stays = torch.zeros_like(part)
                places = part.reshape(-1).nonzero().view(-1)
                stays.view(-1)[places[chance.topk(min(left[head], sizes[head])).indices]] = True
                score = scores(stays, options.score).view(-1)
                num = wanted[head] - int(stays.sum())
                if (score > 0).sum() < num:
                    score = torch.where(stays.view(-1), 0.0, score + 1e-5)
                rng = seeding.stream(self.config.seed, "chts", name, now, *ends)
                drawn = torch.from_numpy(rng.random(part.numel()))
                chance = score.double().log() - torch.log(-torch.log(drawn))
                comes = torch.zeros_like(part)
                comes.view(-1)[chance.topk(num).indices] = True
                keep.append(stays)
                grown.append(comes)
            self.move(name, torch.cat(keep), torch.cat(grown))

    def parts(self, total: int, sizes: list[int]) -> list[int]:
        """Whole shares that add up: each edge is rounded."""
        edges = [math.floor(total * sum(sizes[:k]) / sum(sizes) + 0.5) for k in range(5)]
        return [edges[k + 1] - edges[k] for k in range(len(sizes))]


def smallest_gone(size: Tensor, mask: Tensor, num: int) -> Tensor:
    """`mask` without its `num` smallest."""
    keep = torch.zeros_like(mask)
    order = size.masked_fill(~mask, -1).view(-1).topk(int(mask.sum()) - num).indices
    keep.view(-1)[order] = True
    return keep


def largest_come(score: Tensor, keep: Tensor, num: int) -> Tensor:
    """The `num` largest of what is not kept."""
    grown = torch.zeros_like(keep)
    grown.view(-1)[score.masked_fill(keep, -1).view(-1).topk(num).indices] = True
    return grown
