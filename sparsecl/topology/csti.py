"""CSTI: a first layer whose links follow the correlations of the features that it reads.

N = samples, I = features = in_features, O = out_features, a whole multiple of I.
Source: Zhang et al., ICLR 2024 (OpenReview iayEcORsGd), and its public code. Each hidden unit
stands for a feature; with twice as many units all of it is there twice.

For layers that read raw features. A GPT reads token ids through an embedding, so it has none.
"""

import numpy as np
from numpy.typing import NDArray


def csti(features: NDArray[np.float64], out_features: int, *, rho: float) -> NDArray[np.int64]:
    """Let the weights live where |Pearson correlation| is largest; of equal ones the first.

    A feature and itself, and features that never change, are not correlated. Takes 8 I (I + O)
    bytes.

    Args:
        features: fp64 [N, I], finite.
        rho: density in (0, 1].

    Returns:
        Sorted flat indices o * I + i, exactly round(rho * O * I) of them.

    Raises:
        ValueError: shapes that do not fit, or fewer correlated pairs than weights.
    """
    samples, width = features.shape
    if samples < 2:
        raise ValueError(f"correlations need 2 samples or more, got {samples}")
    if out_features % width:
        raise ValueError(f"out_features={out_features} is no multiple of the {width} features")
    if not np.isfinite(features).all():
        raise ValueError("a feature is not finite")
    centred = features - features.mean(axis=0)
    # Beside its mean a constant is a rounding error, and not a feature.
    scale = np.sqrt((centred**2).sum(axis=0))
    moves = scale > 1e-12 * np.sqrt((features**2).sum(axis=0))
    centred = np.where(moves, centred / np.where(moves, scale, 1.0), 0.0)
    size = np.abs(centred.T @ centred)
    np.fill_diagonal(size, 0.0)
    # The product of two features may round otherwise one way round than the other.
    size = np.tile(np.maximum(size, size.T), (out_features // width, 1)).reshape(-1)
    num_live, known = round(rho * size.size), int(np.count_nonzero(size))
    if num_live > known:
        raise ValueError(
            f"{num_live} weights are to live, and only {known} cells join features that are "
            f"correlated; use a density of {known / size.size:.6g} or less"
        )
    order = np.argsort(-size, kind="stable")
    return np.sort(order[:num_live]).astype(np.int64, copy=False)
