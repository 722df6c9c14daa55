"""Initial weights: drawn on the global matrix, masked and scaled there, then sliced.

O = out_features, I = in_features, global. Every parameter has its own random stream, named after
it, so its bits depend on (seed, name, global shape) only: not on the tensor-parallel size, the rank
or the order of modules. Scales are those of GPT-2: std 0.02, and 1/sqrt(2 * layers) of it for the
matrices that write into the residual stream. Biases start at zero. What later columns hear
(columns.py) starts as torch draws a linear, its factors between 0 and 0.1 as in the public code.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sparsecl import dist, seeding
from sparsecl.model.columns import LARGEST_SCALE
from sparsecl.model.config import ModelConfig
from sparsecl.model.gpt import GPT, Norm, Positions
from sparsecl.model.shapes import EMBEDDING, HEAD, POSITIONS, in_column, lateral_parts
from sparsecl.model.vocabulary import VocabularyEmbedding
from sparsecl.sparse.linear import SparseLinear
from sparsecl.topology.layer import ROW_PARALLEL, LayerTopology


def initialize(model: GPT, config: ModelConfig, *, seed: int) -> None:
    """Fill every parameter of the local model, in place. The model must be on the CPU in fp32."""
    residual_std = config.init_std / math.sqrt(2 * model.shape.layers)
    for module in model.modules():
        if isinstance(module, SparseLinear):
            # Row-parallel matrices are those that write into the residual stream.
            std = residual_std if module.shape.kind in ROW_PARALLEL else config.init_std
            fill_linear(module, seed=seed, std=std, corrected=config.density_corrected_init)
        elif isinstance(module, Norm):
            nn.init.ones_(module.weight)
        elif isinstance(module, GPT):
            _fill_ends(module, config.init_std, seed)
        if isinstance(module, SparseLinear | Norm) and module.bias is not None:
            nn.init.zeros_(module.bias)


def draw(name: str, shape: Sequence[int], *, seed: int, std: float) -> NDArray[np.float32]:
    """Normal values with standard deviation std for the global parameter `name`."""
    rng = seeding.stream(seed, "init", name)
    values = rng.standard_normal(tuple(shape), dtype=np.float32)
    values *= np.float32(std)
    return values


def fill_linear(linear: SparseLinear, *, seed: int, std: float, corrected: bool) -> None:
    """Fill the local slice of one linear.

    Args:
        std: of the dense matrix, before the correction for density.
        corrected: scale rows by their live fan-in; see `mask_and_correct`.
    """
    shape = linear.shape
    values = draw(
        f"{shape.name}.weight", (shape.out_features, shape.in_features), seed=seed, std=std
    )
    # In role "update" the absent entries take part in the forward pass: they start as in a dense
    # model, and so does the scale.
    if linear.topology is not None and linear.options.role == "topology":
        mask_and_correct(values, linear.topology, corrected=corrected)
    local = tp_slice(values, linear.partition_dim, linear.tp_rank, linear.tp_size)
    linear.fill(torch.from_numpy(local))
    linear.init_std, linear.init_corrected = std, corrected


def fresh_rows(
    linear: SparseLinear, rows: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Values [k, I] as the global matrix's rows [k] might have begun with: another draw of the
    same distribution, on the live weights of today."""
    values = rng.standard_normal((len(rows), linear.shape.in_features), dtype=np.float32)
    values *= np.float32(linear.init_std)
    if linear.topology is not None and linear.options.role == "topology":
        mask_rows(values, linear.topology.mask()[rows], corrected=linear.init_corrected)
    return values


def mask_and_correct(
    values: NDArray[np.float32], topology: LayerTopology, *, corrected: bool
) -> None:
    """Zero the absent weights of values [O, I], in place, and restore the scale of the outputs.

    With `corrected`, row r is multiplied by sqrt(I / live inputs of r): the variance of the output
    is then that of the dense layer at any density. The factor is exactly 1 for a full row, so an
    all-live mask gives the bits of a dense layer. A row without live weights stays 0.
    """
    mask_rows(values, topology.mask(), corrected=corrected)


def mask_rows(values: NDArray[np.float32], mask: NDArray[np.bool_], *, corrected: bool) -> None:
    """The same for some rows [k, I] and their mask."""
    values[~mask] = 0.0
    if corrected:
        degrees = np.maximum(mask.sum(axis=1, dtype=np.int64), 1)
        values *= np.sqrt(mask.shape[1] / degrees).astype(np.float32)[:, None]


def tp_slice(
    values: NDArray[np.float32], dim: int, tp_rank: int, tp_size: int
) -> NDArray[np.float32]:
    """The share of one rank of a global array that is split on `dim` (-1 = not split)."""
    return values if dim < 0 else np.split(values, tp_size, axis=dim)[tp_rank]


def _fill_ends(column: GPT, std: float, seed: int) -> None:
    """What is of no block, and what blocks hear of earlier columns."""
    number = column.number
    _fill_vocabulary(in_column(number, EMBEDDING), column.embedding, std, seed)
    if column.head is not None:
        _fill_vocabulary(in_column(number, HEAD), column.head, std, seed)
    if isinstance(column.positions, Positions):
        weight = column.positions.weight
        name = in_column(number, POSITIONS)
        _assign(weight, draw(name, weight.shape, seed=seed, std=std))
    for index in range(column.shape.layers):
        for part in lateral_parts(column.shape, index, number):
            values = seeding.stream(seed, "init", part.name).random(part.shape, dtype=np.float32)
            if len(part.shape) == 1:
                values *= np.float32(LARGEST_SCALE)
            else:  # as torch draws a linear
                values = (2 * values - 1) / np.float32(math.sqrt(part.shape[1]))
            own = part.name.removeprefix(in_column(number, ""))
            local = tp_slice(values, part.partition_dim, dist.tp_rank(), dist.tp_size())
            _assign(column.get_parameter(own), local)


def _fill_vocabulary(name: str, module: VocabularyEmbedding, std: float, seed: int) -> None:
    width = module.weight.shape[1]
    values = np.zeros((module.num_embeddings, width), dtype=np.float32)
    # Only rows of real tokens are drawn: the amount of padding depends on the tp size.
    values[: module.vocab_size] = draw(name, (module.vocab_size, width), seed=seed, std=std)
    _assign(module.weight, tp_slice(values, 0, dist.tp_rank(), dist.tp_size()))


def _assign(parameter: nn.Parameter, values: NDArray[np.float32]) -> None:
    assert tuple(parameter.shape) == values.shape, (parameter.shape, values.shape)
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(values))
