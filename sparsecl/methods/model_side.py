"""What a method may ask of the model before DeepSpeed has it, and add to it."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from torch import nn

from sparsecl.sparse.linear import SparseLinear
from sparsecl.sparse.units import UnitGroup


class ColumnSwitch(Protocol):
    """Columns of a model (model/columns.py). Local: all ranks set the same one."""

    open: int
    """The one that speaks and learns; those before it are heard, later ones do not run."""


class ModelSide(Protocol):
    """The model before DeepSpeed has it, for a method that adds to it."""

    def linears(self) -> Mapping[str, SparseLinear]:
        """By layer name, for example layers.3.mlp.up; the same order on all ranks."""
        ...

    def feed_forwards(self) -> Mapping[str, int]:
        """Features of the input of each feed-forward part, by its name, for example layers.3.mlp;
        the same order on all ranks."""
        ...

    def columns(self) -> ColumnSwitch | None:
        """Which column is open; None where there is one only."""
        ...

    def units(self, *, gated: bool = False) -> Mapping[str, UnitGroup]:
        """Hidden units, by the layer that they are in, for example layers.3.mlp; from now on the
        model lets methods see them. `gated`: with a gate of ones, which costs a product."""
        ...

    def add(self, at: str, name: str, part: nn.Module) -> None:
        """y = y + part(x) at the linear `at`, local to the tp rank (sparse/linear.py, add_part); or
        at the feed-forward part `at`, x whole and part(x) a share of a sum over tp (Mlp, add_part).
        The parameters must be those that the method's options promise (`parameters`)."""
        ...

    def generator(self, *names: str | int) -> np.random.Generator:
        """A named random stream of the run: the same on all ranks, whatever the layout."""
        ...
