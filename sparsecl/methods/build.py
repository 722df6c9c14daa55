"""From the config to the methods of a run."""

import dataclasses
from collections.abc import Callable
from typing import Any

from sparsecl.methods.base import Method, Methods
from sparsecl.methods.config import MethodsConfig
from sparsecl.methods.ewc import Ewc
from sparsecl.methods.replay import Replay
from sparsecl.methods.set import Set

METHODS: dict[str, Callable[[Any], Method]] = {
    "ewc": Ewc,
    "set": Set,
    "replay": Replay,
}
"""A method from its block of the config, by the block's name in `MethodsConfig`."""


def build_methods(config: MethodsConfig) -> Methods:
    """The methods whose block is in the config, in the order of `MethodsConfig`."""
    blocks = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return Methods(METHODS[name](block) for name, block in blocks.items() if block is not None)
