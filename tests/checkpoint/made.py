"""A small checkpoint with everything in it that a real one may have, made by hand."""

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsecl.checkpoint.manifest import ParameterEntry, Piece
from sparsecl.checkpoint.publish import publish
from sparsecl.checkpoint.reader import Reader
from sparsecl.topology.layer import LayerTopology

FILE = "rank_0.safetensors"
STATES = ("master", "exp_avg", "exp_avg_sq", "ewc.precision")
ENTRIES = {
    "embedding.weight": ParameterEntry((8, 4), 0),
    "norm.weight": ParameterEntry((3,), -1),
    "a.up.weight": ParameterEntry((8, 4), 0, True),
    "a.down.weight": ParameterEntry((4, 8), 1, True),
    "b.up.weight": ParameterEntry((4, 4), 0),  # role update: all of it is kept
}
STATE: dict[str, Any] = {
    "config": {
        "model": {"preset": None, "layers": 1, "width": 4, "heads": 4, "context": 8},
        "tokenizer": {"kind": "bytes"},
    },
    "position": {"step": 5},
    "methods": {"replay": {"names": [1, 2]}},
}


def topologies(seed: int = 0) -> dict[str, LayerTopology]:
    """Live sets at density 0.25; the first quarter of `a.up` has no live weight at all."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, entry in ENTRIES.items():
        if entry.live:
            mask = rng.random(entry.shape) < 0.25
            mask[:2] = mask[:2] if name == "a.down.weight" else False
            found[name] = LayerTopology.from_mask(name.removesuffix(".weight"), mask)
    return found


def matrices(seed: int = 0) -> dict[tuple[str, str], torch.Tensor]:
    """Global tensors by (state, name); absent weights are 0. EWC leaves the norm out."""
    generator = torch.Generator().manual_seed(seed)
    live = topologies()
    found = {}
    for state in STATES:
        for name, entry in ENTRIES.items():
            if (state, name) == ("ewc.precision", "norm.weight"):
                continue
            value = torch.randn(entry.shape, generator=generator)
            value = value if state in ("master", "exp_avg") else value.square()
            mask = torch.from_numpy(live[name].mask()) if name in live else torch.tensor(True)
            found[state, name] = torch.where(mask, value, torch.zeros(()))
    found["master", "norm.weight"] = torch.tensor([1e-42, -0.0, 3e38])  # bits that may get lost
    return found


def save(
    root: Path,
    tensors: dict[tuple[str, str], torch.Tensor] | None = None,
    *,
    step: int = 5,
    state: dict[str, Any] | None = None,
) -> Path:
    """Publish it as one rank does; returns the folder."""
    live = topologies()
    stored, pieces = {}, []
    for (key, name), value in (tensors or matrices()).items():
        kept = value[torch.from_numpy(live[name].mask())] if name in live else value.reshape(-1)
        piece = Piece(FILE, key, name, 0, 0, kept.numel())
        stored[piece.key] = kept
        pieces.append(piece)
    state = {**STATE, "position": {"step": step}} if state is None else state
    return publish(root, step, stored, pieces, ENTRIES, state, keep=9, topologies=live)


class Counted:
    """A source that counts: how many canonical tensors were alive at once, and how many read.

    Memory counts as alive until its last view is gone, whatever object holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._reader = Reader(folder)
        self.manifest, self.topologies = self._reader.manifest, self._reader.topologies
        self.arrays = self._reader.arrays
        self.states, self.has = self._reader.states, self._reader.has
        self.alive: weakref.WeakSet[Any] = weakref.WeakSet()
        self.most = self.num_read = 0

    def read(self, state: str, name: str) -> torch.Tensor:
        memory = self._reader.read(state, name).numpy().copy().view(_Array)
        self.alive.add(memory)
        self.num_read += 1
        self.most = max(self.most, len(self.alive))
        return torch.from_numpy(memory)


class _Array(np.ndarray):
    """Hashed by identity, so that it can be a member of a set."""

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:  # type: ignore[override]
        return self is other
