"""LoRA on a sequence of domains: one low-rank adapter for all later ones, or one for each.

Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685. The paper adapts to one task; the sequence
is ours. By default one pair is trained on and on: a control that forgets what fits into its rank.
With `per_domain` each later phase has its own pair and earlier ones are held, as in O-LoRA without
its penalty. Differs as pairs.py says.
"""

from sparsecl.methods.adapters.config import LoraConfig
from sparsecl.methods.adapters.pairs import Adapters


class Lora(Adapters):
    """Adapters without any penalty."""

    name = "lora"
    config: LoraConfig
