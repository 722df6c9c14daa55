"""A sparse memory in plain PyTorch: scores of all n^2 slots, and all but the chosen put back."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecl import seeding
from tests.distributed.references.run import ReferenceRun


class MemoryReference(ReferenceRun):
    def __init__(self, cache: str, overrides: tuple[str, ...]) -> None:
        super().__init__(cache, overrides)
        options = self.options = self.config.methods.memory
        width, self.slots = 32, options.keys**2
        self.at = [f"layers.{block}.mlp" for block in options.layers]
        shapes = {
            "query": (options.heads * options.key_width, width),
            "bias": (options.heads * options.key_width,),
            "keys": (2 * options.heads * options.keys, options.key_width // 2),
            **(dict.fromkeys(("gate_in", "gate_out"), (width, width)) if options.gate else {}),
        }
        rng = seeding.stream(self.config.seed, "memory", "values")
        drawn = rng.standard_normal((self.slots, width), dtype=np.float32) / width**0.5
        self.values = self.added(f"{self.at[0]}.parts.memory.pool.weight", drawn)
        for at in self.at:
            for name, shape in shapes.items():
                bound = (options.key_width if name == "keys" else width) ** -0.5
                rng = seeding.stream(self.config.seed, "memory", at, name)
                self.added(f"{at}.parts.memory.{name}", rng.uniform(-bound, bound, shape))
        self.counts, self.used = torch.zeros(self.slots), torch.zeros(self.slots, dtype=bool)
        self.trained: list[Tensor] = []  # of each later phase
        self.batches, self.found, self.reads = 0, 0.0, 0.0
        hidden_units, linear = self.model.hidden_units, self.model.linear
        inputs: dict[str, Tensor] = {}

        def keep(x: Tensor, name: str) -> Tensor:
            inputs[name] = x
            return hidden_units(x, name)

        def add(x: Tensor, name: str) -> Tensor:
            at = name.removesuffix(".down")
            y = linear(x, name)
            return y + self.memory(inputs[at], f"{at}.parts.memory") if at in self.at else y

        self.model.hidden_units, self.model.linear = keep, add

    def added(self, name: str, drawn: np.ndarray) -> nn.Parameter:
        value = self.params[name] = nn.Parameter(torch.from_numpy(drawn).float())
        self.optimizer.param_groups[value.dim() == 1]["params"].append(value)
        return value

    def memory(self, x: Tensor, name: str) -> Tensor:
        p, o = self.params, self.options
        q = (x @ p[f"{name}.query"].T + p[f"{name}.bias"]).view(*x.shape[:2], o.heads, 2, -1)
        keys = p[f"{name}.keys"].view(o.heads, 2, o.keys, -1)
        one, two = (torch.einsum("bthd,hkd->bthk", q[..., c, :], keys[:, c]) for c in (0, 1))
        best, slots = (one[..., :, None] + two[..., None, :]).flatten(-2).topk(o.reads)
        self.counts += slots.flatten().bincount(minlength=self.slots)
        y = (best.softmax(-1)[..., None] * self.values[slots]).sum((2, 3))
        if o.gate:
            y = (y * F.silu(x @ p[f"{name}.gate_in"].T)) @ p[f"{name}.gate_out"].T
        return y

    def loss(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        self.counts.zero_()
        return super().loss(rows)

    def chosen(self) -> Tensor:
        share = self.counts / self.counts.sum()
        if self.options.rule == "kl":
            score = share * (share / (self.reads.clamp(min=0.5) / self.reads.sum())).log()
        else:
            score = share * ((self.batches + 1) / (self.found + 1)).log()
        score[self.counts == 0] = -torch.inf
        order = score.argsort(descending=True, stable=True)[: self.options.top]
        where = torch.zeros(self.slots, dtype=bool)
        where[order[self.counts[order] > 0]] = True
        return where

    def phase_start(self) -> None:
        self.used[:] = False
        if self.phase:
            self.trained.append(torch.zeros(self.slots, dtype=bool))

    def after_backward(self) -> bool:
        self.used |= self.counts > 0
        if self.phase:
            self.learns = self.chosen()
            self.trained[-1] |= self.learns
            for value in self.params.values():
                learns = self.learns[:, None] if value is self.values else torch.tensor(False)
                value.grad = torch.where(learns, value.grad, 0.0)
            self.before = {name: value.detach().clone() for name, value in self.params.items()}
        return True

    def after_update(self) -> None:
        for name, value in self.params.items() if self.phase else ():
            learns = self.learns[:, None] if value is self.values else torch.tensor(False)
            if value is self.values and self.options.sgd:
                value.copy_(self.before[name] - self.options.sgd * value.grad)
                learns = torch.zeros_like(learns)
            else:
                value.copy_(torch.where(learns, value, self.before[name]))
            for key in ("exp_avg", "exp_avg_sq"):
                state = self.optimizer.state[value][key]
                state.copy_(torch.where(learns, state, 0.0))

    @torch.no_grad()
    def phase_end(self) -> None:
        size, found = self.config.batch.sequences, {"used": float(self.used.sum())}
        for batch in range(self.options.background):
            self.loss(self.rows(self.phase, np.arange(size) + size * batch))
            self.batches += 1
            self.found, self.reads = self.found + (self.counts > 0), self.reads + self.counts
        if self.phase:
            found["updated"] = float(self.trained[-1].sum())
        if self.phase > 1:
            earlier = torch.stack(self.trained[:-1]).any(0)
            found["overlap"] = float((earlier & self.trained[-1]).sum()) / found["updated"]
        self.trace.figures.append({"memory": found})
