"""Rewiring by the paths of the graph: what CHT and CHTs share.

A rewire removes weights in every layer, takes out dead ends (percolation.py), and grows what is
missing to each layer's count where scores.py wants it. What comes begins at zero, also if it has
just been removed. Scores know the graph alone, so ties are many: they are broken at random.
"""

from abc import abstractmethod
from collections.abc import Mapping
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from sparsecl.methods.context import MethodContext
from sparsecl.methods.dst.base import LayerView, Rewirer, look
from sparsecl.methods.dst.choice import largest
from sparsecl.methods.dst.config import HebbConfig
from sparsecl.methods.dst.percolation import percolate
from sparsecl.methods.dst.scores import scores

FILL = 1e-5
"""Score of every absent cell where paths lead to fewer than must grow."""


class Hebb(Rewirer):
    """Removal and the count are what a relative means."""

    config: HebbConfig

    _fraction = 0.0
    """Of live weights that go at this rewire."""

    def kept(self, name: str, sizes: list[int]) -> list[int]:
        """How many live weights stay in each part of a layer, of as many as `sizes` says."""
        return [num - int(num * self._fraction) for num in sizes]

    @abstractmethod
    def keep(self, context: MethodContext, choice: LayerView, num: int) -> Tensor:
        """bool [N]: which `num` live weights stay, of all of a layer or of a part of it."""

    @abstractmethod
    def choose(
        self, context: MethodContext, name: str, part: int, score: Tensor, num: int
    ) -> Tensor:
        """Which absent cells come: bool [cells], `num` of those with score [cells] above 0, all of
        them of one `part` of the layer."""

    def num_parts(self, context: MethodContext, name: str) -> int:
        """Of how many parts of as many rows a layer is that choose for themselves."""
        return 1

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
                parts = split(choice, self.num_parts(context, name))
                kept = self.kept(name, [part.values.numel() for part in parts])
                stays = [self.keep(context, *some) for some in zip(parts, kept, strict=True)]
                mask[choice.places] = torch.cat(stays)
            masks[name] = mask.view(choice.shape)
        removed = {name: before[name].live & ~masks[name].view(-1) for name in names}
        if self.config.percolate:
            kept = {name: mask.clone() for name, mask in masks.items()}
            percolate(kept)
            # An emptied layer would stay empty for ever: no path leads through it.
            masks.update({name: kept[name] for name in names if kept[name].any()})
        for name in names:
            mask, came = masks[name], []
            parts = split(before[name], self.num_parts(context, name))
            wanted = shared(counts[name], [part.values.numel() for part in parts])
            for index, left in enumerate(mask.chunk(len(parts))):
                num = max(0, wanted[index] - int(left.count_nonzero()))
                came.append(self._grow(context, name, index, left, num))
            came = torch.cat(came)
            # In two moves: what goes and comes at once begins at zero too.
            self.set_live(context, name, mask)
            if came.any():
                self.set_live(context, name, mask | came.view(mask.shape))
            self.grown(name, removed[name], came)

    def _grow(self, context: MethodContext, name: str, part: int, mask: Tensor, num: int) -> Tensor:
        """bool [cells] of a part of a layer: `num` absent ones that come, or all there are."""
        absent = ~mask.view(-1)
        num = min(num, int(absent.count_nonzero()))
        if num == 0:
            return torch.zeros_like(absent)
        score = scores(mask, self.config.score).view(-1)
        if int((score > 0).count_nonzero()) < num:
            score += absent * FILL
        return self.choose(context, name, part, score, num)


def split(choice: LayerView, num: int) -> list[LayerView]:
    """A layer in `num` parts of as many rows, in their order."""
    if num == 1:
        return [choice]
    shape = torch.Size([choice.shape[0] // num, choice.shape[1]])
    lives = choice.live.chunk(num)
    sizes = torch.stack([live.count_nonzero() for live in lives]).tolist()
    values = choice.values.split(sizes)
    of = zip(lives, values, strict=True)
    return [LayerView(choice.name, shape, part, *both) for part, both in enumerate(of)]


def shared(total: int, sizes: list[int]) -> list[int]:
    """`total` in whole shares in the proportion of sizes; the sizes themselves if they add up."""
    whole, edges = sum(sizes), [0]
    for up_to in accumulate(sizes):
        edges.append((2 * total * up_to + whole) // (2 * whole))
    return [high - low for low, high in pairwise(edges)]


def sampled(score: Tensor, num: int, power: float, uniform: Tensor) -> Tensor:
    """Draw `num` cells one after the other, each in proportion to score^power among those left.

    As the `num` largest of power log(score) + Gumbel noise, which has the same distribution (Kool
    et al. 2019, https://arxiv.org/abs/1903.06059) and no limit of size; in logs no power is 0.

    Args:
        score: >= 0; 0 is drawn only when nothing else is left.
        uniform: fp64 in [0, 1), like score: where the noise comes from.

    Returns:
        bool, like score.
    """
    noise = -torch.log(-torch.log(uniform.clamp(min=1e-300)))
    # 0 times -inf is no number: at power 0 all that is above 0 is equal.
    logs = torch.where(score > 0, power * score.clamp(min=1e-300).log(), -torch.inf)
    return largest(logs + noise, num)
