"""The parts of a model: every parameter, its global size, and which of them a topology can mask.

The one table of what a model of each form is made of. Names, sizes and splits of parameters are
taken from here by checkpoints, formulas and conversions; a test compares it with the built model.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from sparsecl.model.config import ModelShape
from sparsecl.topology.layer import LayerShape

EMBEDDING, POSITIONS, LAST_NORM = "embedding.weight", "positions.weight", "norm.weight"
HEAD = "head.weight"
VOCABULARY = (EMBEDDING, HEAD)
"""Matrices with a row for each token id; rows above those in use are padding. Those of later
columns have the same names, after the column's."""


def in_column(column: int, name: str) -> str:
    """The name of a part of a column; those of the first one have no prefix."""
    return f"columns.{column}.{name}" if column else name


def is_vocabulary(name: str) -> bool:
    """A parameter is one of VOCABULARY, of any column."""
    return re.sub(r"^columns\.\d+\.", "", name) in VOCABULARY


@dataclass(frozen=True)
class Part:
    """One parameter of the global model."""

    name: str
    shape: tuple[int, ...]
    partition_dim: int = -1
    """The dim that tp splits; -1: every rank holds it whole."""

    layer: LayerShape | None = None
    """The matrix that this is the weight of, if a topology can mask it."""

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def is_gain(self) -> bool:
        """A vector that every rank of a tp group holds: of norms, and biases of what is summed."""
        return len(self.shape) == 1 and self.partition_dim < 0


def block_shapes(shape: ModelShape, index: int, column: int = 0) -> list[LayerShape]:
    """The matrices of block `index` of a column: six, and seven in a gated form."""
    width, kv_width, mlp = shape.width, shape.kv_width, shape.mlp
    block = in_column(column, f"layers.{index}")
    attention, feed_forward = f"{block}.attention", f"{block}.mlp"
    every, qkv = shape.biases, (shape.biases or shape.qkv_bias, shape.head_width)
    gate = [LayerShape(f"{feed_forward}.gate", "gate", mlp, width, every)] if shape.gated else []
    return [
        LayerShape(f"{attention}.q", "q", width, width, *qkv),
        LayerShape(f"{attention}.k", "k", kv_width, width, *qkv),
        LayerShape(f"{attention}.v", "v", kv_width, width, *qkv),
        LayerShape(f"{attention}.o", "o", width, width, every),
        *gate,
        LayerShape(f"{feed_forward}.up", "up", mlp, width, every),
        LayerShape(f"{feed_forward}.down", "down", width, mlp, every),
    ]


def layer_shapes(shape: ModelShape) -> list[LayerShape]:
    """All matrices that may be masked, block by block, column by column."""
    return [
        layer
        for column in range(shape.columns)
        for index in range(shape.layers)
        for layer in block_shapes(shape, index, column)
    ]


def parts(shape: ModelShape, rows: int) -> list[Part]:
    """Every parameter, in the order of the model.

    Args:
        rows: of the embedding, with its padding if that is to be counted.
    """
    vocabulary, found = (rows, shape.width), list[Part]()
    for column in range(shape.columns):
        found.append(Part(in_column(column, EMBEDDING), vocabulary, 0))
        if not shape.rotary:
            found.append(Part(in_column(column, POSITIONS), (shape.context, shape.width)))
        for index in range(shape.layers):
            found += _block_parts(shape, index, column)
        found += _norm_parts(shape, in_column(column, "norm"))
        if not shape.tied:
            found.append(Part(in_column(column, HEAD), vocabulary, 0))
    return found


def lateral_parts(shape: ModelShape, index: int, column: int) -> Iterator[Part]:
    """What a block of a column hears the earlier columns with (columns.py)."""
    name = in_column(column, f"layers.{index}.mlp.lateral")
    if column:
        yield Part(f"{name}.up", (shape.mlp, shape.lateral), 0)
    for earlier in range(column):
        yield Part(f"{name}.scale{earlier}", (shape.mlp,), 0)
        yield Part(f"{name}.down{earlier}", (shape.lateral, shape.mlp), 1)


def _block_parts(shape: ModelShape, index: int, column: int) -> Iterator[Part]:
    block = in_column(column, f"layers.{index}")
    yield from _norm_parts(shape, f"{block}.norm1")
    for layer in block_shapes(shape, index, column):
        if layer.kind == "o":
            yield from _linear_parts(layer)
            yield from _norm_parts(shape, f"{block}.norm2")
        else:
            yield from _linear_parts(layer)
    yield from lateral_parts(shape, index, column)


def _norm_parts(shape: ModelShape, name: str) -> Iterator[Part]:
    yield Part(f"{name}.weight", (shape.width,))
    if shape.biases:
        yield Part(f"{name}.bias", (shape.width,))


def _linear_parts(layer: LayerShape) -> Iterator[Part]:
    size = (layer.out_features, layer.in_features)
    yield Part(f"{layer.name}.weight", size, layer.split_dim, layer)
    if layer.bias:
        # Of a row-parallel layer it is added to the sum over ranks, so all of them have it.
        yield Part(f"{layer.name}.bias", size[:1], -1 if layer.split_dim else 0)
