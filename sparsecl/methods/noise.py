"""Normal noise that is the same however a parameter is spread over ranks.

An element's draw depends on a key and on the element's place in the global matrix, and on nothing
else: so a slice draws its own part alone, a tp rank that of its share, and packed storage that of
its live weights, on the device where they are. Draw number i of a key is output number i of
SplitMix64 (Steele et al. 2014, https://doi.org/10.1145/2714064.2660195), whose state is a counter,
through the inverse of the normal distribution. NumPy's own normals reject some of their draws, so
that nobody can say where the i-th begins.
"""

import math

import torch
from torch import Tensor

from sparsecl import dist
from sparsecl.optim.slice import Slice
from sparsecl.sparse.index import LiveIndex

# Elements at a time: on a CPU what fits its cache is 3 times faster, a GPU wants large launches.
_CHUNK = {"cpu": 1 << 16}
_GPU_CHUNK = 1 << 22


def _signed(value: int) -> int:
    """64 bits as torch has them."""
    return value - 2**64 if value >= 2**63 else value


_STEP, _MIX1, _MIX2 = map(_signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _fold(z: Tensor, shift: int) -> Tensor:
    """z ^ (z >>> shift), in place; torch shifts the sign in, so its copies are cut off."""
    return z.bitwise_xor_((z >> shift).bitwise_and_((1 << (64 - shift)) - 1))


def mixed(key: int, index: Tensor) -> Tensor:
    """Outputs number `index` (0-based, int64) of SplitMix64 from state `key`, 64 bits each."""
    z = (index + 1).mul_(_STEP).add_(_signed(key % 2**64))
    return _fold(_fold(_fold(z, 30).mul_(_MIX1), 27).mul_(_MIX2), 31)


def uniform(key: int, index: Tensor) -> Tensor:
    """Uniform fp32 in (0, 1), of the shape and on the device of `index`, int64."""
    return (mixed(key, index) >> 40).float().add_(2.0**23 + 0.5).mul_(2.0**-24)


def normal(key: int, index: Tensor) -> Tensor:
    """Standard normal fp32, of the shape and on the device of `index`, int64 places [n]."""
    result = torch.empty(index.shape, device=index.device)
    chunk = _CHUNK.get(index.device.type, _GPU_CHUNK)
    for first in range(0, index.numel(), chunk):
        part = slice(first, first + chunk)
        # The upper 24 bits, as a number in (-1, 1) that is never an end of it: |noise| < 5.5.
        uniform = (mixed(key, index[part]) >> 40).float().add_(0.5).mul_(2.0**-23)
        result[part] = torch.erfinv(uniform).mul_(math.sqrt(2.0))
    return result


def places(item: Slice, index: LiveIndex | None, split_dim: int) -> Tensor:
    """Where the elements of a slice lie in the flattened global parameter, int64 [numel]. Local.

    Args:
        index: of packed storage; None where the parameter has its own shape.
        split_dim: the dim that tp splits; -1 = none.
    """
    device = item.master.device
    local = torch.arange(item.start, item.start + item.numel, device=device)
    shape = item.matrix_shape
    if index is not None:
        local = item.part(index.positions().to(device))
    if split_dim < 0 or dist.tp_size() == 1:
        return local
    num_cells = math.prod(shape)
    if split_dim == 0:
        return local + dist.tp_rank() * num_cells
    row, column = local // shape[1], local % shape[1]
    return row * (shape[1] * dist.tp_size()) + dist.tp_rank() * shape[1] + column
