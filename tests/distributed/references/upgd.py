"""UPGD on whole matrices, in place of the step that the optimizer has made."""

import torch

from sparsecl import seeding
from sparsecl.methods.noise import normal
from tests.distributed.references.run import ReferenceRun


class UpgdReference(ReferenceRun):
    def after_backward(self) -> bool:
        options = self.config.methods.upgd
        if self.step == 0:
            self.u = {}
        self.before = {name: weight.detach().clone() for name, weight in self.params.items()}
        seen = {
            name: -weight.grad * weight.detach()
            for name, weight in self.params.items()
            if weight.dim() == 2
        }
        if options.utility == "feature":
            layers = range(self.model.layers)
            seen = {i: seen[f"layers.{i}.mlp.down.weight"].sum(0) for i in layers}
        for key, new in seen.items():
            old = self.u.get(key, torch.zeros_like(new))
            self.u[key] = options.beta * old + (1 - options.beta) * new
        return True

    def free(self, key: object) -> torch.Tensor:
        """1 - ubar."""
        options, u = self.config.methods.upgd, self.u[key]
        age = 1 - options.beta ** (self.step + 1)
        if options.scope == "local":
            return 1 - torch.sigmoid(torch.nn.functional.normalize(u / age, dim=-1, eps=1e-30))
        live = {name: mask for name, mask in self.masks.items() if name in self.u}
        largest = max(
            float(value[live[name]].max() if name in live else value.max())
            for name, value in self.u.items()
        )
        divisor = largest if options.scaling == "code" else max(largest / age, 1e-30)
        return 1 - torch.sigmoid(u / age / divisor)

    def after_update(self) -> None:
        options = self.config.methods.upgd
        for name, weight in self.params.items():
            free = self.freedom_of(name)
            if free is None:
                continue
            names = ("noise", "upgd", self.step, name)
            key = int(seeding.stream(self.config.seed, *names).integers(2**63))
            noise = normal(key, torch.arange(weight.numel())).view_as(weight)
            noise = -self.lr * options.sigma * noise
            decayed = self.before[name] * (1 - self.lr * 0.1)
            if options.protecting:
                weight.copy_(decayed + (weight - decayed + noise) * free)
            else:
                weight.add_(noise * free)
            weight.mul_(self.masks.get(name, torch.ones_like(weight)))

    def freedom_of(self, name: str) -> torch.Tensor | None:
        if self.config.methods.upgd.utility == "weight":
            return self.free(name) if name in self.u else None
        part = name.split(".")
        if part[-2] not in ("up", "gate"):
            return None
        return self.free(int(part[1]))[:, None].expand_as(self.params[name])
