"""Low-rank adapters in a sequence of domains: what all of these methods share.

Source: Hu et al. 2021, LoRA, https://arxiv.org/abs/2106.09685: W + alpha / r * B A beside a frozen
W, with A [r, I] drawn and B [O, r] zero. The first phase trains the whole model, which is the base
of the later ones (or init_from gives one, and the first phase goes on with it). They train a pair
each, or all the same, and hold everything else bit for bit.

Pairs of all phases are allocated at once, stacked in one A and one B per linear: B of a later phase
is zero and adds nothing. No dropout on an adapter's input; the optimizer's weight decay applies to
the newest pair as to every matrix.

r = rank, I = in_features, O = out_features (global), P = pairs trained so far.
"""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from sparsecl.methods.adapters import overlap
from sparsecl.methods.adapters.config import AdapterConfig
from sparsecl.methods.base import Method
from sparsecl.methods.context import MethodContext
from sparsecl.methods.model_side import ModelSide
from sparsecl.optim.moving import share
from sparsecl.sparse.low_rank import LowRank


class Adapters(Method):
    """Holds everything but the base in the first phase, and but one pair in each later one."""

    config: AdapterConfig

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__(config)
        self.adapters: dict[str, int] = {}
        """Parameter -> its dim of rank * pairs."""

        self._num_pairs = 0

    def attach(self, model: ModelSide, num_phases: int) -> None:
        config = self.config
        self._num_pairs = config.num_pairs(num_phases)
        total, scale = config.rank * self._num_pairs, config.alpha / config.rank
        for layer, linear in model.linears().items():
            if linear.shape.kind not in config.kinds:
                continue
            part = LowRank(linear, total, scale)
            # Kaiming's uniform with a = sqrt(5), as PEFT draws A.
            bound = 1.0 / math.sqrt(linear.shape.in_features)
            drawn = model.generator(self.name, layer).uniform(
                -bound, bound, (total, linear.shape.in_features)
            )
            with torch.no_grad():
                part.a.copy_(share(torch.from_numpy(drawn), -1 if part.splits_b else 1))
            model.add(layer, self.name, part)
            self.adapters |= {f"{layer}.parts.{self.name}.{key}": k for k, key in enumerate("ab")}

    def phase_start(self, context: MethodContext) -> None:
        self.resumed(context)

    def began_anew(self, context: MethodContext) -> None:
        self.resumed(context)

    def resumed(self, context: MethodContext) -> None:
        """Let the newest pair learn (in the first phase: the base), and hold the rest."""
        newest = self.newest(context)
        for name, shape in context.shapes().items():
            if name in self.adapters:
                learns = torch.zeros(shape, dtype=torch.bool)
                learns.narrow(self.adapters[name], *newest).fill_(True)
            else:
                learns = torch.full(shape, newest[1] == 0)
            context.hold(name, ~learns, owner=self.name)

    def newest(self, context: MethodContext) -> tuple[int, int]:
        """(first, number) of the rows of A that this phase trains; none in the first."""
        trained, rank = self._num_trained(context), self.config.rank
        return (rank * (trained - 1), rank) if trained else (0, 0)

    def pairs(self, context: MethodContext) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(A's name, A, B) of every linear, global and of all phases. Collective over the world."""
        for name, dim in self.adapters.items():
            if dim == 0:
                yield name, context.matrix(name), context.matrix(name.removesuffix("a") + "b")

    def add_gradient(
        self, context: MethodContext, name: str, gradient: Tensor, scale: float
    ) -> None:
        """Add scale * gradient, that of the newest pair's A or B (global), to the parameter's."""
        dim, (begin, num) = self.adapters[name], self.newest(context)
        whole = gradient.new_zeros(context.global_shape(name))
        whole.narrow(dim, begin, num).copy_(gradient)
        item, part = context.slices.find(name), context.slice_of(name, whole)
        if item is not None and part is not None:
            context.add_gradient(item, part, scale)

    def figures(self, context: MethodContext) -> Mapping[str, float]:
        """How far the trained pairs share cells and directions; see overlap.py. Collective."""
        num = self._num_trained(context)
        if not num:
            return {}
        scale, rank = self.config.alpha / self.config.rank, self.config.rank
        found = overlap.Overlap()
        for _, a, b in self.pairs(context):
            found.see(
                [a[rank * i : rank * (i + 1)] for i in range(num)],
                [scale * b[:, rank * i : rank * (i + 1)] for i in range(num)],
            )
        return found.figures()

    def _num_trained(self, context: MethodContext) -> int:
        """Pairs that have been trained or are."""
        return min(context.progress.phase, self._num_pairs)
