"""Weights that may not move: who holds which of them, on this rank's slices."""

from collections.abc import Iterator

import torch

from sparsecl.optim.slice import Slice
from sparsecl.optim.slices import Slices

TOPOLOGY = "topology"
"""Owner of what role `update` holds; the layer's backward pass removes the gradient of these."""


class Holds:
    """Elements of parameters that keep their value, by parameter and owner. Local.

    An element that several owners hold moves again when the last of them lets go.
    """

    def __init__(self, slices: Slices) -> None:
        self.slices = slices
        self._owned: dict[str, dict[str, torch.Tensor]] = {}
        self._anchors: dict[str, torch.Tensor] = {}
        self._union: dict[str, torch.Tensor] = {}

    def __bool__(self) -> bool:
        return bool(self._union)

    def __iter__(self) -> Iterator[tuple[Slice, torch.Tensor, torch.Tensor]]:
        """(slice, bool [numel] True = held, fp32 [numel] values that it is held at)."""
        for item in self.slices:
            if item.name in self._union:
                yield item, self._union[item.name], self._anchors[item.name]

    def hold(self, item: Slice, where: torch.Tensor | None, owner: str) -> None:
        """Hold the elements of `where`, bool [numel] on the slice; None: the owner lets go."""
        owned = self._owned.setdefault(item.name, {})
        owned.pop(owner, None)
        if where is not None:
            owned[owner] = where.to(item.master.device)
        union = torch.stack(list(owned.values())).any(0) if owned else None
        if union is None or not bool(union.any()):
            self._union.pop(item.name, None)
            self._anchors.pop(item.name, None)
            return
        anchor = item.master.clone()
        if item.name in self._union:  # what was held keeps its value, also one that has moved since
            torch.where(self._union[item.name], self._anchors[item.name], anchor, out=anchor)
        self._union[item.name], self._anchors[item.name] = union, anchor

    def release(self) -> None:
        """Every owner but the topology lets go."""
        for item in self.slices:
            for owner in list(self._owned.get(item.name, {})):
                if owner != TOPOLOGY:
                    self.hold(item, None, owner)

    def moved_by_gradient(self) -> Iterator[tuple[Slice, torch.Tensor]]:
        """(slice, held) of those that a gradient may reach."""
        for item, held, _ in self:
            if self._owned[item.name].keys() != {TOPOLOGY}:
                yield item, held

    def count(self, item: Slice) -> int:
        """Held elements of a slice."""
        return int(self._union[item.name].sum()) if item.name in self._union else 0

    def find(self, name: str) -> torch.Tensor | None:
        """Which elements of this rank's slice are held, bool [numel]; None = none."""
        return self._union.get(name)

    def anchor(self) -> None:
        """Take the present values as those that are held: other weights were loaded."""
        for item in self.slices:
            if item.name in self._anchors:
                self._anchors[item.name] = item.master.clone()
