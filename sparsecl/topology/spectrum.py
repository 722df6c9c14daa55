"""How well a layer mixes: the largest singular values of its 0/1 mask, beside what theory expects.

O = out_features, I = in_features, N = live weights, d_r = N / O and d_c = N / I the mean degrees,
rho = N / (O * I). sigma_1 >= sigma_2 >= ... are the singular values of the mask as a 0/1 matrix.

- The gap 1 - sigma_2 / sigma_1 is near 1 if one step through the layer forgets where it started,
  and 0 if the layer falls apart into equal pieces (block diagonal: one sigma_1 per block).
- Ramanujan bound: sigma_2 <= sqrt(d_r - 1) + sqrt(d_c - 1) is the best that a large graph with
  exactly these degrees can do (Alon-Boppana, in the bipartite form of Feng and Li 1996). For graphs
  whose degrees differ the mean degrees are put in; that is the "generalized" bound, a yardstick and
  not a theorem. A random graph of 5 % density meets it within 2 % already.
- Erdos-Renyi: a mask of independent entries has sigma_1 ~ rho sqrt(O I) and
  sigma_2 ~ sqrt(rho (1 - rho)) (sqrt O + sqrt I), the edge of the Marchenko-Pastur law; good once
  units have tens of live weights. At a few per unit uneven degrees push both up.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsecl import seeding
from sparsecl.topology.layer import LayerTopology

DENSE_SIDE = 2048
"""Smaller side up to which all values are computed exactly; a second or so per matrix of 8192 x
2048 on one core. Beyond, only the asked ones are iterated to."""

# Squaring the matrix loses half the digits of a double: values below this share of sigma_1 are
# rounding noise of a true zero.
NOISE = 1e-7


@dataclass(frozen=True)
class LayerSpectrum:
    """The largest singular values of one mask and what to compare them with."""

    name: str
    singular_values: tuple[float, ...]
    """Descending; as many as were asked for, or min(O, I) if that is less."""

    ramanujan_bound: float
    """sqrt(d_r - 1) + sqrt(d_c - 1) with mean degrees; a degree below 1 counts as 1."""

    er_sigma_1: float
    er_sigma_2: float

    @property
    def sigma_1(self) -> float:
        """Largest singular value; sqrt(d_r * d_c) exactly if all degrees are equal."""
        return self.singular_values[0]

    @property
    def sigma_2(self) -> float:
        """Second singular value; 0 for a matrix of one row or column."""
        return self.singular_values[1] if len(self.singular_values) > 1 else 0.0

    @property
    def gap(self) -> float:
        """Normalised spectral gap 1 - sigma_2 / sigma_1, in [0, 1]; 0 for an empty mask."""
        return 1.0 - self.sigma_2 / self.sigma_1 if self.sigma_1 > 0.0 else 0.0

    @property
    def within_bound(self) -> bool:
        """True if sigma_2 is at most the (generalized) Ramanujan bound, up to rounding."""
        return self.sigma_2 <= self.ramanujan_bound * (1.0 + 1e-9)


def layer_spectrum(topology: LayerTopology, *, num_values: int = 8) -> LayerSpectrum:
    """The `num_values` >= 2 largest singular values of one mask, a function of the mask alone."""
    out_features, in_features = topology.out_features, topology.in_features
    rho = topology.density
    return LayerSpectrum(
        name=topology.name,
        singular_values=tuple(top_singular_values(topology.mask(), num_values).tolist()),
        ramanujan_bound=ramanujan_bound(
            topology.num_live / out_features, topology.num_live / in_features
        ),
        er_sigma_1=rho * math.sqrt(out_features * in_features),
        er_sigma_2=math.sqrt(rho * (1.0 - rho))
        * (math.sqrt(out_features) + math.sqrt(in_features)),
    )


@dataclass(frozen=True)
class SpectrumSummary:
    """Means over several layers; the fields are those of `LayerSpectrum`."""

    num_layers: int
    sigma_1: float
    er_sigma_1: float
    sigma_2: float
    er_sigma_2: float
    ramanujan_bound: float
    gap: float
    num_within: int
    """Layers with sigma_2 within the bound."""


def average(
    spectra: Sequence[LayerSpectrum], label: Callable[[str], str]
) -> dict[str, SpectrumSummary]:
    """Join the layers whose names have one label, in the order in which labels first appear."""
    members: dict[str, list[LayerSpectrum]] = {}
    for spectrum in spectra:
        members.setdefault(label(spectrum.name), []).append(spectrum)
    return {name: _mean(layers) for name, layers in members.items()}


def _mean(layers: Sequence[LayerSpectrum]) -> SpectrumSummary:
    names = ("sigma_1", "er_sigma_1", "sigma_2", "er_sigma_2", "ramanujan_bound", "gap")
    means = {n: math.fsum(getattr(layer, n) for layer in layers) / len(layers) for n in names}
    num_within = sum(layer.within_bound for layer in layers)
    return SpectrumSummary(num_layers=len(layers), num_within=num_within, **means)


def spectrum_table(rows: Mapping[str, SpectrumSummary]) -> str:
    """Aligned text, one line per entry: the two largest values beside theory."""
    width = max(5, *map(len, rows))
    lines = [f"{'layer':<{width}} num  sigma_1      ER  sigma_2      ER    bound   within     gap"]
    for label, row in rows.items():
        within = f"{row.num_within} of {row.num_layers}"
        lines.append(
            f"{label:<{width}} {row.num_layers:>3} {row.sigma_1:>8.3f} {row.er_sigma_1:>7.2f} "
            f"{row.sigma_2:>8.3f} {row.er_sigma_2:>7.2f} {row.ramanujan_bound:>8.3f} "
            f"{within:>8} {row.gap:>7.4f}"
        )
    return "\n".join(lines)


def ramanujan_bound(row_degree: float, column_degree: float) -> float:
    """sqrt(d_r - 1) + sqrt(d_c - 1); a (mean) degree below 1 counts as 1."""
    return math.sqrt(max(row_degree - 1.0, 0.0)) + math.sqrt(max(column_degree - 1.0, 0.0))


def top_singular_values(
    mask: NDArray[np.bool_], num_values: int, *, dense_side: int = DENSE_SIDE
) -> NDArray[np.float64]:
    """The largest singular values of a 0/1 matrix, descending, with their multiplicities.

    Args:
        mask: [O, I]; its orientation does not matter.
        num_values: how many; all if the matrix has fewer.
        dense_side: smaller side up to which the exact way is taken.
    """
    tall = mask if mask.shape[0] >= mask.shape[1] else mask.T
    num_values = min(num_values, tall.shape[1])
    # The iteration wants a subspace well larger than what it looks for.
    if tall.shape[1] <= max(dense_side, 4 * num_values):
        return _exact(tall, num_values)
    return _iterated(tall, num_values)


def _exact(tall: NDArray[np.bool_], num_values: int) -> NDArray[np.float64]:
    """Square roots of the eigenvalues of A^T A. A pair of equal values is never missed."""
    import scipy.linalg

    # Entries of A^T A count shared rows: whole numbers, exact in float32 below 2^24.
    matrix = tall.astype(np.float32)
    gram = (matrix.T @ matrix).astype(np.float64)
    size = gram.shape[0]
    squares = scipy.linalg.eigh(
        gram, eigvals_only=True, subset_by_index=[size - num_values, size - 1], overwrite_a=True
    )
    values = np.sqrt(np.maximum(squares[::-1], 0.0))
    values[values < NOISE * values[0]] = 0.0
    return values


def _iterated(tall: NDArray[np.bool_], num_values: int) -> NDArray[np.float64]:
    """Lanczos (ARPACK) on the sparse matrix.

    NOTE: a Krylov space of one start vector holds one direction of a repeated value; only rounding
    brings in the others, given time. On a ring of 800 units, whose values come in pairs, 20 vectors
    with tolerance 1e-6 missed one of a pair from nearly every start; 40 vectors did not, nor did a
    tolerance of 1e-8. Hence both, with room to spare.
    """
    import scipy.sparse
    import scipy.sparse.linalg

    # Random, since the obvious start, the constant vector, is itself singular in a regular graph.
    # Its own stream makes the result a function of the mask alone, but for the last digits: where
    # the space is exhausted (few distinct values) ARPACK goes on from a vector of its own.
    start = seeding.stream(0, "spectrum", tall.shape[1]).standard_normal(tall.shape[1])
    width = min(tall.shape[1] - 1, max(80, 4 * num_values))
    svds: Any = scipy.sparse.linalg.svds  # its inferred types know whole tolerances only
    values = svds(
        scipy.sparse.csr_array(tall, dtype=np.float64),
        k=num_values,
        ncv=width,
        tol=1e-8,
        v0=start,
        return_singular_vectors=False,
    )
    return np.sort(values)[::-1]
