"""Canonical tensors out of a checkpoint, whatever layout wrote it."""

import math
from collections import defaultdict
from pathlib import Path

import torch
from safetensors import safe_open

from sparsecl.checkpoint.manifest import Manifest, Piece, read_manifest
from sparsecl.checkpoint.topologies import TOPOLOGY_FILE, load_topologies
from sparsecl.errors import DataError
from sparsecl.topology.layer import LayerTopology


class Reader:
    """Reads whole (unsharded) tensors; memory is bounded by the largest one."""

    def __init__(self, folder: Path) -> None:
        """Open a checkpoint that `verify` has accepted.

        Raises:
            DataError: if a parameter's state is not covered exactly once by its pieces.
        """
        self.folder = folder
        self.manifest: Manifest = read_manifest(folder)
        self._pieces: dict[tuple[str, str], list[Piece]] = defaultdict(list)
        for piece in self.manifest.pieces:
            self._pieces[piece.state, piece.name].append(piece)
        self._files = {
            name: safe_open(folder / name, framework="pt", device="cpu")
            for name in self.manifest.files
            if name != TOPOLOGY_FILE
        }
        shapes = {n: entry.shape for n, entry in self.manifest.parameters.items() if entry.live}
        self.topologies: dict[str, LayerTopology] = (
            load_topologies(folder / TOPOLOGY_FILE, shapes) if shapes else {}
        )
        self._live_counts: dict[tuple[str, int], int] = {}
        for (state, name), pieces in self._pieces.items():
            self._check_cover(state, name, pieces)

    def states(self) -> list[str]:
        """Names of all states, for example ["master", "exp_avg", "exp_avg_sq"]."""
        return list(dict.fromkeys(state for state, _ in self._pieces))

    def has(self, state: str, name: str) -> bool:
        """True if the checkpoint holds `state` of parameter `name`."""
        return (state, name) in self._pieces

    def read(self, state: str, name: str) -> torch.Tensor:
        """The whole tensor in global coordinates, fp32; absent weights are 0."""
        entry = self.manifest.parameters[name]
        shards = self._num_shards(name)
        parts = [self._shard(state, name, shard) for shard in range(shards)]
        return parts[0] if shards == 1 else torch.cat(parts, dim=entry.partition_dim)

    def read_local(self, state: str, name: str, *, tp_rank: int, tp_size: int) -> torch.Tensor:
        """The slice of `read` that a tp rank of any layout holds."""
        if tp_size == self._num_shards(name):
            return self._shard(state, name, tp_rank)
        whole = self.read(state, name)
        dim = self.manifest.parameters[name].partition_dim
        return whole if dim < 0 else whole.chunk(tp_size, dim=dim)[tp_rank]

    def _shard(self, state: str, name: str, shard: int) -> torch.Tensor:
        """One tp slice, in the layout that wrote it."""
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
            if found.numel() != piece.numel:
                raise DataError(f"{self.folder / piece.file}: {piece.key} has a wrong length")
            kept[piece.start : piece.start + piece.numel] = found.view(-1)
        if not entry.live:
            return kept.view(shape)
        whole = torch.zeros(shape, dtype=torch.float32)
        mask = self.topologies[name].shard(entry.partition_dim, shard, shards)
        whole[torch.from_numpy(mask)] = kept
        return whole

    def _shard_size(self, name: str, shard: int) -> int:
        """Elements that the checkpoint keeps of one tp slice."""
        entry, shards = self.manifest.parameters[name], self._num_shards(name)
        if not entry.live:
            return math.prod(entry.shape) // shards
        if (name, shard) not in self._live_counts:
            mask = self.topologies[name].shard(entry.partition_dim, shard, shards)
            self._live_counts[name, shard] = int(mask.sum())
        return self._live_counts[name, shard]

    def _num_shards(self, name: str) -> int:
        split = self.manifest.parameters[name].partition_dim >= 0
        return self.manifest.tp_size if split else 1

    def _check_cover(self, state: str, name: str, pieces: list[Piece]) -> None:
        where = f"{self.folder}: {state} of {name}"
        if name not in self.manifest.parameters:
            raise DataError(f"{where}: unknown parameter")
        shards = self._num_shards(name)
        covered: dict[int, int] = dict.fromkeys(range(shards), 0)
        for piece in sorted(pieces, key=lambda piece: (piece.tp_rank, piece.start)):
            if covered.get(piece.tp_rank) != piece.start:
                raise DataError(f"{where}: pieces overlap or leave a gap")
            covered[piece.tp_rank] += piece.numel
        if any(end != self._shard_size(name, shard) for shard, end in covered.items()):
            raise DataError(f"{where}: pieces do not cover it")
