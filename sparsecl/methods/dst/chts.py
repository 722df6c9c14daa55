"""CHTs: soft removal, and growth drawn by Cannistraci-Hebb scores. CHTss: the density falls too.

Source: Zhang et al., NeurIPS 2025, https://arxiv.org/abs/2501.19107, and its two public codes. In
place of every `every`-th step of the weights: int(f N) weights of a layer go, the others are kept
at random by score^T (`removal`, `temperature`: T rises in a line to `end`), and as many cells come,
at random by their CH2-L3n score (`growth: sampled`, the first code) or the highest (`top`, the
second). CHTss (`final_density`) first prunes to a density that falls along a sigmoid.

Differs: removal draws among live weights only (the second code lets absent ones in with a chance of
about 0), and both draws are Gumbel top-k, for any size. Pruning goes on to `prune_end` also where
the graph does not move any more. EM_S (`em_s`) shrinks all layers alike, so that layers of
other densities have targets of their own. By heads (`per_head`) each keeps its count; the second
code gives all heads of a layer the same one at its first rewire.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsecl.methods.context import MethodContext, Progress, SliceTensors
from sparsecl.methods.dst.base import InPlaceOfAStep, LayerView, check_counts
from sparsecl.methods.dst.choice import highest
from sparsecl.methods.dst.clock import shrunk, sigmoid
from sparsecl.methods.dst.config import ChtsConfig
from sparsecl.methods.dst.falling import Falling
from sparsecl.methods.dst.hebb import Hebb, sampled, shared


class Chts(InPlaceOfAStep, Hebb):
    """CHTs and CHTss: the graph moves in place of the weights' step."""

    name = "chts"
    config: ChtsConfig

    def __init__(self, config: ChtsConfig) -> None:
        super().__init__(config)
        self.falling = Falling(config.final_density or 1.0, relative=False)
        self._target: dict[str, int] = {}
        """With a surplus: live weights of each layer that a rewire leaves before it grows."""

    def pruned_share(self, progress: Progress) -> float | None:
        """Share of the prunings that one now completes; None when there is none to do."""
        return self.config.pruned_share(progress)

    def move(self, context: MethodContext, at: Progress) -> None:
        self._power = self.temperature(at)
        done = self.pruned_share(at)
        if done is not None:
            masks = self.falling.masks(context, sigmoid, done, together=False, score=self.score)
            for name, mask in masks.items():
                self.set_live(context, name, mask)
        if self.config.clock(at) is not None or self.config.em_s is not None:
            self._fraction = self.fraction(at)
            self.turn(context, list(context.sparse), self.counts(context, at))

    def counts(self, context: MethodContext, at: Progress) -> dict[str, int]:
        """Live weights of each layer after the rewire of this moment."""
        now = {name: entry.topology.num_live for name, entry in context.sparse.items()}
        if self.config.em_s is None:
            return now
        if not self.falling.start:
            self.falling.start = now
        start, sparse = self.falling.start, context.sparse.values()
        cells = sum(entry.topology.num_cells for entry in sparse)
        left, grown = self.config.em_s_shares(at, sum(start.values()) / cells)
        self._target = shrunk(start, left)
        return shrunk(start, grown)

    def temperature(self, progress: Progress) -> float:
        """T of this moment."""
        now, (first, last) = self.config.clock(progress), self.config.temperature
        return last if now is None else first + (last - first) * now.step / max(now.end, 1)

    def score(self, choice: LayerView) -> Tensor:
        """What a live weight is kept for, fp32 [N]."""
        if self.config.removal == "magnitude":
            return choice.values.abs()
        size = choice.values.new_zeros(choice.live.numel())
        size[choice.places] = choice.values.abs()
        size = size.view(choice.shape)
        rows, columns = (size.sum(dim=dim, keepdim=True).clamp_(min=1e-30) for dim in (1, 0))
        return (size / rows + size / columns).view(-1)[choice.places] + 1e-5

    def num_parts(self, context: MethodContext, name: str) -> int:
        shape = context.sparse[name].layer.shape
        by_head = self.config.per_head and shape.head_width
        return shape.out_features // shape.head_width if by_head else 1

    def kept(self, name: str, sizes: list[int]) -> list[int]:
        if self.config.em_s is None:
            return super().kept(name, sizes)
        return list(map(min, sizes, shared(self._target[name], sizes)))

    def keep(self, context: MethodContext, choice: LayerView, num: int) -> Tensor:
        rng = context.generator(
            self.name, "keep", choice.name, context.progress.step, *self._head(choice.part)
        )
        # A weight of 0 still has a chance, as in the code.
        score = self.score(choice).double().clamp_(min=1e-12)
        return sampled(score, num, self._power, _uniform(rng, score))

    def choose(
        self, context: MethodContext, name: str, part: int, score: Tensor, num: int
    ) -> Tensor:
        rng = context.generator(self.name, name, context.progress.step, *self._head(part))
        if self.config.growth == "top":
            return highest(score, num, int(rng.integers(2**63)))
        return sampled(score.double(), num, 1.0, _uniform(rng, score))

    @staticmethod
    def _head(part: int) -> tuple[int, ...]:
        """What tells the random streams of heads apart."""
        return (part,) if part else ()

    def state_dict(self) -> tuple[Mapping[str, SliceTensors], Mapping[str, Any]]:
        tensors, values = super().state_dict()
        return tensors, {**values, "start": dict(self.falling.start)}

    def check_state(self, tensors: Collection[str], values: Mapping[str, Any]) -> None:
        super().check_state(tensors, values)
        check_counts(values["start"])

    def load_state_dict(
        self, tensors: Mapping[str, SliceTensors], values: Mapping[str, Any]
    ) -> None:
        super().load_state_dict(tensors, values)
        self.falling.start = dict(values["start"]) if values else {}


def _uniform(rng: np.random.Generator, like: Tensor) -> Tensor:
    """fp64 in [0, 1), as many as `like` has and where it is."""
    return torch.from_numpy(rng.random(like.numel())).to(like.device)
