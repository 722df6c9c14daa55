"""What watches a run and must know, after a restart, what it had seen before."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Generic, TypeVar

Kept = TypeVar("Kept")


class Observer(Generic[Kept]):
    """Keeps its state in one dataclass, whose types say what a checkpoint may hold of it
    (engine/resume/saved.py)."""

    def __init__(self, kept: Kept) -> None:
        self.kept = kept

    def state_dict(self) -> dict[str, Any]:
        """For the manifest of a checkpoint, JSON-safe."""
        return asdict(self.kept)  # pyright: ignore[reportArgumentType]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.kept = type(self.kept)(**state)
