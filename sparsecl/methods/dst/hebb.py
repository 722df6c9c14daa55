"""Rewiring by the paths of the graph: what CHT and CHTs share.

A rewire removes weights in every layer, takes out dead ends (percolation.py), and grows what is
missing to each layer's count where scores.py wants it. What comes begins at zero, also if it has
just been removed. Scores know the graph alone, so ties are many: they are broken at random.
"""

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from sparsecl import dist
from sparsecl.methods.context import MethodContext
from sparsecl.methods.dst.base import LayerView, Rewirer, look
from sparsecl.methods.dst.config import HebbConfig
from sparsecl.methods.dst.percolation import percolate
from sparsecl.methods.dst.scores import scores

FILL = 1e-5
"""Score of every absent cell where paths lead to fewer than must grow."""


class Hebb(Rewirer):
    """Removal and the count are what a relative means."""

    config: HebbConfig

    @abstractmethod
    def keep(self, context: MethodContext, choice: LayerView) -> Tensor:
        """bool [N]: which live weights stay."""

    @abstractmethod
    def choose(self, context: MethodContext, name: str, score: Tensor, num: int) -> Tensor:
        """Which absent cells come: int64 [num] of those with score [cells] above 0."""

    def grown(self, name: str, removed: Tensor, came: Tensor) -> None:
        """What a layer has lost to `keep` and gained again, bool [cells]."""

    def turn(self, context: MethodContext, names: list[str], counts: Mapping[str, int]) -> None:
        """One rewire. Collective over the world.

        Args:
            names: of the layers that move; the others stay as they are.
            counts: live weights of each layer afterwards.
        """
        before = {name: look(context, name) for name in context.sparse}
        masks: dict[str, Tensor] = {}
        for name, choice in before.items():
            mask = choice.live.clone()
            if name in names:
                mask[choice.places] = self.keep(context, choice)
            masks[name] = mask.view(choice.shape)
        removed = {name: before[name].live & ~masks[name].view(-1) for name in names}
        if self.config.percolate:
            kept = {name: mask.clone() for name, mask in masks.items()}
            percolate(kept)
            # An emptied layer would stay empty for ever: no path leads through it.
            masks.update({name: kept[name] for name in names if kept[name].any()})
        for name in names:
            mask = masks[name]
            came = self._grow(context, name, mask, counts[name] - int(mask.sum()))
            # In two moves: what goes and comes at once begins at zero too.
            self.set_live(context, name, mask)
            if came.any():
                self.set_live(context, name, mask | came.view(mask.shape))
            self.grown(name, removed[name], came)

    def _grow(self, context: MethodContext, name: str, mask: Tensor, num: int) -> Tensor:
        """bool [cells]: `num` absent cells that come, or as many as there are."""
        came = torch.zeros(mask.numel(), dtype=torch.bool)
        absent = ~mask.view(-1)
        num = min(num, int(absent.sum()))
        if num > 0:
            score = scores(mask.to(dist.device()), self.config.score).cpu().view(-1)
            if int((score > 0).sum()) < num:
                score[absent] += FILL
            came[self.choose(context, name, score, num)] = True
        return came


def highest(score: Tensor, num: int, ties: Tensor) -> Tensor:
    """The `num` highest of score [cells], int64; of equal ones those of the lowest `ties` [cells],
    any order of all cells."""
    order = ties.argsort()
    return order[score[order].argsort(descending=True, stable=True)[:num]]


def sampled(score: Tensor, num: int, power: float, uniform: Tensor) -> Tensor:
    """Draw `num` cells one after the other, each in proportion to score^power among those left.

    As the `num` largest of power log(score) + Gumbel noise, which has the same distribution (Kool
    et al. 2019, https://arxiv.org/abs/1903.06059) and no limit of size; in logs no power is 0.

    Args:
        score: >= 0; 0 is drawn only when nothing else is left.
        uniform: fp64 in [0, 1), like score: where the noise comes from.

    Returns:
        int64 [num].
    """
    noise = -torch.log(-torch.log(uniform.clamp(min=1e-300)))
    # 0 times -inf is no number: at power 0 all that is above 0 is equal.
    logs = torch.where(score > 0, power * score.clamp(min=1e-300).log(), -torch.inf)
    return (logs + noise).topk(num).indices
