"""OSFT in plain PyTorch: the largest directions of every linear, taken out on both sides."""

import numpy as np
import torch
from torch import Tensor

from tests.distributed.references.run import ReferenceRun


class OsftReference(ReferenceRun):
    def phase_start(self) -> None:
        names = [n for n, p in self.params.items() if n.startswith("layers.") and p.dim() == 2]
        self.held, self.full = {}, {name: min(self.params[name].shape) for name in names}
        if not self.phase:
            return
        for name, share in self.shares(names).items():
            u, s, v = torch.linalg.svd(self.params[name].detach())
            k = int(share * self.full[name] + 1e-6)
            self.held[name] = u[:, :k], s[:k], v[:k]

    @torch.no_grad()
    def shares(self, names: list[str]) -> dict[str, float]:
        config, plain, cosines = self.config.methods.osft, self.model.linear, {}

        def linear(x: Tensor, name: str) -> Tensor:
            y, d = plain(x, name), min(self.params[f"{name}.weight"].shape)
            cosines[f"{name}.weight"] = torch.cosine_similarity(y[..., :d], x[..., :d], -1).mean()
            return y

        if config.rule == "fixed":
            return dict.fromkeys(names, config.share)
        self.model.linear = linear
        rows = self.rows(self.phase - 1, np.arange(config.sequences))
        self.model.loss(rows[:, :-1], rows[:, 1:])
        self.model.linear = plain
        mean = sum(abs(cosines[name]) for name in names) / len(names)
        importance = {name: float(abs(cosines[name]) / mean) for name in names}
        way = config.most - config.least
        return {name: min(config.least + i * way, 1.0) for name, i in importance.items()}

    def apart(self, matrix: Tensor, u: Tensor, v: Tensor) -> Tensor:
        left, right = torch.eye(len(u)) - u @ u.T, torch.eye(v.shape[1]) - v.T @ v
        return left @ matrix @ right

    def after_backward(self) -> bool:
        for name, (u, _, v) in self.held.items():
            self.params[name].grad = self.apart(self.params[name].grad, u, v)
        return True

    def after_update(self) -> None:
        for name, (u, s, v) in self.held.items():
            self.params[name].copy_(u @ s.diag() @ v + self.apart(self.params[name], u, v))

    def phase_end(self) -> None:
        held = [len(s) for _, s, _ in self.held.values()]
        capacity = sum(held) / sum(self.full.values())
        rank = sum(held) / len(self.full)
        found = {"rank": rank, "capacity": capacity, "left": 1.0 - capacity, "moved": 0.0}
        self.trace.figures.append({"osft": found})
