"""What the masks alone say about interference: the number of paths through one weight.

O = out_features, I = in_features, K = matrices of the chain, n = units of a layer, rho = density.

The chain is the feed-forward matrices one after the other, up, down, up, down, ..., without
residual paths, norms and attention; the gate of a SwiGLU, which multiplies what `up` carries, is
left out too. A path takes one live weight of each matrix. The paths through a weight (o, i) are
those that arrive at i times those that leave o; both are products of masks with vectors of counts.
Each path uses one weight of every matrix, so the sum over the weights of one matrix is the number
of all paths, and the mean over the live weights of the chain is K * paths / N.

Two ratios that are easily taken for each other:

- Against the dense chain, a weight has rho^(K - 1) as many paths: each of the other K - 1 matrices
  keeps a share rho of the ways on. Exact where all degrees are equal, else near it.
- As a share of the network's own paths, a weight carries 1 / N of them, 1 / (rho n^2) for square
  matrices: a sparse network has fewer paths and each of its weights carries more of them.

So sparsity thins out the paths and does not isolate the weights that are left. Counts are kept as
float64 vectors times a power of two, because they overflow; they are sums of positive numbers, so
log10 is good to about 12 digits.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsecl.topology.layer import LayerShape, LayerTopology

CHAIN_KINDS = ("up", "down")


class ChainMatrix(NamedTuple):
    """One matrix of the chain; the first is applied first."""

    out_features: int
    in_features: int
    mask: NDArray[np.bool_] | None
    """[O, I], True = live; None = all live."""

    @property
    def num_live(self) -> int:
        """Live weights."""
        if self.mask is None:
            return self.out_features * self.in_features
        return int(np.count_nonzero(self.mask))


class Counts(NamedTuple):
    """Nonnegative counts: values * 2^exponent."""

    values: NDArray[np.float64]
    exponent: int

    @property
    def log10(self) -> NDArray[np.float64]:
        """log10 of each count; -inf for none."""
        with np.errstate(divide="ignore"):
            return np.log10(self.values) + self.exponent * math.log10(2.0)


@dataclass(frozen=True)
class ChainPaths:
    """Paths through a chain, beside those of the dense chain of the same sizes."""

    num_matrices: int
    num_live: int
    num_cells: int
    """Weights of the dense chain."""

    paths_log10: float | None
    """All paths of the chain; None if there is none."""

    paths_dense_log10: float

    without_path: float
    """Share of the live weights through which no path goes."""

    @property
    def paths_per_weight_log10(self) -> float | None:
        """Mean over the live weights of the paths through one."""
        if self.paths_log10 is None:
            return None
        return self.paths_log10 + math.log10(self.num_matrices / self.num_live)

    @property
    def paths_ratio_to_dense_log10(self) -> float | None:
        """The same, over the mean of the dense chain."""
        if self.paths_per_weight_log10 is None:
            return None
        dense = self.paths_dense_log10 + math.log10(self.num_matrices / self.num_cells)
        return self.paths_per_weight_log10 - dense

    @property
    def rho_power(self) -> float:
        """rho^(K - 1): what the ratio is where all degrees of a density are equal."""
        return (self.num_live / self.num_cells) ** (self.num_matrices - 1)

    @property
    def share_of_own_paths_log10(self) -> float | None:
        """Mean over the live weights of the share of the chain's own paths that use one."""
        if self.paths_log10 is None:
            return None
        return math.log10(self.num_matrices / self.num_live)

    @property
    def share_of_own_paths_dense_log10(self) -> float:
        """The same in the dense chain."""
        return math.log10(self.num_matrices / self.num_cells)


def mlp_chain(
    topologies: Mapping[str, LayerTopology], shapes: Sequence[LayerShape]
) -> list[ChainMatrix]:
    """The feed-forward matrices of all blocks, in the order in which values pass them.

    Args:
        topologies: by layer name; a layer that is not there is dense.
        shapes: all matrices of the model, block by block.
    """
    chain = []
    for shape in shapes:
        if shape.kind in CHAIN_KINDS:
            found = topologies.get(shape.name)
            mask = None if found is None else found.mask()
            chain.append(ChainMatrix(shape.out_features, shape.in_features, mask))
    return chain


def chain_paths(chain: Sequence[ChainMatrix]) -> ChainPaths:
    """Count the paths of a chain whose sizes fit together."""
    for one, following in zip(chain, chain[1:], strict=False):
        assert one.out_features == following.in_features, "the chain does not fit together"
    arriving, leaving = _arriving(chain), _leaving(chain)
    paths = _total(arriving[-1])
    num_live = sum(matrix.num_live for matrix in chain)
    without = sum(map(_without_path, chain, arriving, leaving[1:]))
    sizes = [chain[0].in_features, *(matrix.out_features for matrix in chain)]
    return ChainPaths(
        num_matrices=len(chain),
        num_live=num_live,
        num_cells=sum(matrix.out_features * matrix.in_features for matrix in chain),
        paths_log10=paths if math.isfinite(paths) else None,
        paths_dense_log10=math.fsum(math.log10(size) for size in sizes),
        without_path=without / num_live,
    )


def paths_through(chain: Sequence[ChainMatrix], index: int) -> NDArray[np.float64]:
    """log10 of the paths through each weight [O, I] of chain[index]; -inf where none goes."""
    matrix = chain[index]
    both = _leaving(chain)[index + 1].log10[:, None] + _arriving(chain)[index].log10[None, :]
    return both if matrix.mask is None else np.where(matrix.mask, both, -np.inf)


def _arriving(chain: Sequence[ChainMatrix]) -> list[Counts]:
    """Paths from any input to each unit: before the first matrix, ..., after the last (K + 1)."""
    counts = [Counts(np.ones(chain[0].in_features), 0)]
    for matrix in chain:
        counts.append(_step(matrix.mask, counts[-1], matrix.out_features))
    return counts


def _leaving(chain: Sequence[ChainMatrix]) -> list[Counts]:
    """Paths from each unit to any output, at the same places as `_arriving`."""
    counts = [Counts(np.ones(chain[-1].out_features), 0)]
    for matrix in reversed(chain):
        mask = None if matrix.mask is None else matrix.mask.T
        counts.append(_step(mask, counts[-1], matrix.in_features))
    return counts[::-1]


def _step(mask: NDArray[np.bool_] | None, counts: Counts, num_units: int) -> Counts:
    """Counts one matrix further."""
    if mask is None:
        values = np.full(num_units, counts.values.sum())
    else:
        values = mask.astype(np.float64) @ counts.values
    # Scaling by a power of two is exact, and keeps the counts far from overflow.
    shift = int(np.frexp(values.max())[1])
    return Counts(np.ldexp(values, -shift), counts.exponent + shift)


def _total(counts: Counts) -> float:
    return float(Counts(counts.values.sum(keepdims=True), counts.exponent).log10[0])


def _without_path(matrix: ChainMatrix, arriving: Counts, leaving: Counts) -> int:
    """Live weights that begin or end at a unit from which there is no way on."""
    used_inputs, used_outputs = arriving.values > 0, leaving.values > 0
    if matrix.mask is None:
        return matrix.num_live - int(used_inputs.sum()) * int(used_outputs.sum())
    return matrix.num_live - int(np.count_nonzero(matrix.mask[used_outputs][:, used_inputs]))
