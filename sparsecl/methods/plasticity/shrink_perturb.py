"""Shrink and perturb: weights lose a little of themselves and gain a little noise.

Sources: Ash & Adams 2020 (arXiv 1910.08475), who do it once before new data comes; and at every
step, as here, Dohare et al. 2024 (https://doi.org/10.1038/s41586-024-07711-7) and their public
code: w <- (1 - lr lambda) w + sigma xi, xi ~ N(0, 1), after the optimizer's step. Without a
gradient the noise comes to rest at the variance sigma^2 / (1 - (1 - lr lambda)^2).

Differs: theirs shrinks through the optimizer's coupled decay, and perturbs biases too. Here lambda
is decoupled, so it means the same under Adam and SGD, and norms are left alone unless `vectors`
says otherwise. Only live weights take part: what is absent or held is as it was after the step.
"""

from collections.abc import Collection

from sparsecl.methods.base import Method
from sparsecl.methods.context import MethodContext
from sparsecl.methods.many_steps import ManySteps, Shake
from sparsecl.methods.plasticity.config import ShrinkPerturbConfig
from sparsecl.optim.slice import Slice


class ShrinkPerturb(Method):
    """Works on masters just stepped, so that low-precision copies are made of the result."""

    name = "shrink_perturb"
    config: ShrinkPerturbConfig

    def after_update(self, context: MethodContext, items: Collection[Slice]) -> None:
        step = context.progress.step
        for item in items:
            if len(item.matrix_shape) >= 2 or self.config.vectors:
                rate = context.slices.lr(item) * self.config.shrink
                item.master.mul_(1.0 - rate)
                if self.config.sigma:
                    noise = context.noise(item, self.name, step)
                    item.master.add_(noise, alpha=self.config.sigma)

    def many_steps(self, context: MethodContext) -> ManySteps:
        config = self.config
        return ManySteps(shake=Shake(config.shrink, config.sigma, config.vectors, self.name))
