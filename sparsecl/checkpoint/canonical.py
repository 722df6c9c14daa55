"""Canonical tensors one at a time: one state of one parameter, whole, in global coordinates.

What converts, exports or compares checkpoints is written on `Source`, so that it holds one tensor
at a time whatever the size of the model. `Reader` is one; imports of other formats may be others.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from sparsecl.checkpoint.manifest import ParameterEntry
from sparsecl.topology.layer import LayerTopology

MASTER = "master"

Advance = Callable[[int], Any]
"""Told how many bytes of canonical tensors were dealt with since the last call."""


class _About(Protocol):
    """What of a manifest does not depend on the layout."""

    @property
    def step(self) -> int: ...

    @property
    def parameters(self) -> dict[str, ParameterEntry]: ...

    @property
    def state(self) -> dict[str, Any]: ...


class TensorSource(Protocol):
    """Whole tensors by (state, name). `sparsecl.checkpoint.reader.Reader` is one."""

    @property
    def topologies(self) -> Any:
        """dict[str, LayerTopology]: global live sets, by the names of the parameters whose entry
        says `live`. Any, because type checkers take a cached_property for no dict in a protocol."""
        ...

    @property
    def manifest(self) -> _About:
        """Parameters, step and state."""
        ...

    def arrays(self) -> Mapping[str, torch.Tensor]:
        """What methods keep beside the parameters, by METHOD.ARRAY."""
        ...

    def states(self) -> list[str]:
        """Names of all states."""
        ...

    def has(self, state: str, name: str) -> bool:
        """True if `state` of parameter `name` is there."""
        ...

    def read(self, state: str, name: str) -> torch.Tensor:
        """A fresh fp32 tensor of the parameter's global shape; absent weights are 0."""
        ...


def keys(source: TensorSource) -> list[tuple[str, str]]:
    """All (state, name), parameter by parameter."""
    states = source.states()
    return [
        (state, name)
        for name in source.manifest.parameters
        for state in states
        if source.has(state, name)
    ]


def num_bytes(source: TensorSource, wanted: Sequence[tuple[str, str]]) -> int:
    """Bytes of these tensors as `read` gives them: what a progress bar counts to."""
    shapes = source.manifest.parameters
    return sum(4 * math.prod(shapes[name].shape) for _, name in wanted)


def live_mask(topology: LayerTopology, dim: int, rank: int, size: int) -> torch.Tensor:
    """bool [O_local, I_local]: the live weights of one of `size` slices along `dim` (-1: whole)."""
    whole = dim < 0 or size == 1
    return torch.from_numpy(topology.mask() if whole else topology.shard(dim, rank, size))


def num_live(topology: LayerTopology, dim: int, size: int) -> list[int]:
    """Live weights of each of `size` slices along `dim`; [all] if nothing is split."""
    if dim < 0 or size == 1:
        return [topology.num_live]
    degrees = topology.row_degrees() if dim == 0 else topology.column_degrees()
    return [int(n) for n in degrees.reshape(size, -1).sum(axis=1, dtype=np.int64)]


def config_part(state: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A block of the run's config in a checkpoint's `state`; {} if it is not there, or no block.

    Nothing is trusted: the digest of a manifest says that it is whole, not who wrote it.
    """
    config = state.get("config")
    found = config.get(key) if isinstance(config, dict) else None
    return found if isinstance(found, dict) else {}


def live_counts(topologies: Mapping[str, LayerTopology]) -> tuple[int, int]:
    """(live, all) weights of the matrices on a topology."""
    cells = [topology.num_cells for topology in topologies.values()]
    return sum(topology.num_live for topology in topologies.values()), sum(cells)
