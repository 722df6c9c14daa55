"""Sparse topologies for GPTs, and for any torch model: see sparsecl/library/README.md.

`import sparsecl` loads nothing: a name is looked up in the room that has it when it is used.
"""

import importlib
from typing import Any

_LIBRARY = {
    "draw": "draw",
    "draw_csti": "draw",
    "mask_linear": "masks",
    "mask_linears": "masks",
    "mask_guard": "guard",
    "build": "models",
    "load": "models",
    "train": "runs",
    "read_run": "runs",
}
"""Name for users -> its file in sparsecl/library/."""

__all__ = list(_LIBRARY)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _LIBRARY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.library.{_LIBRARY[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LIBRARY])
