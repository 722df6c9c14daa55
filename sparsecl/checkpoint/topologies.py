"""The live sets in a checkpoint: one safetensors file, the smaller of two forms for each matrix.

A checkpoint holds live weights only, in row-major order, so it must say where they lie: with
dynamic topologies no config does. uint8 = a bitmap of the matrix, most significant bit first;
int32 = flat indices, below a density of 1/32.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from sparsecl.checkpoint.manifest import ParameterEntry, is_plain_file
from sparsecl.errors import DataError, reason
from sparsecl.topology.layer import LayerTopology

Stored = NDArray[np.uint8] | NDArray[np.int32]
TOPOLOGY_FILE = "topology.safetensors"


def stored_form(topologies: Mapping[str, LayerTopology]) -> dict[str, Stored]:
    """The arrays of the file, by parameter name."""
    return {name: _smaller(topology) for name, topology in topologies.items()}


def save_topologies(path: Path, topologies: Mapping[str, LayerTopology]) -> None:
    """Write the live sets, by parameter name."""
    save_file(stored_form(topologies), path)


class StoredTopologies(Mapping[str, LayerTopology]):
    """The live sets of a checkpoint, checked; each graph is built when it is asked for.

    A few indices can stand for a matrix of any size, so a hostile file would have a gigabyte
    allocated by a few bytes. Sizes are in the manifest: whoever compares those with a model before
    asking for a graph allocates what the model has anyway.
    """

    def __init__(self, path: Path, parameters: Mapping[str, ParameterEntry]) -> None:
        """Open the file.

        Args:
            parameters: all that must be there.

        Raises:
            DataError: if one is missing, or is no live set of a matrix of that shape.
        """
        self._built: dict[str, LayerTopology] = {}
        found = _load(path)
        for name, entry in parameters.items():
            if name not in found or len(entry.shape) != 2:
                raise DataError(f"{path}: holds no topology of {name}")
            if not _is_live_set(found[name], math.prod(entry.shape)):
                size = f"{entry.shape[0]} x {entry.shape[1]}"
                raise DataError(f"{path}: {name} is not a live set of a {size} matrix")
        self._stored = {name: found[name] for name in parameters}
        self._parameters = dict(parameters)

    def __getitem__(self, name: str) -> LayerTopology:
        if name not in self._built:
            rows, columns = self._parameters[name].shape
            layer = name.removesuffix(".weight")
            self._built[name] = LayerTopology(layer, rows, columns, self._edges(name))
        return self._built[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    def num_live(self, name: str, num_shards: int) -> list[int]:
        """Live weights of each of `num_shards` equal slices along the dimension that tp splits.

        Needs memory for the live weights only, unlike the graph.
        """
        entry = self._parameters[name]
        edges = self._edges(name)
        if num_shards == 1:
            return [edges.size]
        columns = entry.shape[1]
        place = edges // columns if entry.partition_dim == 0 else edges % columns
        shard = place // (entry.shape[entry.partition_dim] // num_shards)
        return np.bincount(shard, minlength=num_shards).tolist()

    def _edges(self, name: str) -> NDArray[np.int64]:
        stored = self._stored[name]
        if stored.dtype == np.uint8:
            return np.flatnonzero(np.unpackbits(stored)).astype(np.int64, copy=False)
        return stored.astype(np.int64)


def _load(path: Path) -> dict[str, NDArray[Any]]:
    if not is_plain_file(path):
        raise DataError(f"{path}: missing or not a plain file")
    try:
        return load_file(path)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read ({reason(error)})") from None


def _smaller(topology: LayerTopology) -> Stored:
    if 32 * topology.num_live < topology.num_cells < 2**31:
        return topology.edges.astype(np.int32)
    return topology.bits.copy()


def _is_live_set(stored: NDArray[Any], num_cells: int) -> bool:
    """True if `stored` can be what `_smaller` wrote. Needs no more than 8 times its memory."""
    if stored.ndim != 1 or num_cells == 0:
        return False
    if stored.dtype == np.uint8:
        spare = 8 * stored.size - num_cells  # bits behind the last cell
        return 0 <= spare < 8 and not int(stored[-1]) & ((1 << spare) - 1)
    if stored.dtype != np.int32 or not 32 * stored.size < num_cells < 2**31:
        return False
    bounded = np.concatenate([[-1], stored, [num_cells]])
    return bool((bounded[1:] > bounded[:-1]).all())
