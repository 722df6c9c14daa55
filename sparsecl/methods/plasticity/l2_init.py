"""L2 towards the initial weights (L2 Init): what the loss does not need goes back to its origin.

Source: Kumar, Marklund & Van Roy 2023 (https://arxiv.org/abs/2308.11958): loss + lambda |theta -
theta_0|^2, theta_0 the weights before the first step. As in `l2`, strength / 2 stands before the
square, so strength is 2 lambda.

Differs: matrices only unless `vectors` is set. theta_0 are the weights that the run begins with,
also where these come from another run (`init_from`, --weights_only). A weight that is grown later
has its origin at zero.
"""

from sparsecl.methods.context import MethodContext
from sparsecl.methods.plasticity.l2 import L2


class L2Init(L2):
    """L2 whose start is that of the run."""

    name = "l2_init"

    def phase_start(self, context: MethodContext) -> None:
        if not self.start:
            self.take_start(context)
