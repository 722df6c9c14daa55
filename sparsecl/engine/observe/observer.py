"""What watches a run and must know, after a restart, what it had seen before."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor

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

    def arrays(self) -> Mapping[str, Tensor]:
        """For a file beside the manifest: on the CPU, small, the same on all ranks."""
        return {}

    def load_arrays(self, arrays: Mapping[str, Tensor]) -> None:
        """Take back what `arrays` gave, after `load_state_dict`."""


@dataclass(frozen=True)
class Remembered:
    """What all who watched had seen at a checkpoint."""

    states: Mapping[str, Any]
    """By name."""

    arrays: Mapping[str, Tensor]
    """By NAME.ARRAY; those of methods may be among them."""

    def give(self, observers: Mapping[str, Observer[Any]]) -> None:
        """Let each go on from its own. Earlier versions had fewer of them."""
        for name, state in self.states.items():
            observers[name].load_state_dict(state)
            observers[name].load_arrays(arrays_of(name, self.arrays))


def all_arrays(observers: Mapping[str, Observer[Any]]) -> dict[str, Tensor]:
    """Of all of them, by NAME.ARRAY."""
    return {
        f"{name}.{key}": value
        for name, observer in observers.items()
        for key, value in observer.arrays().items()
    }


def arrays_of(name: str, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of one observer, by its own names."""
    prefix = f"{name}."
    found = ((key.removeprefix(prefix), v) for key, v in arrays.items() if key.startswith(prefix))
    return dict(found)
