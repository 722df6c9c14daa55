"""Springs as the papers write them: one for each domain, differentiated by autograd."""

import numpy as np
import torch

from sparsecl import seeding
from tests.distributed.references.run import ReferenceRun


class SpringReference(ReferenceRun):
    factor = 1.0
    springs: list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]] = []

    def phase_start(self) -> None:
        self.springs = self.springs if self.phase else []

    def loss(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        loss, _ = super().loss(rows)
        penalty = sum(
            (importance[name] * (self.params[name] - anchor[name]) ** 2).sum()
            for importance, anchor in self.springs
            for name in self.params
        )
        return loss, loss + self.factor * self.options.strength * penalty

    @property
    def options(self):
        raise NotImplementedError

    def importance(self) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def gradients(self, number: int, row: torch.Tensor) -> list[torch.Tensor]:
        """Of what a sequence is measured by."""
        return list(torch.autograd.grad(self.measure(number, row), list(self.params.values())))

    def measure(self, number: int, row: torch.Tensor) -> torch.Tensor:
        return self.model.loss(row[None, :-1], row[None, 1:])

    def mean(self, each) -> dict[str, torch.Tensor]:
        """Over the sequences at the begin of a phase."""
        rows = self.rows(self.phase, np.arange(self.options.sequences))
        found = {name: torch.zeros_like(p) for name, p in self.params.items()}
        for number, row in enumerate(rows):
            for name, gradient in zip(self.params, self.gradients(number, row), strict=True):
                found[name] += each(gradient) / len(rows)
        return found

    def anchor(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in self.params.items()}

    def phase_end(self) -> None:
        self.springs = [*self.springs, (self.importance(), self.anchor())]


class EwcReference(SpringReference):
    factor = 0.5

    @property
    def options(self):
        return self.config.methods.ewc

    def importance(self) -> dict[str, torch.Tensor]:
        """The Fisher per sequence."""
        return self.mean(torch.square)


class TrueFisherReference(EwcReference):
    """Labels are drawn by inverting the distribution function at given uniform numbers."""

    def measure(self, number: int, row: torch.Tensor) -> torch.Tensor:
        log_p = self.model.logits(row[None, :-1])[0].log_softmax(-1)
        rng = seeding.stream(self.config.seed, "ewc", "labels", self.phase, number)
        u = torch.from_numpy(rng.random(len(log_p)))
        labels = (log_p.detach().double().exp().cumsum(-1) <= u[:, None]).sum(-1)
        return -log_p.gather(-1, labels[:, None]).mean()


class LatestAnchorReference(SpringReference):
    """All importances so far, at the latest anchor."""

    def phase_end(self) -> None:
        found, before = self.importance(), self.springs[0][0] if self.springs else {}
        total = {name: value + before.get(name, 0.0) for name, value in found.items()}
        self.springs = [(total, self.anchor())]


class MasReference(LatestAnchorReference):
    @property
    def options(self):
        return self.config.methods.mas

    def measure(self, number: int, row: torch.Tensor) -> torch.Tensor:
        return self.model.logits(row[None, :-1])[0].square().sum(-1).mean()

    def importance(self) -> dict[str, torch.Tensor]:
        return self.mean(torch.abs)


class SiReference(LatestAnchorReference):
    @property
    def options(self):
        return self.config.methods.si

    def phase_start(self) -> None:
        super().phase_start()
        self.path = {name: torch.zeros_like(p) for name, p in self.params.items()}
        self.start = self.anchor()

    def loss(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        loss, whole = super().loss(rows)
        found = torch.autograd.grad(loss, list(self.params.values()), retain_graph=True)
        self.raw, self.before = dict(zip(self.params, found, strict=True)), self.anchor()
        return loss, whole

    def after_step(self) -> None:
        for name, p in self.params.items():
            self.path[name] -= self.raw[name] * (p - self.before[name])

    def importance(self) -> dict[str, torch.Tensor]:
        found = {}
        for name, p in self.params.items():
            found[name] = self.path[name] / ((p.detach() - self.start[name]) ** 2 + self.options.xi)
            if self.options.negative == "clip":
                found[name] = found[name].clamp(min=0.0)
        return found
