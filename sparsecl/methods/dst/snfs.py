"""Sparse networks from scratch: grow where the running mean of the dense gradient is largest.

Source: Dettmers & Zettlemoyer 2019, https://arxiv.org/abs/1907.04840, as google-research/rigl has
it: the weights step; then of each layer the int(f N) weights of smallest |w| go, and as many come
where |m| is largest among what is not kept, with m = decay m + (1 - decay) dense gradient.

Differs: each layer keeps its count; the first paper also moves weights from layer to layer.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparsecl.methods.context import MethodContext
from sparsecl.methods.dst.base import DropAndGrow, LayerView, largest_absent, weakest
from sparsecl.methods.dst.config import SnfsConfig


class Snfs(DropAndGrow):
    """SNFS: the weights step, then the graph moves."""

    name = "snfs"
    config: SnfsConfig

    def __init__(self, config: SnfsConfig) -> None:
        super().__init__(config)
        self.means: dict[str, Tensor] = {}
        """By parameter, fp32 [O, I] of the global matrix, the same on all ranks: absent cells
        belong to no slice."""

    def step_start(self, context: MethodContext) -> None:
        context.arm_dense_gradients()

    def after_step(self, context: MethodContext, *, applied: bool) -> None:
        if not applied:
            return
        for name in context.sparse:
            gradient = context.joined(name, context.dense_gradient(name))
            mean = self.means.get(name)
            # One from a checkpoint is on the CPU.
            mean = torch.zeros_like(gradient) if mean is None else mean.to(gradient.device)
            self.means[name] = mean.lerp_(gradient, 1.0 - self.config.decay)
        if self.is_due_after(context):
            self.rewire(context)

    def drop(self, context: MethodContext, choice: LayerView) -> Tensor:
        """The weakest, whatever their sign."""
        return weakest(choice, int(choice.values.numel() * self.fraction(context.progress)))

    def grow(self, context: MethodContext, choice: LayerView, dropped: Tensor) -> Tensor:
        local = context.local_of(choice.name, self.means[choice.name])
        return largest_absent(context, choice, dropped, local)

    def arrays(self) -> Mapping[str, Tensor]:
        return {name: mean.cpu() for name, mean in self.means.items()}

    def check_arrays(self, arrays: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        for name, mean in arrays.items():
            if mean.dtype != torch.float32 or mean.dim() != 2:
                raise ValueError(f"{name}: {mean.dtype} {list(mean.shape)} is no mean of a matrix")

    def load_arrays(self, arrays: Mapping[str, Tensor]) -> None:
        self.means = dict(arrays)
