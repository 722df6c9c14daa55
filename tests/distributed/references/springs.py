"""EWC, SI and MAS as the papers write them: penalties that autograd differentiates, alone or all in
one run."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsecl import seeding
from tests.distributed.references.run import ReferenceRun

Weights = dict[str, Tensor]


class SpringReference(ReferenceRun):
    """With the penalty of every method of the config."""

    def __init__(self, cache: str, overrides: tuple[str, ...]) -> None:
        super().__init__(cache, overrides)
        self.springs = [KINDS[name](self, b) for name, b in self.config.methods.used().items()]

    def phase_start(self) -> None:
        for spring in self.springs:
            spring.phase_start()

    def loss(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        loss, whole = super().loss(rows)
        for spring in self.springs:
            spring.see(loss)
            whole = whole + spring.penalty()
        return loss, whole

    def after_step(self) -> None:
        for spring in self.springs:
            spring.after_step()

    def phase_end(self) -> None:
        for spring in self.springs:
            spring.phase_end()


class Ewc:
    """One anchor for each domain; the Fisher per sequence."""

    factor = 0.5

    def __init__(self, run: ReferenceRun, options: Any) -> None:
        self.run, self.options = run, options
        self.anchors: list[tuple[Weights, Weights]] = []

    def penalty(self) -> Tensor:
        terms = [
            (importance[name] * (self.run.params[name] - anchor[name]) ** 2).sum()
            for importance, anchor in self.anchors
            for name in self.run.params
        ]
        return self.factor * self.options.strength * sum(terms, torch.zeros(()))

    def phase_start(self) -> None: ...

    def see(self, loss: Tensor) -> None: ...

    def after_step(self) -> None: ...

    def phase_end(self) -> None:
        self.anchors = [*self.anchors, (self.importance(), self.weights())]

    def weights(self) -> Weights:
        return {name: p.detach().clone() for name, p in self.run.params.items()}

    def importance(self) -> Weights:
        return self.mean(torch.square)

    def mean(self, each: Any) -> Weights:
        """Over the sequences at the begin of the phase, of their own gradients."""
        rows, params = (
            self.run.rows(self.run.phase, np.arange(self.options.sequences)),
            self.run.params,
        )
        found = {name: torch.zeros_like(p) for name, p in params.items()}
        for number, row in enumerate(rows):
            gradients = torch.autograd.grad(self.measure(number, row), list(params.values()))
            for name, gradient in zip(params, gradients, strict=True):
                found[name] += each(gradient) / len(rows)
        return found

    def measure(self, number: int, row: Tensor) -> Tensor:
        """With the labels of the data, or such as inverting the distribution function gives."""
        log_p = self.run.model.logits(row[None, :-1])[0].log_softmax(-1)
        labels = row[1:]
        if self.options.fisher == "true":
            rng = seeding.stream(self.run.config.seed, "ewc", "labels", self.run.phase, number)
            u = torch.from_numpy(rng.random(len(log_p)))
            labels = (log_p.detach().double().exp().cumsum(-1) <= u[:, None]).sum(-1)
        return -log_p.gather(-1, labels[:, None]).mean()


class Mas(Ewc):
    """All importances so far, at the latest anchor."""

    factor = 1.0

    def phase_end(self) -> None:
        found, before = self.importance(), self.anchors[0][0] if self.anchors else {}
        total = {name: value + before.get(name, 0.0) for name, value in found.items()}
        self.anchors = [(total, self.weights())]

    def importance(self) -> Weights:
        return self.mean(torch.abs)

    def measure(self, number: int, row: Tensor) -> Tensor:
        return self.run.model.logits(row[None, :-1])[0].square().sum(-1).mean()


class Si(Mas):
    """By the path of the gradient of the loss alone along the whole step."""

    def phase_start(self) -> None:
        self.path = {name: torch.zeros_like(p) for name, p in self.run.params.items()}
        self.start = self.weights()

    def see(self, loss: Tensor) -> None:
        found = torch.autograd.grad(loss, list(self.run.params.values()), retain_graph=True)
        self.raw, self.before = dict(zip(self.run.params, found, strict=True)), self.weights()

    def after_step(self) -> None:
        for name, p in self.run.params.items():
            self.path[name] -= self.raw[name] * (p - self.before[name])

    def importance(self) -> Weights:
        found = {}
        for name, now in self.weights().items():
            found[name] = self.path[name] / ((now - self.start[name]) ** 2 + self.options.xi)
            if self.options.negative == "clip":
                found[name] = found[name].clamp(min=0.0)
        return found


KINDS = {"ewc": Ewc, "mas": Mas, "si": Si}
