"""GraNet: prune along a cubic, and replace some of what is left where gradients are large.

Source: Liu et al. 2021, https://arxiv.org/abs/2106.10404, and its public code (VITA-Group/GraNet).
The weights step. Then, every `every` steps: (1) the smallest |w| go until the density is that of
the cubic; (2) of each layer ceil(f N) more of the smallest go, and (3) as many come where the dense
gradient of this step is largest among all that is not kept. One that (2) dropped and (3) brings
back keeps its value. f falls along a cosine from `drop_fraction` to `final_fraction`.

Differs: Adam's moments of what was dropped are zero (the code leaves them); the last pruning
happens, unless `exact_final` is false; the classifier is no part of the topology. A layer is never
pruned to nothing: it keeps one weight.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from sparsecl.methods.context import MethodContext, Progress, SliceTensors
from sparsecl.methods.dst.base import (
    DropAndGrow,
    LayerView,
    check_counts,
    largest_absent,
    weakest,
)
from sparsecl.methods.dst.clock import cubic
from sparsecl.methods.dst.config import GranetConfig
from sparsecl.methods.dst.falling import Falling


class Granet(DropAndGrow):
    """GraNet: the weights step, then the graph shrinks and moves."""

    name = "granet"
    config: GranetConfig

    def __init__(self, config: GranetConfig) -> None:
        super().__init__(config)
        self.falling = Falling(config.final_density or 0.1, relative=config.final_density is None)

    def step_start(self, context: MethodContext) -> None:
        if self.is_due_before(context):
            context.arm_dense_gradients()

    def after_step(self, context: MethodContext, *, applied: bool) -> None:
        if not (applied and self.is_due_after(context)):
            return
        done = self.pruned_share(context.progress)
        if done is not None:
            masks = self.falling.masks(
                context, cubic, done, together=self.config.scope == "global", score=_size
            )
            for name, mask in masks.items():
                self.set_live(context, name, mask)
        self.rewire(context)

    def pruned_share(self, progress: Progress) -> float | None:
        """Share of the prunings that this one completes; None when there is none to do."""
        return self.config.pruned_share(progress)

    def drop(self, context: MethodContext, choice: LayerView) -> Tensor:
        """The weakest, whatever their sign; one stays."""
        num = math.ceil(choice.values.numel() * self.fraction(context.progress))
        return weakest(choice, min(num, choice.values.numel() - 1))

    def grow(self, context: MethodContext, choice: LayerView, dropped: Tensor) -> Tensor:
        return largest_absent(context, choice, dropped, context.dense_gradient(choice.name))

    def state_dict(self) -> tuple[Mapping[str, SliceTensors], Mapping[str, Any]]:
        return super().state_dict()[0], {"start": dict(self.falling.start)}

    def check_state(self, tensors: Collection[str], values: Mapping[str, Any]) -> None:
        super().check_state(tensors, values)
        check_counts(values["start"])

    def load_state_dict(
        self, tensors: Mapping[str, SliceTensors], values: Mapping[str, Any]
    ) -> None:
        super().load_state_dict(tensors, values)
        self.falling.start = dict(values["start"]) if values else {}


def _size(choice: LayerView) -> Tensor:
    return choice.values.abs()
