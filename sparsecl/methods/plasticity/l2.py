"""L2: every weight is pulled to zero, in proportion to its size.

The gradient of strength / 2 |w|^2 is added to that of the loss before it is clipped: the coupled
weight decay of Dohare et al. 2024 (https://doi.org/10.1038/s41586-024-07711-7) and of torch's SGD
and Adam. Under Adam it goes through the moments, so a weight of a large gradient is pulled less
than under the decoupled decay of AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101),
which is `optimizer.weight_decay` with kind adamw, and stands beside it.

Differs: vectors (norms, biases) are left alone unless `vectors` is set; `optimizer.clip` counts.
"""

from sparsecl.methods.context import MethodContext
from sparsecl.methods.many_steps import ManySteps
from sparsecl.methods.many_steps import Pull as PullInNumbers
from sparsecl.methods.plasticity.config import L2Config
from sparsecl.methods.plasticity.pull import Pull


class L2(Pull):
    """Without a gradient and under SGD a weight is (1 - lr strength)^t of itself after t steps."""

    name = "l2"
    config: L2Config

    def after_backward(self, context: MethodContext) -> None:
        if self.config.strength:
            for item in self.own(context.slices):
                context.add_gradient(item, self.distance(item), self.config.strength)

    def many_steps(self, context: MethodContext) -> ManySteps:
        config = self.config
        if not config.strength:
            return ManySteps()
        return ManySteps(pull=PullInNumbers(config.strength, config.vectors, self.start))
