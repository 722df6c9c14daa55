"""RigL: drop the weakest weights, grow where the gradient of the dense matrix is largest.

Source: Evci et al. 2020, https://arxiv.org/abs/1911.11134, and its public code
(google-research/rigl). At a rewire of step t, from step 0 to `end`, the int(f_t N) weights of
smallest |w| of a layer's N go, and as many of the largest |dense gradient| of that step come among
all cells that are not kept. A weight that was dropped and comes back keeps its value and moments; a
new one begins at zero. The change of the graph takes the place of the weights' step.
f_t = alpha / 2 (1 + cos(pi t / end)).

Differs: equal |w| go in the order of the matrix (the code adds noise of 1e-5). The schedule runs
over the whole run and does not begin again with a domain. The step is skipped at t = end too, where
the cosine leaves nothing to drop, as the code does.
"""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from sparsecl.methods.context import MethodContext, Progress, SliceTensors
from sparsecl.methods.dst.base import DropAndGrow, LayerView, as_chosen, cosine
from sparsecl.methods.dst.config import RiglConfig


class Rigl(DropAndGrow):
    """RigL: the graph moves in place of the weights' step."""

    name = "rigl"
    config: RiglConfig

    def __init__(self, config: RiglConfig) -> None:
        super().__init__(config)
        self.last = -1  # the step of the last rewire, 0-based; -1 = none yet
        self._now: int | None = None  # the step at hand, if it is to rewire
        self._fraction = 0.0

    def is_due(self, progress: Progress) -> bool:
        """Before a step. One that was discarded is made up for by the next."""
        due = self.last < 0 or progress.step >= self.last + self.config.every
        return due and progress.step <= self._end(progress)

    def fraction(self, progress: Progress) -> float:
        """f_t."""
        if self.config.schedule == "constant":
            return self.config.drop_fraction
        return self.config.drop_fraction * cosine(progress.step, self._end(progress))

    def _end(self, progress: Progress) -> int:
        return int(self.config.end * progress.total_steps)

    def step_start(self, context: MethodContext) -> None:
        progress = context.progress
        self._now = progress.step if self.is_due(progress) else None
        if self._now is not None:
            self._fraction = self.fraction(progress)
            context.arm_dense_gradients()

    def after_backward(self, context: MethodContext) -> None:
        if self._now is not None:
            context.skip_update()

    def after_step(self, context: MethodContext, *, applied: bool) -> None:
        """Rewire every layer, unless the step's gradients were bad."""
        if self._now is not None and context.update_skipped:
            self.rewire(context)
            self.last = self._now

    def drop(self, context: MethodContext, choice: LayerView) -> Tensor:
        """The weakest, whatever their sign."""
        num = int(choice.values.numel() * self._fraction)
        return choice.values.abs().argsort(stable=True)[:num]

    def grow(self, context: MethodContext, choice: LayerView, dropped: Tensor) -> Tensor:
        """Where the dense gradient is largest, among all that is not kept."""
        score = as_chosen(context, choice.name, context.dense_gradient(choice.name)).abs()
        kept = choice.live.clone()
        kept[dropped] = False
        score.masked_fill_(kept.to(score.device), -1.0)
        return score.sort(stable=True, descending=True).indices[: dropped.numel()].cpu()

    def state_dict(self) -> tuple[Mapping[str, SliceTensors], Mapping[str, Any]]:
        return super().state_dict()[0], {"last": self.last}

    def check_state(self, tensors: Collection[str], values: Mapping[str, Any]) -> None:
        super().check_state(tensors, values)
        if not -1 <= values["last"] < 2**62:
            raise ValueError(f"last: {values['last']} is no step")

    def load_state_dict(
        self, tensors: Mapping[str, SliceTensors], values: Mapping[str, Any]
    ) -> None:
        super().load_state_dict(tensors, values)
        self.last = values["last"] if values else -1
