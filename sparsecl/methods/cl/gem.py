"""GEM: as A-GEM, with one constraint for each earlier phase.

Source: Lopez-Paz & Ranzato 2017 (arXiv 1706.08840), equations 8 to 11, and its public code
(facebookresearch/GradientEpisodicMemory). R has the gradient on the memory of one earlier phase in
each row. If some R_i g < 0, the step takes the nearest g~ with R g~ >= 0, which is R^T v + g with

    min_v  1/2 v^T R R^T v + (R g)^T v,   v >= margin

margin > 0 pushes more towards the earlier phases than the constraints ask for, as the public code
does (0.5 there).

Differs: the code adds 0.001 to the diagonal of R R^T, which sets a scale for gradients; here the
problem is solved as it stands, and a direction that two phases share counts once. The gradient of a
phase is over all its memory, as in the paper, if `sequences_per_step` is at least `sequences`, and
over a draw of it otherwise. See A-GEM for the memory.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sparsecl.methods.cl.agem import Agem
from sparsecl.methods.cl.config import GemConfig

# Eigenvalues of R R^T below this part of the largest are rounding: that direction is another's.
_RANK = 1e-12


class Gem(Agem):
    """A reference for each earlier phase, and a small quadratic programme."""

    name = "gem"
    config: GemConfig

    def batches(self, rng: np.random.Generator) -> Sequence[NDArray[np.int64]]:
        """One batch of each earlier phase, in their order."""
        phases = self.names[:, 0]
        return [self.some_of(self.names[phases == phase], rng) for phase in np.unique(phases)]

    def weights(self, gram: NDArray[np.float64], dots: NDArray[np.float64]) -> NDArray[np.float64]:
        return dual(gram, dots, self.config.margin)


def dual(
    gram: NDArray[np.float64], dots: NDArray[np.float64], margin: float
) -> NDArray[np.float64]:
    """The v >= margin that minimises 1/2 v^T gram v + dots^T v; fp64 [t].

    With v = margin + u and gram = A^T A this is non-negative least squares, min |A u - b|, which an
    active-set method ends exactly.

    Args:
        gram: R R^T, [t, t].
        dots: R g, [t].
    """
    from scipy import optimize  # on use: it takes a second

    if not (np.isfinite(gram).all() and np.isfinite(dots).all()):
        return np.full(len(dots), np.nan)  # so that the step is discarded, as any such gradient
    values, vectors = np.linalg.eigh(gram)
    kept = values > _RANK * values[-1]
    roots, vectors = np.sqrt(values[kept]), vectors[:, kept]
    a = roots[:, None] * vectors.T
    b = -(vectors.T @ (dots + margin * gram.sum(axis=1))) / roots
    return margin + optimize.nnls(a, b)[0]
