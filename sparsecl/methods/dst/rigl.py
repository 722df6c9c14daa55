"""RigL: drop the weakest weights, grow where the gradient of the dense matrix is largest.

Source: Evci et al. 2020, https://arxiv.org/abs/1911.11134, and its public code
(google-research/rigl). At a rewire of step t, from step 0 to `end`, the int(f_t N) weights of
smallest |w| of a layer's N go, and as many of the largest |dense gradient| of that step come among
all cells that are not kept. A weight that was dropped and comes back keeps its value and moments; a
new one begins at zero. The change of the graph takes the place of the weights' step.
f_t = alpha / 2 (1 + cos(pi t / end)).

Differs: equal |w| go in the order of the matrix (the code adds noise of 1e-5). The step is skipped
at t = end too, where the cosine leaves nothing to drop, as the code does.
"""

from torch import Tensor

from sparsecl.methods.context import MethodContext, Progress
from sparsecl.methods.dst.base import (
    DropAndGrow,
    InPlaceOfAStep,
    LayerView,
    largest_absent,
    weakest,
)
from sparsecl.methods.dst.config import RiglConfig
from sparsecl.methods.many_steps import ManySteps


class Rigl(InPlaceOfAStep, DropAndGrow):
    """RigL: the graph moves in place of the weights' step."""

    name = "rigl"
    config: RiglConfig

    def step_start(self, context: MethodContext) -> None:
        super().step_start(context)
        if self.at is not None:
            context.arm_dense_gradients()

    def move(self, context: MethodContext, at: Progress) -> None:
        self._fraction = self.fraction(at)
        for one in context.each():
            self.rewire(one)

    def many_steps(self, context: MethodContext) -> ManySteps | None:
        return self.idle_steps(context, context.progress)

    def drop(self, context: MethodContext, choice: LayerView) -> Tensor:
        """The weakest, whatever their sign."""
        return weakest(choice, int(choice.values.numel() * self._fraction))

    def grow(self, context: MethodContext, choice: LayerView, dropped: Tensor) -> Tensor:
        """Where the dense gradient is largest, among all that is not kept."""
        gradient = context.dense_gradient(choice.name)
        return largest_absent(context, choice, dropped, gradient)
