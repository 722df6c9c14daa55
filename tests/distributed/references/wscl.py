"""WSCL on whole matrices: trials of copies, and DER++ in sleep. Draws are the method's own."""

import copy

import numpy as np
import torch

from sparsecl import seeding
from tests.distributed.references.derpp import DerppReference


class WsclReference(DerppReference):
    """Variant released."""

    block = "wscl"

    def phase_start(self) -> None:
        self.options = self.config.methods.wscl
        if self.phase == 0:
            self.begin(self.options)
            self.frozen = 0
        elif not self.options.described:
            self.choose()

    def named(self, names: np.ndarray) -> torch.Tensor:
        return torch.cat([self.rows(p, np.array([n])) for p, n in names])

    def inside(self, name: str, num: int) -> bool:
        return name.startswith("layers.") and int(name.split(".")[1]) < num

    def choose(self) -> None:
        options, size, known = self.options, self.config.batch.sequences, self.reservoir.names
        rng = seeding.stream(self.config.seed, "wscl", "trial", self.phase)
        num = round(options.share * size)
        again = known[rng.integers(0, len(known), (options.trial_steps, num))]
        stored = self.named(known[rng.permutation(len(known))[: options.stored]])
        first = size * options.trial_steps
        later = self.rows(self.phase, np.arange(first, first + options.validation))
        start = {name: param.detach().clone() for name, param in self.params.items()}
        scores = {}
        for num in range(self.frozen, 2):  # two blocks, of which the last one is free
            for step in range(options.trial_steps):
                rows = self.rows(self.phase, np.arange(size) + size * step)
                loss = self.row_losses(torch.cat([rows, self.named(again[step])])).mean()
                found = torch.autograd.grad(loss, list(self.params.values()))
                with torch.no_grad():
                    for (name, param), gradient in zip(self.params.items(), found, strict=True):
                        if not self.inside(name, num):
                            param -= options.trial_lr * gradient
            with torch.no_grad():
                tested = [float(self.row_losses(rows).mean()) for rows in (later, stored)]
                scores[num] = round(sum(tested) / 2, 2)
                for name, param in self.params.items():
                    param.copy_(start[name])
        self.frozen = min(scores, key=lambda num: (scores[num], num))

    def is_held(self, name: str, param: torch.Tensor) -> torch.Tensor:
        return torch.full_like(param, self.inside(name, self.frozen), dtype=torch.bool)

    def after_backward(self) -> bool:
        self.before = {name: param.detach().clone() for name, param in self.params.items()}
        self.still = {name: self.is_held(name, param) for name, param in self.params.items()}
        for name, param in self.params.items():
            param.grad[self.still[name]] = 0.0
            for moment in self.optimizer.state.get(param, {}).values():
                if moment.shape == param.shape:
                    moment[self.still[name]] = 0.0
        return True

    def after_update(self) -> None:
        for name, param in self.params.items():
            param[self.still[name]] = self.before[name][self.still[name]]

    def phase_end(self) -> None:
        if not self.options.described:
            self.trace.figures.append({"wscl": {"frozen": float(self.frozen)}})


class DescribedReference(WsclReference):
    """Variant described."""

    held: dict[str, torch.Tensor] = {}

    def loss(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        options, cycle = self.options, self.options.every
        at, size = self.step % cycle, len(rows)
        self.asleep = at >= cycle - round(options.sleep * cycle)
        linears = {n: p.detach() for n, p in self.params.items() if n in self.masks}
        if at == 0:
            self.recent, self.held = [], {}
            for name, weight in linears.items():
                self.held[name] = weight.abs() >= self.largest(name, weight, options.held)
        least = {n: self.largest(n, w, options.protected) for n, w in linears.items()}
        self.weak = {name: linears[name].abs() < size for name, size in least.items()}
        if not self.asleep:
            self.recent += [(self.phase, n) for n in np.arange(size) + size * self.phase_step]
            reservoir, self.reservoir = self.reservoir, copy.copy(self.reservoir)
            self.reservoir.names = self.reservoir.names[:0]  # awake nothing is replayed
            found = super().loss(rows)
            self.reservoir = reservoir
            return found
        self.held = {}
        rng = seeding.stream(self.config.seed, "wscl", "recent", self.step)
        names = np.array(self.recent)[rng.integers(0, len(self.recent), size)]
        return super().loss(self.named(names))

    def largest(self, name: str, weight: torch.Tensor, share: float) -> torch.Tensor:
        sizes = weight[self.masks[name]].abs().sort(descending=True).values
        return sizes[round(share * len(sizes)) - 1]

    def is_held(self, name: str, param: torch.Tensor) -> torch.Tensor:
        return self.held.get(name, torch.zeros_like(param, dtype=torch.bool))

    def after_update(self) -> None:
        if (self.step + 1) % self.options.every == 0:
            for name, weak in self.weak.items():
                self.params[name][weak] *= 1.0 - self.options.down_scaling
        super().after_update()

    def after_step(self) -> None:
        if not self.asleep:
            super().after_step()
