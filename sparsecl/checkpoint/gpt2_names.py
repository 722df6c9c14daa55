"""Our parameters under the names of GPT-2, as transformers and nanoGPT use them.

W = width, M = hidden units of the feed-forward part. GPT-2 keeps q, k and v as one matrix; it has
biases, which we do not; and transformers keeps linears as Conv1D, [inputs, outputs]: the transpose
of ours and of nanoGPT's.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from sparsecl.checkpoint.manifest import ParameterEntry
from sparsecl.model.config import ModelShape
from sparsecl.model.shapes import layer_shapes

EMBEDDING, POSITIONS, LAST_NORM = "embedding.weight", "positions.weight", "norm.weight"
_OUTSIDE = {EMBEDDING: "wte.weight", POSITIONS: "wpe.weight", LAST_NORM: "ln_f.weight"}

# Part of a block -> module of GPT-2 and our third of it (None = all of it).
_INSIDE: dict[str, tuple[str, int | None]] = {
    "norm1": ("ln_1", None),
    "attention.q": ("attn.c_attn", 0),
    "attention.k": ("attn.c_attn", 1),
    "attention.v": ("attn.c_attn", 2),
    "attention.o": ("attn.c_proj", None),
    "norm2": ("ln_2", None),
    "mlp.up": ("mlp.c_fc", None),
    "mlp.down": ("mlp.c_proj", None),
}
_BLOCK_NAME = re.compile(r"layers\.(\d+)\.(.+)\.weight")

# As split_dim of model/gpt.py, which is not imported: it brings Megatron and seconds of start.
_ROW_PARALLEL = ("o", "down")

# Causal masks that older releases saved: they hold no weight.
BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")


@dataclass(frozen=True)
class TensorPlace:
    """Where one of our parameters lies in a GPT-2."""

    key: str
    """Without the prefix "transformer."."""

    third: int | None
    """0, 1, 2: rows W * third to W * (third + 1) of the matrix [3W, W]; None: the whole."""

    is_linear: bool
    """Conv1D keeps it transposed."""


def place(name: str) -> TensorPlace:
    """Of the parameter `name` of our GPT."""
    if name in _OUTSIDE:
        return TensorPlace(_OUTSIDE[name], None, False)
    found = _BLOCK_NAME.fullmatch(name)
    assert found, name
    module, third = _INSIDE[found[2]]
    return TensorPlace(f"h.{found[1]}.{module}.weight", third, not found[2].startswith("norm"))


def entries(shape: ModelShape, rows: int, live: frozenset[str]) -> dict[str, ParameterEntry]:
    """Every parameter of our GPT, in the order of the model.

    Args:
        rows: of the embedding, with its padding.
        live: names of the parameters on a topology.
    """
    linears = {f"{layer.name}.weight": layer for layer in layer_shapes(shape)}
    result = {
        EMBEDDING: ParameterEntry((rows, shape.width), 0),
        POSITIONS: ParameterEntry((shape.context, shape.width), -1),
    }
    for name in _block_names(shape):
        layer = linears.get(name)
        result[name] = (
            ParameterEntry((shape.width,), -1)
            if layer is None
            else ParameterEntry(
                (layer.out_features, layer.in_features),
                int(layer.kind in _ROW_PARALLEL),
                name in live,
            )
        )
    return {**result, LAST_NORM: ParameterEntry((shape.width,), -1)}


def gpt2_biases(shape: ModelShape) -> dict[str, int]:
    """Key of every bias of a GPT-2 of this shape -> its length."""
    sizes = {"attn.c_attn": 3 * shape.width, "mlp.c_fc": shape.mlp}
    modules = dict.fromkeys(module for module, _ in _INSIDE.values())
    inside = {
        f"h.{index}.{module}.bias": sizes.get(module, shape.width)
        for index in range(shape.layers)
        for module in modules
    }
    return {**inside, "ln_f.bias": shape.width}


def _block_names(shape: ModelShape) -> Iterator[str]:
    for index in range(shape.layers):
        yield from (f"layers.{index}.{part}.weight" for part in _INSIDE)
