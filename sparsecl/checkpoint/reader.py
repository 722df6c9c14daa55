"""Canonical tensors out of a checkpoint, whatever layout wrote it.

Everything that a manifest claims is compared with the headers of the files before a tensor is read
or allocated: a checkpoint of another model is refused at the cost of its headers.
"""

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sparsecl.checkpoint.arrays import METHODS_FILE, read_arrays
from sparsecl.checkpoint.find import find_checkpoint
from sparsecl.checkpoint.manifest import Manifest, Piece, read_manifest, verify
from sparsecl.checkpoint.shards import check_entry, open_shard
from sparsecl.checkpoint.topologies import TOPOLOGY_FILE, StoredTopologies
from sparsecl.errors import DataError
from sparsecl.topology.layer import LayerShape, LayerTopology


class Reader:
    """Reads whole (unsharded) tensors; memory is bounded by the largest one."""

    def __init__(self, folder: Path) -> None:
        """Open a checkpoint that `verify` has accepted.

        Raises:
            DataError: if a parameter's state is not covered exactly once by its pieces, or files
                do not hold what the manifest says.
        """
        self.folder = folder
        self.manifest: Manifest = read_manifest(folder)
        self._pieces: dict[tuple[str, str], list[Piece]] = defaultdict(list)
        for piece in self.manifest.pieces:
            self._pieces[piece.state, piece.name].append(piece)
        self._files = {
            name: open_shard(folder / name)
            for name in self.manifest.files
            if name not in (TOPOLOGY_FILE, METHODS_FILE)
        }
        live = {name: entry for name, entry in self.manifest.parameters.items() if entry.live}
        self._stored = StoredTopologies(folder / TOPOLOGY_FILE, live) if live else None
        self._sizes: dict[str, list[int]] = {}
        for piece in self.manifest.pieces:
            check_entry(folder / piece.file, self._files[piece.file], piece.key, piece.numel)
        for (state, name), pieces in self._pieces.items():
            self._check_cover(state, name, pieces)

    @functools.cached_property
    def topologies(self) -> dict[str, LayerTopology]:
        """The global live sets, by the names of the parameters whose entry says `live`.

        Built at the first use: compare `manifest.parameters` with the model before.
        """
        return dict(self._stored or {})

    def arrays(self) -> Mapping[str, torch.Tensor]:
        """What methods and observers keep beside the parameters, by their names, read anew."""
        return read_arrays(self.folder, self.manifest)

    def states(self) -> list[str]:
        """Names of all states, for example ["master", "exp_avg", "exp_avg_sq"]."""
        return list(dict.fromkeys(state for state, _ in self._pieces))

    def has(self, state: str, name: str) -> bool:
        """True if the checkpoint holds `state` of parameter `name`."""
        return (state, name) in self._pieces

    def read(self, state: str, name: str) -> torch.Tensor:
        """The whole tensor in global coordinates, fp32; absent weights are 0.

        Raises:
            DataError: if the checkpoint does not hold it.
        """
        shards = self._num_shards(name)
        parts = [self._shard(state, name, shard) for shard in range(shards)]
        dim = self.manifest.parameters[name].partition_dim
        return parts[0] if shards == 1 else torch.cat(parts, dim=dim)

    def read_local(self, state: str, name: str, *, tp_rank: int, tp_size: int) -> torch.Tensor:
        """The slice of `read` that a tp rank of any layout holds."""
        if tp_size == self._num_shards(name):
            return self._shard(state, name, tp_rank)
        whole = self.read(state, name)
        dim = self.manifest.parameters[name].partition_dim
        return whole if dim < 0 else whole.chunk(tp_size, dim=dim)[tp_rank]

    def _shard(self, state: str, name: str, shard: int) -> torch.Tensor:
        """One tp slice, in the layout that wrote it."""
        if not self.has(state, name):
            raise DataError(f"{self.folder}: holds no {state} of {name}")
        entry = self.manifest.parameters[name]
        shards = self._num_shards(name)
        shape = list(entry.shape)
        if shards > 1:
            shape[entry.partition_dim] //= shards
        kept = torch.empty(self._shard_size(name, shard), dtype=torch.float32)
        for piece in self._pieces[state, name]:
            if piece.tp_rank != shard:
                continue
            found = self._files[piece.file].get_tensor(piece.key)
            kept[piece.start : piece.start + piece.numel] = found.view(-1)
        if not entry.live:
            return kept.view(shape)
        whole = torch.zeros(shape, dtype=torch.float32)
        mask = self.topologies[name].shard(entry.partition_dim, shard, shards)
        whole[torch.from_numpy(mask)] = kept
        return whole

    def _shard_size(self, name: str, shard: int) -> int:
        """Elements that the checkpoint keeps of one tp slice."""
        if name not in self._sizes:
            entry, shards = self.manifest.parameters[name], self._num_shards(name)
            if entry.live and self._stored is not None:
                self._sizes[name] = self._stored.num_live(name, shards)
            else:
                self._sizes[name] = [math.prod(entry.shape) // shards] * shards
        return self._sizes[name][shard]

    def _num_shards(self, name: str) -> int:
        split = self.manifest.parameters[name].partition_dim >= 0
        return self.manifest.tp_size if split else 1

    def _check_cover(self, state: str, name: str, pieces: list[Piece]) -> None:
        where = f"{self.folder}: {state} of {name}"
        shards = self._num_shards(name)
        covered: dict[int, int] = dict.fromkeys(range(shards), 0)
        # By length too: a rank whose part has no live weight wrote an empty piece.
        for piece in sorted(pieces, key=lambda piece: (piece.tp_rank, piece.start, piece.numel)):
            if covered.get(piece.tp_rank) != piece.start:
                raise DataError(f"{where}: pieces overlap or leave a gap")
            covered[piece.tp_rank] += piece.numel
        if any(end != self._shard_size(name, shard) for shard, end in covered.items()):
            raise DataError(f"{where}: pieces do not cover it")


def weight_reader() -> Callable[[Path, str], NDArray[np.float32]]:
    """A function (checkpoint folder, layer) -> its dense global weight [O, I]; see `read`.

    The digests of a checkpoint are checked at the first call for it.
    """

    @functools.cache
    def opened(folder: Path) -> Reader:
        verify(folder)
        return Reader(folder)

    def read(folder: Path, layer: str) -> NDArray[np.float32]:
        return opened(folder).read("master", f"{layer}.weight").numpy()

    return read


class TrainedWeights:
    """Live sets and weights of the layers of a run: what a ticket is made of."""

    def __init__(self, path: Path) -> None:
        """Open a run, at its newest valid checkpoint, or a checkpoint; digests are checked.

        Raises:
            MissingInputError: there is no such folder, or no checkpoint in it.
            DataError: it is damaged.
        """
        self._reader = Reader(find_checkpoint(path).folder)
        self.manifest = self._reader.manifest

    def live(self, shape: LayerShape) -> NDArray[np.bool_]:
        """What lives of a layer, [O, I]; all of it where all weights exist.

        Raises:
            DataError: it holds no layer of this name and shape.
        """
        entry = self._reader.manifest.parameters.get(f"{shape.name}.weight")
        size = (shape.out_features, shape.in_features)
        if entry is None or entry.shape != size:
            found = "none" if entry is None else " x ".join(map(str, entry.shape))
            raise DataError(
                f"{self._reader.folder}: the model has {shape.name}, {size[0]} x {size[1]}; here "
                f"it is {found}"
            )
        if not entry.live:
            return np.ones(size, dtype=np.bool_)
        return self._reader.topologies[f"{shape.name}.weight"].mask()

    def weight(self, shape: LayerShape) -> NDArray[np.float32]:
        """The global weight of a layer, fp32 [O, I]; absent weights are 0. Raises as `live`."""
        self.live(shape)
        return self._reader.read("master", f"{shape.name}.weight").numpy()
