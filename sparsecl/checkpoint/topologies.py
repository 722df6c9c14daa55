"""The live sets in a checkpoint: one safetensors file, the smaller of two forms for each matrix.

A checkpoint holds live weights only, in row-major order, so it must say where they lie: with
dynamic topologies no config does. uint8 = a bitmap of the matrix, most significant bit first;
int32 = flat indices, below a density of 1/32.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from sparsecl.errors import DataError
from sparsecl.topology.layer import LayerTopology

TOPOLOGY_FILE = "topology.safetensors"


def save_topologies(path: Path, topologies: Mapping[str, LayerTopology]) -> None:
    """Write the live sets, by parameter name."""
    save_file({name: _smaller(topology) for name, topology in topologies.items()}, path)


def load_topologies(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, LayerTopology]:
    """Read them back.

    Args:
        shapes: global shape of each parameter that must be there.

    Raises:
        DataError: if one is missing, or is no live set of a matrix of that shape.
    """
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    result = {}
    for name, shape in shapes.items():
        if name not in found or len(shape) != 2:
            raise DataError(f"{path}: holds no topology of {name}")
        edges = _edges(found[name], shape[0] * shape[1])
        if edges is None:
            raise DataError(f"{path}: {name} is not a live set of a {shape[0]} x {shape[1]} matrix")
        result[name] = LayerTopology(name.removesuffix(".weight"), *shape, edges)
    return result


def _smaller(topology: LayerTopology) -> NDArray[np.uint8] | NDArray[np.int32]:
    if 32 * topology.num_live < topology.num_cells < 2**31:
        return topology.edges.astype(np.int32)
    return np.packbits(topology.mask().reshape(-1))


def _edges(stored: NDArray[Any], num_cells: int) -> NDArray[np.int64] | None:
    """Sorted flat indices; None if `stored` cannot be what `_smaller` wrote."""
    if stored.ndim != 1:
        return None
    if stored.dtype == np.uint8:
        if stored.size != -(-num_cells // 8):
            return None
        bits = np.unpackbits(stored)
        return None if bits[num_cells:].any() else np.flatnonzero(bits)
    edges = stored.astype(np.int64)
    inside = edges.size and edges[0] >= 0 and edges[-1] < num_cells and (np.diff(edges) > 0).all()
    return edges if stored.dtype == np.int32 and inside else None
