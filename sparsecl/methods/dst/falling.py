"""A density that falls during a run: pruning to an exact count. Its schedules are in clock.py."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sparsecl.methods.context import MethodContext
from sparsecl.methods.dst.base import LayerView, look
from sparsecl.methods.dst.choice import largest
from sparsecl.methods.dst.clock import shrunk

Score = Callable[[LayerView], Tensor]
"""fp32 [N]: the live weights with the smallest go."""


class Falling:
    """The density of a run's matrices on its way down; owned by a method."""

    def __init__(self, final: float, *, relative: bool) -> None:
        """`final`: density in the end, of all cells; or, `relative`, as a share of the start's."""
        self.final, self.relative = final, relative
        self.start: dict[str, int] = {}
        """Live weights of each matrix before the first pruning; part of a checkpoint."""

    def masks(
        self,
        context: MethodContext,
        schedule: Callable[[float, float, float], float],
        done: float,
        *,
        together: bool,
        score: Score,
    ) -> dict[str, Tensor]:
        """What a pruning leaves of every matrix that it shrinks, bool [O, I] by name. Collective
        over the world.

        Args:
            schedule: `cubic` or `sigmoid`.
            done: share of the prunings that this one completes.
            together: the smallest scores of all matrices go; else each keeps its share of
                the start.
        """
        if not self.start:
            self.start = {name: entry.topology.num_live for name, entry in context.sparse.items()}
        views = {name: look(context, name) for name in context.sparse}
        cells = sum(view.live.numel() for view in views.values())
        first = sum(self.start.values()) / cells
        density = schedule(first, self.final * first if self.relative else self.final, done)
        if together:
            scores = [score(view) for view in views.values()]
            # The largest of each comes first: no matrix loses all its weights.
            for some in scores:
                some[some.argmax()] = math.inf
            kept = largest(torch.cat(scores), round(density * cells))
            chosen = dict(zip(views, kept.split([len(some) for some in scores]), strict=True))
        else:
            counts = shrunk(self.start, density / first)
            chosen = {name: largest(score(v), counts[name]) for name, v in views.items()}
        found = {}
        for name, keep in chosen.items():
            if not keep.all():
                mask = torch.zeros_like(views[name].live)
                mask[views[name].places] = keep
                found[name] = mask.view(views[name].shape)
        return found
