"""Competitive down-scaling: all weights of a linear shrink, except the strongest.

After the synaptic homeostasis hypothesis (Tononi & Cirelli 2014, Neuron 81), that sleep weakens
synapses and spares strong ones: w <- (1 - amount) w, and the share `protected` of the weights of
largest |w| keeps its size. So what stands out does so 1 / (1 - amount) times as much as before.

What is strong is told apart over the live weights of a whole matrix, whatever its split, before
the step after which the others shrink. Norms, the embedding and what is absent or held stay as they
are.
"""

from collections.abc import Collection, Mapping

import torch

from sparsecl.methods.context import MethodContext, SliceTensors
from sparsecl.methods.model_side import ModelSide
from sparsecl.optim.slice import Slice
from sparsecl.sparse.linear import SparseLinear


class DownScaling:
    """Part of a method, which says when."""

    def __init__(self, amount: float, protected: float) -> None:
        self.amount, self.protected = amount, protected
        self.linears: Mapping[str, SparseLinear] = {}
        self._weak: SliceTensors = {}
        """Which weights shrink after the step at hand, bool by slice; empty = nothing is due."""

    def attach(self, model: ModelSide) -> None:
        self.linears = {f"{name}.weight": layer for name, layer in model.linears().items()}

    def step_start(self, context: MethodContext, *, due: bool) -> None:
        """Look at the weights if they shrink after this step. Collective over the world then."""
        strong = self.strongest(context, self.protected) if due and self.amount else {}
        self._weak = {name: ~part for name, part in strong.items()}

    def after_update(self, context: MethodContext, items: Collection[Slice]) -> None:
        """Shrink masters that have just stepped. Local."""
        for item in items:
            if item.name in self._weak:
                shrunk = item.master * (1.0 - self.amount)
                item.master.copy_(torch.where(self._weak[item.name], shrunk, item.master))

    def strongest(self, context: MethodContext, share: float) -> SliceTensors:
        """Which live weights are the `share` of largest |w| in their linear, and those as large as
        the last of them: bool by slice, of the linears. Collective over the world."""
        found: SliceTensors = {}
        for name, layer in self.linears.items():
            sizes = live_weights(context, name, layer).abs()
            num, item = round(share * sizes.numel()), context.slices.find(name)
            least = sizes.kthvalue(sizes.numel() - num + 1).values if num else torch.inf
            if item is not None:
                size = item.master.abs()
                found[name] = (size >= float(least)) & (size > 0.0)  # not what is absent
        return found


def live_weights(context: MethodContext, name: str, layer: SparseLinear) -> torch.Tensor:
    """Masters of a linear's live weights over all tp ranks, flat. Collective over the world."""
    matrix = context.matrix(name)
    if layer.topology is None:
        return matrix.view(-1)
    return matrix[torch.from_numpy(layer.topology.mask()).to(matrix.device)]
