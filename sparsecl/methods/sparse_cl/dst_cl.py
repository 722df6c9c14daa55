"""Dynamic sparse training in a sequence of domains: each has a graph of its own, found while it is
trained, and what it has trained is frozen.

Source: Yildirim et al. 2024 (CPAL, https://arxiv.org/abs/2308.14831) and its public code. A phase
begins with a random graph over all cells, those of earlier domains too: it reads these and does
not change them. Every `every` steps each layer drops ceil(f N) of its N weights and grows as many;
f = final + (drop - final) (1 + cos(pi t / T)) / 2 over the phase. What comes is drawn from all
absent cells (random), from those that have never lived (unfired, then from all), or is where
|gradient| is largest (gradient), or |m / (sqrt v + 1e-8)| with Adam's running means m and v of the
dense gradient (momentum). Gradients of frozen weights are zero, so these two never choose one.

Differs: norms, biases and everything else on no graph are held after the first phase; the code
shares them, and forgets through them. The first phase has the graph of `topology`, whose counts
(allocation uniform or erk) the later ones keep exactly, where the code draws each cell by itself. A
weight that was just dropped is not grown again in the same rewire, and none are grown after a
phase's last step. (w gradient)^2 is of the gradient of the step's loss for frozen weights too. Own
reading for a GPT: all linears have graphs, and the domains share embedding and output layer; free
weights of a new graph begin as those of a new model. Adam's moments of them begin at zero.

At drop_fraction 0 and final_fraction 0 the first phase is plain training, bit for bit.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparsecl.errors import UserError
from sparsecl.methods.context import MethodContext
from sparsecl.methods.dst.base import LayerView, as_chosen, random_absent
from sparsecl.methods.sparse_cl.config import DstClConfig
from sparsecl.methods.sparse_cl.isolated import Isolated, packed, unpacked

BETAS = (0.9, 0.999)  # of m and v: Adam's defaults, with which the public code trains
EPS = 1e-8


class DstCl(Isolated):
    """Growth is one of four."""

    name = "dst_cl"
    config: DstClConfig

    def __init__(self, config: DstClConfig) -> None:
        super().__init__(config)
        self.lived: dict[str, Tensor] = {}
        """unfired: cells that have lived at some time, as `packed` has them."""

        self.means: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}
        """momentum: of the dense gradient, fp32 [O, I] of the global matrix, of this phase; on the
        CPU, the same on all ranks."""

    def begin(self, context: MethodContext) -> Mapping[str, Tensor]:
        self.means, self.squares = {}, {}
        if not self.graphs:
            return {}
        found = {}
        for name, entry in context.sparse.items():
            mask = torch.zeros(entry.topology.mask().shape, dtype=torch.bool)
            rng = context.generator(self.name, "graph", context.progress.phase, name)
            num = entry.topology.num_live
            chosen = torch.from_numpy(rng.choice(mask.numel(), size=num, replace=False))
            mask.view(-1)[chosen] = True
            self._check_room(context, name, mask)
            found[name] = mask
        return found

    def _check_room(self, context: MethodContext, name: str, mask: Tensor) -> None:
        free = ~self.frozen(context, name)
        if not (free & mask).any():
            raise UserError(
                f"methods.dst_cl: phase {context.progress.phase} ({context.domain}) has nothing to "
                f"train in {name}: {int(free.sum())} of its {mask.numel()} weights belong to no "
                f"earlier domain, and of the {int(mask.sum())} of its graph none. Lower "
                "topology.density, or train fewer phases."
            )

    def step_start(self, context: MethodContext) -> None:
        due = self.config.shows_gradients and self.is_due_before(context)
        if due or self.config.growth == "momentum":
            context.arm_dense_gradients()

    def after_step(self, context: MethodContext, *, applied: bool) -> None:
        if applied and self.config.growth == "momentum":
            for name in context.sparse:
                gradient = context.joined(name, context.dense_gradient(name)).cpu()
                mean = self.means.setdefault(name, torch.zeros_like(gradient))
                square = self.squares.setdefault(name, torch.zeros_like(gradient))
                mean.lerp_(gradient, 1.0 - BETAS[0])
                square.lerp_(gradient.square(), 1.0 - BETAS[1])
        super().after_step(context, applied=applied)

    def drop(self, context: MethodContext, choice: LayerView) -> Tensor:
        fraction, places = self.fraction(context.progress), choice.places
        if self.config.drop == "per_sign":
            gone = []
            for sign in (1.0, -1.0):
                of_sign = (choice.values * sign > 0).nonzero().view(-1)
                order = choice.values[of_sign].abs().argsort(stable=True)
                gone.append(of_sign[order[: math.ceil(fraction * of_sign.numel())]])
            return places[torch.cat(gone)]
        num = math.ceil(fraction * places.numel())
        if self.config.drop == "magnitude":
            size = choice.values.abs()
        else:
            size = (choice.values * self._gradient(context, choice)[places]).square()
        return places[size.argsort(stable=True)[:num]]

    def grow(self, context: MethodContext, choice: LayerView, num: int) -> Tensor:
        kind, name = self.config.growth, choice.name
        if kind == "random":
            return random_absent(context, self.name, choice, num)
        if kind == "unfired":
            return self._unfired(context, choice, num)
        if kind == "gradient":
            score = self._gradient(context, choice).abs()
        else:
            score = (self.means[name] / (self.squares[name].sqrt() + EPS)).abs().view(-1)
        closed = choice.live | self.frozen(context, name).view(-1)
        num = min(num, int((~closed).sum()))
        score = score.masked_fill(closed, -1.0)
        return score.sort(stable=True, descending=True).indices[:num]

    def _unfired(self, context: MethodContext, choice: LayerView, num: int) -> Tensor:
        """Those that have never lived at random, and then all others."""
        lived = choice.live | self.frozen(context, choice.name).view(-1)
        if choice.name in self.lived:
            lived |= unpacked(self.lived[choice.name], choice.shape).view(-1)
        rng = context.generator(self.name, choice.name, context.progress.step)
        found = []
        for some in (~lived, lived & ~choice.live):
            places = some.nonzero().view(-1)
            size = min(num, places.numel())
            found.append(places[torch.from_numpy(rng.choice(len(places), size, replace=False))])
            num -= size
        grown = torch.cat(found)
        lived[grown] = True
        self.lived[choice.name] = packed(lived)
        return grown

    def _gradient(self, context: MethodContext, choice: LayerView) -> Tensor:
        """Of all cells, fp32 [O I], on the CPU. Collective over the world."""
        return as_chosen(context, choice.name, context.dense_gradient(choice.name)).cpu()

    def arrays(self) -> Mapping[str, Tensor]:
        found = dict(super().arrays())
        for kind, kept in self._own().items():
            found |= {f"{kind}.{name}": value for name, value in kept.items()}
        return found

    def _own(self) -> dict[str, dict[str, Tensor]]:
        return {"lived": self.lived, "mean": self.means, "square": self.squares}

    def check_arrays(self, arrays: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        graphs = {}
        for key, value in arrays.items():
            kind = key.partition(".")[0]
            if kind in ("mean", "square"):
                if value.dtype != torch.float32 or value.dim() != 2:
                    raise ValueError(f"{key}: {value.dtype} {list(value.shape)} is no mean")
            elif kind == "lived":
                if value.dtype != torch.uint8 or value.dim() != 1:
                    raise ValueError(f"{key}: {value.dtype} {list(value.shape)} are no bits")
            else:
                graphs[key] = value
        super().check_arrays(graphs, values)

    def load_arrays(self, arrays: Mapping[str, Tensor]) -> None:
        super().load_arrays(arrays)
        for kept in self._own().values():
            kept.clear()
        for key, value in arrays.items():
            kind, _, name = key.partition(".")
            if kind in self._own():
                self._own()[kind][name] = value
