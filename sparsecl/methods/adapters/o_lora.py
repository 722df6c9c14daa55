"""O-LoRA: a low-rank adapter for each domain, in input directions that no earlier one uses.

Source: Wang et al. 2023, https://arxiv.org/abs/2310.14152, and its public code (cmnfriend/O-LoRA):
W + alpha / r * sum_i B_i A_i with A_i [r, I] and B_i [O, r]; domain t trains A_t and B_t on
loss + l1 * sum |A_old A_t^T|, where A_old stacks the A_i before.

Differs: there is no pre-trained base, so the first phase trains the whole model and is the base;
no L2 term (0 in the paper's runs); the rest as pairs.py says.
"""

from sparsecl.methods.adapters.config import OLoraConfig
from sparsecl.methods.adapters.pairs import Adapters
from sparsecl.methods.context import MethodContext


class OLora(Adapters):
    """Pushes the newest pair's A to input directions that no earlier one uses."""

    name = "o_lora"
    config: OLoraConfig

    def after_backward(self, context: MethodContext) -> None:
        """The gradient of l1 * sum |A_old A^T| in closed form: l1 * sign(A A_old^T) A_old."""
        begin, num = self.newest(context)
        if begin == 0 or self.config.l1 == 0.0:
            return
        for name, dim in self.adapters.items():
            if dim == 0:
                a = context.matrix(name)
                old, new = a[:begin], a[begin : begin + num]
                self.add_gradient(context, name, (new @ old.T).sign() @ old, self.config.l1)
