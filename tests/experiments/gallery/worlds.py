"""Planted worlds: the loss matrix of a run follows a formula, so what a study must find is known.

t = octaves by which the learning rate is above the best one, T = phases, D = domains. Losses are in
nats per token; each world is a few lines that change this one:

    loss of a domain right after its phase    3 + 0.06 t^2
    rise of the other domains in each phase   (0.8 + 0.15 t + effect) / 1.5

The last three phases train the three domains, so F_last is 1.5 rises: all arms without an effect
lie on one frontier. Only the standard library is imported: every fake run pays for it.
"""

import math
import random
from dataclasses import dataclass

DOMAINS = ("a", "b", "c")
START = 9.0
BEST = 4e-3
"""The rate of the lowest learned loss. That of the lowest final loss is 2e-3: it forgets less."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a world knows of a run: all of it comes from the config and the options it was given."""

    arm: str
    seed: int
    order: tuple[str, ...]
    """[T]"""
    rate: float
    density: float
    """1 for a dense arm."""
    tokens_per_weight: float
    """Training tokens over live weights."""

    @property
    def sparse(self) -> bool:
        return self.density < 1.0


class NoEffect:
    """Arms are the same in all. Truth: no difference anywhere, no crossover."""

    noise = 0.02
    """Spread of every score of an arm, beside what its seed adds to all arms alike."""

    def __init__(self, master: int = 0) -> None:
        self.master = master

    def shift(self, run: Run) -> float:
        """Octaves by which the best rate of the arm is above BEST."""
        return 0.0

    def effect(self, run: Run) -> float:
        """Nats more in F_last, at every learned loss."""
        return 0.0

    def offset(self, run: Run, phase: int) -> float:
        """Nats on the loss of all domains after a phase."""
        return 0.0

    def losses(self, run: Run) -> list[list[float]]:
        """[T + 1, D]; the first row is before training."""
        octaves = math.log2(run.rate / BEST) - self.shift(run)
        learned = 3.0 + 0.06 * octaves**2
        rise = (0.8 + 0.15 * octaves + self.effect(run)) / 1.5
        rows = [dict.fromkeys(DOMAINS, START)]
        for trained in run.order:
            later = {name: min(START, loss + rise) for name, loss in rows[-1].items()}
            rows.append({**later, trained: learned})
        for phase in range(len(run.order)):
            for name in DOMAINS:
                rows[phase + 1][name] += self.offset(run, phase)
        shared = self._stream(run.seed, run.order)
        own = self._stream(run.seed, run.order, run.arm, run.rate)
        return [
            [row[name] + shared.gauss(0, 0.05) + own.gauss(0, self.noise) for name in DOMAINS]
            for row in rows
        ]

    def _stream(self, *names: object) -> random.Random:
        return random.Random(f"{type(self).__name__} {self.master} {names}")


class Noisy(NoEffect):
    """No effect, under so much noise that nothing within the margin can be shown either."""

    noise = 0.2


class Topology(NoEffect):
    """Truth: the sparse arm forgets 0.3 nats less at every learned loss."""

    def effect(self, run: Run) -> float:
        return -0.3 if run.sparse else 0.0


class Rate(NoEffect):
    """Truth: one frontier; the sparse arm needs 4 times the rate, and that is all."""

    def shift(self, run: Run) -> float:
        return 2.0 if run.sparse else 0.0


class Saturation(NoEffect):
    """Truth: forgetting rises by 0.15 nats with each doubling of tokens per live weight."""

    def effect(self, run: Run) -> float:
        return 0.15 * math.log2(run.tokens_per_weight)


class Crossing(NoEffect):
    """Truth: the sparse arm is 0.1 nats worse after each of the first phases, and 0.1 better after
    each from `at` on."""

    at = 7
    """Rounds count from 1."""

    def offset(self, run: Run, phase: int) -> float:
        return 0.0 if not run.sparse else 0.1 if phase + 1 < self.at else -0.1


class Orders(NoEffect):
    """Truth: the sparse arm forgets 0.2 nats less where a domain is followed by the next one, and
    0.2 more where the order is turned."""

    def effect(self, run: Run) -> float:
        signs = {("a", "b"): -0.2, ("c", "b"): 0.2}
        return signs.get(run.order[:2], 0.0) if run.sparse else 0.0


WORLDS = {
    world.__name__: world
    for world in (NoEffect, Noisy, Topology, Rate, Saturation, Crossing, Orders)
}


def live_weights(*, layers: int, width: int, mlp: int, density: float) -> int:
    """Weights of the matrices of all blocks that live: what a fake model is made of."""
    return round(layers * (4 * width**2 + 2 * width * mlp) * density)
