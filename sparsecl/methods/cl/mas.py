"""Memory aware synapses: a weight is important if what the network says depends on it.

Source: Aljundi et al. 2018, https://arxiv.org/abs/1711.09601, and its public code
(rahafaljundi/MAS-Memory-Aware-Synapses): Omega = mean over inputs of |d |f(x)|^2 / d theta|, no
labels; loss + lambda sum Omega (theta - theta*)^2, Omega summed over domains, theta* the latest
weights. The gradient of the penalty is 2 lambda Omega (theta - theta*), as in the code.

Own reading for a language model: x is a training sequence, f(x) the logits before softmax, and
|f(x)|^2 their squared norm over the vocabulary as the mean over positions, not the sum, so that
lambda does not depend on the context. Differs: absolute values are taken of every sequence's own
gradient, as the paper writes it; the code takes them of whole batches.
"""

import numpy as np
import torch

from sparsecl.methods.cl.config import MasConfig
from sparsecl.methods.cl.spring import Spring
from sparsecl.methods.context import MethodContext, SliceTensors


class Mas(Spring):
    """A spring as stiff as the logits are sensitive."""

    name = "mas"
    config: MasConfig

    @property
    def stiffness(self) -> float:
        return 2.0 * self.config.strength

    def importance(self, context: MethodContext) -> SliceTensors:
        """Omega of the phase that ends, >= 0, for every slice. Collective."""
        rows = context.rows(context.progress.phase, np.arange(self.config.sequences))
        return context.mean_gradients(
            rows, each=torch.abs, of=lambda outputs, places: outputs.squared_norm
        )
