"""Where the networks of a pack are, and what the task has summed up so far."""

from dataclasses import dataclass
from typing import Any

import numpy as np

COUNTS = ("pack", "task", "step", "looks", "checks")


@dataclass
class Position:
    """Part of every checkpoint."""

    pack: int = 0
    """Of config.packs."""

    task: int = 0
    step: int = 0
    """Optimizer steps done in this task."""

    correct: Any = None
    """int64 [N], images of this task that were answered right before they were trained."""

    looks: int = 0
    """At what an update gains."""

    checks: int = 0
    """Audits so far, of all packs."""

    p: Any = None
    """fp64 [2, N], sums of p(Z), clamped and not, over the looks of this task."""

    @classmethod
    def of(cls, pack: int, num_networks: int, checks: int = 0) -> "Position":
        """The begin of a pack."""
        return cls(pack=pack, checks=checks).cleared(num_networks)

    def cleared(self, num_networks: int) -> "Position":
        """Forget the sums of a task."""
        self.correct = np.zeros(num_networks, dtype=np.int64)
        self.p, self.looks = np.zeros((2, num_networks)), 0
        return self

    def as_json(self) -> dict[str, Any]:
        counts = {name: getattr(self, name) for name in COUNTS}
        return {**counts, "correct": self.correct.tolist(), "p": self.p.tolist()}

    @classmethod
    def from_json(cls, value: Any, num_networks: int) -> "Position":
        """Raises ValueError for what `as_json` never gives."""
        if not isinstance(value, dict) or set(value) != {*COUNTS, "correct", "p"}:
            raise ValueError(f"position: must have {', '.join(COUNTS)}, correct and p")
        for name in COUNTS:
            if type(value[name]) is not int or value[name] < 0:
                raise ValueError(f"position.{name}: {value[name]!r:.40} is no count")
        correct, p = np.asarray(value["correct"]), np.asarray(value["p"])
        if correct.shape != (num_networks,) or correct.dtype != np.int64:
            raise ValueError("position.correct is not one count for each network")
        if p.shape != (2, num_networks) or p.dtype != np.float64 or not np.isfinite(p).all():
            raise ValueError("position.p is not two finite sums for each network")
        return cls(**{**value, "correct": correct, "p": p})
