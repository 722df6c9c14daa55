"""The methods of a run: every one is off unless its block is there.

No torch: a config is read and checked, a run planned and a report written without it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from sparsecl.methods.cl.config import EwcConfig, ReplayConfig
from sparsecl.methods.dst.config import SetConfig
from sparsecl.methods.facts import MethodConfig


@dataclass(frozen=True, kw_only=True)
class MethodsConfig:
    """Mechanisms beside the topology. The core experiment uses none."""

    ewc: EwcConfig | None = None
    """Elastic weight consolidation."""

    set: SetConfig | None = None
    """Sparse evolutionary training: the topology moves."""

    replay: ReplayConfig | None = None
    """Experience replay: earlier sequences are trained again beside the new ones."""

    def used(self) -> dict[str, MethodConfig]:
        """The blocks that are there, by name, in the order of the fields."""
        blocks = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: block for name, block in blocks.items() if block is not None}

    @property
    def rewires(self) -> bool:
        """A method moves live weights."""
        return any(block.rewires for block in self.used().values())

    def not_negative(self) -> Sequence[str]:
        """Names, as a checkpoint has them, of slice tensors that are never below zero."""
        blocks = self.used().items()
        return [f"{name}.{state}" for name, block in blocks for state in block.not_negative]
