"""Continual backpropagation on whole matrices, one unit after another."""

from typing import Any

import numpy as np
import torch

from sparsecl import seeding
from tests.distributed.references.run import ReferenceRun


class CbpReference(ReferenceRun):
    name, moments = "cbp", True

    def phase_start(self) -> None:
        if self.phase == 0:
            sizes = [(i, self.down(i).shape[1]) for i in range(self.model.layers)]
            self.age = {i: np.zeros(n, dtype=int) for i, n in sizes}
            self.utility = {i: torch.zeros(n) for i, n in sizes}
            self.due = {i: 0.0 for i, _ in sizes}

    def down(self, layer: int) -> torch.nn.Parameter:
        return self.params[f"layers.{layer}.mlp.down.weight"]

    def after_step(self) -> None:
        """`step` counts this one; the model has kept the activations of its forward pass."""
        options = self.config.methods.cbp
        for i in self.age:
            hidden = self.model.hidden[i].flatten(0, 1)
            new = hidden.abs().mean(0) * self.down(i).abs().mean(0)
            self.utility[i] = options.decay * self.utility[i] + (1 - options.decay) * new
            self.age[i] += 1
            mature = self.age[i] > options.maturity
            self.due[i] += options.rate * mature.sum()
            num = int(self.due[i])
            self.due[i] -= num
            order = np.argsort(self.utility[i].numpy() / (1 - options.decay ** self.age[i]))
            if num:
                self.replace(i, sorted([unit for unit in order if mature[unit]][:num]))

    def replace(self, layer: int, units: list[int]) -> None:
        name = f"layers.{layer}.mlp"
        rng = seeding.stream(self.config.seed, self.name, "fresh", name, self.step)
        readers = [f"{name}.{kind}" for kind in ("gate", "up")]
        for reader in [r for r in readers if f"{r}.weight" in self.params]:
            for unit in units:
                mask = self.masks[f"{reader}.weight"][unit]
                row = torch.from_numpy(rng.standard_normal(len(mask), dtype=np.float32)) * 0.02
                self.begin(f"{reader}.weight", unit, row * mask * (len(mask) / mask.sum()) ** 0.5)
                if f"{reader}.bias" in self.params:
                    self.begin(f"{reader}.bias", unit, 0.0)
        for unit in units:
            self.begin(f"{name}.down.weight", np.s_[:, unit], 0.0)
            self.forget(layer, unit)

    def forget(self, layer: int, unit: int) -> None:
        self.age[layer][unit], self.utility[layer][unit] = 0, 0.0

    def begin(self, name: str, lines: Any, value: Any) -> None:
        """Part of a parameter anew, with moments of zero where `moments` says so."""
        weight = self.params[name]
        weight[lines] = value
        for key in ("exp_avg", "exp_avg_sq") if self.moments else ():
            self.optimizer.state[weight][key][lines] = 0.0
