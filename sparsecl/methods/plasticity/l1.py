"""L1: a constant pull on every weight, towards zero or towards where it began.

Sources: soft thresholding, the proximal step of the lasso: d <- sign(d) max(|d| - lr lambda, 0).
With the distance from earlier weights, ||theta - theta_0||_1, the penalty of Gong et al. 2022
(Findings of ACL, "Finding the Dominant Winning Ticket in Pre-Trained Language Models"), where the
weights that move nevertheless are the ticket.

Differs: of that paper we know the abstract, and there is no public code. So the form, lambda and
what counts as moved are our own reading. With Adam a subgradient never gives an exact zero, so the
proximal step is the default; it comes after the optimizer's step, with its learning rate, decoupled
from Adam. One step of Adam is about lr long: lambda is the share of it that is taken back.
"""

from collections.abc import Collection

from sparsecl.methods.context import MethodContext
from sparsecl.methods.many_steps import ManySteps
from sparsecl.methods.many_steps import Pull as PullInNumbers
from sparsecl.methods.plasticity.config import L1Config
from sparsecl.methods.plasticity.pull import Pull
from sparsecl.optim.slice import Slice


class L1(Pull):
    """The start, where there is one, is that of the phase."""

    name = "l1"
    config: L1Config

    def phase_start(self, context: MethodContext) -> None:
        self.take_start(context)

    def after_backward(self, context: MethodContext) -> None:
        if not self.config.strength or self.config.form != "subgradient":
            return
        for item in self.own(context.slices):
            context.add_gradient(item, self.distance(item).sign(), self.config.strength)

    def after_update(self, context: MethodContext, items: Collection[Slice]) -> None:
        if not self.config.strength or self.config.form != "proximal":
            return
        for item in self.own(items):
            distance = self.distance(item)
            taken = context.slices.lr(item) * self.config.strength
            left = distance.abs().sub_(taken).clamp_(min=0.0).mul_(distance.sign())
            if item.name in self.start:  # where nothing is left, the very bits of the start
                left.add_(self.start[item.name])
            item.master.copy_(left)

    def many_steps(self, context: MethodContext) -> ManySteps:
        config = self.config
        if not config.strength:
            return ManySteps()
        form = "soft" if config.form == "proximal" else "sign"
        return ManySteps(pull=PullInNumbers(config.strength, config.vectors, self.start, form))
