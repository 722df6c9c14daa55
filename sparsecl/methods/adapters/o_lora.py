"""O-LoRA: a low-rank adapter for each domain, in input directions that no earlier one uses.

Source: Wang et al. 2023, https://arxiv.org/abs/2310.14152, and its public code (cmnfriend/O-LoRA):
W + alpha / r * sum_i B_i A_i with A_i [r, I] and B_i [O, r]; domain t trains A_t and B_t on
loss + l1 * sum |A_old A_t^T|, where A_old stacks the A_i before.

Differs: there is no pre-trained base, so the first phase trains the whole model and is the base
(or init_from gives one, and the first phase goes on with it). Adapters of all phases are allocated
at once, stacked in one A and one B per linear, and held but for the newest: B of a later phase is
zero and adds nothing. No dropout on an adapter's input, no L2 term (0 in the paper's runs); the
optimizer's weight decay applies to the newest adapter as to every matrix.

r = rank, I = in_features, O = out_features (global).
"""

import math

import torch

from sparsecl.methods.adapters.config import OLoraConfig
from sparsecl.methods.base import Method
from sparsecl.methods.context import MethodContext, ModelSide
from sparsecl.optim.moving import share
from sparsecl.sparse.low_rank import LowRank


class OLora(Method):
    """Holds everything but the base in the first phase, and but one adapter in each later one."""

    name = "o_lora"
    config: OLoraConfig

    def __init__(self, config: OLoraConfig) -> None:
        super().__init__(config)
        self.adapters: dict[str, int] = {}
        """Parameter -> its dim of rank * domains."""

    def attach(self, model: ModelSide, num_phases: int) -> None:
        total, scale = self.config.rank * (num_phases - 1), self.config.alpha / self.config.rank
        for layer, linear in model.linears().items():
            if linear.shape.kind not in self.config.kinds:
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
        """Let the newest adapter learn (in the first phase: the base), and hold the rest."""
        newest = self._newest(context)
        for name, shape in context.shapes().items():
            if name in self.adapters:
                learns = torch.zeros(shape, dtype=torch.bool)
                learns.narrow(self.adapters[name], *newest).fill_(True)
            else:
                learns = torch.full(shape, newest[1] == 0)
            context.hold(name, ~learns, owner=self.name)

    def after_backward(self, context: MethodContext) -> None:
        """The gradient of l1 * sum |A_old A^T| in closed form: l1 * sign(A A_old^T) A_old."""
        begin, num = self._newest(context)
        if begin == 0 or self.config.l1 == 0.0:
            return
        for name, dim in self.adapters.items():
            if dim == 0:
                a = context.matrix(name)
                old, new = a[:begin], a[begin : begin + num]
                gradient = torch.zeros_like(a)
                gradient[begin : begin + num] = (new @ old.T).sign() @ old
                item, part = context.slices.find(name), context.slice_of(name, gradient)
                if item is not None and part is not None:
                    context.add_gradient(item, part, self.config.l1)

    def _newest(self, context: MethodContext) -> tuple[int, int]:
        """(first, number) of the rows of A that this phase trains; none in the first."""
        phase, rank = context.progress.phase, self.config.rank
        return (rank * (phase - 1), rank) if phase else (0, 0)
