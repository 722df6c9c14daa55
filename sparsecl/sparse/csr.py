"""The csr backend: compressed sparse rows on the CPU; cost follows the live weights.

O = out_features, I = in_features (local), N = live weights, T = tokens. y^T = W x^T and
dx^T = W^T dy^T are torch's sparse CSR products (MKL), dW is `sampled_addmm`, which computes the
live cells only: nothing of size O x I is ever built.

The kernels want features as rows, T values side by side. A feature-major activation (strides
(1, T)) is taken as it is, and an output wider than the input is handed on in that form: between
`up` and `down` stands an elementwise function, which keeps strides, so the widest activation of the
model is never transposed.
"""

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

# Tokens in one product: 3072 features x 256 tokens x 4 bytes = 3 MB, which stays in a core's cache
# while every row of W passes over it. With all tokens at once the product is 1.2 to 3 times slower
# (3072 x 768, 4096 tokens, 1 to 5 % live, Zen 3); 128 to 512 differ by less than the noise.
CHUNK_TOKENS = 256


class CsrBackend(nn.Module):
    """Sparse products over int32 CSR indices of W and of its transpose."""

    row_starts: Tensor
    """int32 [O + 1]; with `columns` [N] the CSR form of W. Values are in the layer's order."""

    columns: Tensor
    transposed_starts: Tensor
    """int32 [I + 1]; with `rows` [N] the CSR form of W^T."""

    rows: Tensor
    order: Tensor
    """int32 [N], where an entry of W^T lies among the values."""

    def __init__(self, mask: NDArray[np.bool_]) -> None:
        """Plan the products of a local mask [O, I]."""
        super().__init__()
        self.out_features, self.in_features = mask.shape
        rows, columns = np.nonzero(mask)
        order = np.lexsort((rows, columns))
        indices = {
            "row_starts": np.concatenate([[0], np.cumsum(mask.sum(1))]),
            "columns": columns,
            "transposed_starts": np.concatenate([[0], np.cumsum(mask.sum(0))]),
            "rows": rows[order],
            "order": order,
        }
        for name, values in indices.items():
            buffer = torch.from_numpy(values.astype(np.int32))
            self.register_buffer(name, buffer, persistent=False)

    @property
    def index_bytes(self) -> int:
        """Bytes of the indices."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    def arrange(self, x: Tensor) -> Tensor:
        """Feature-major [T, F]: a copy, unless it is so already."""
        return _features_first(x).t()

    def forward_product(self, x: Tensor, values: Tensor) -> Tensor:
        """[T, I] -> [T, O]; feature-major if O > I."""
        weight = _csr(self.row_starts, self.columns, _wide(values), self.out_features, x.shape[1])
        y = _multiply(weight, _features_first(_wide(x))).t()
        return (y if self.out_features > self.in_features else y.contiguous()).to(values.dtype)

    def grad_input(self, dy: Tensor, values: Tensor) -> Tensor:
        """[T, O] -> [T, I], feature-major."""
        ordered = _wide(values).index_select(0, self.order)
        weight = _csr(self.transposed_starts, self.rows, ordered, self.in_features, dy.shape[1])
        return _multiply(weight, _features_first(_wide(dy))).t().to(dy.dtype)

    def grad_values(self, dy: Tensor, x: Tensor) -> Tensor:
        """Gradient of the live values, [N]."""
        left, right = _features_first(_wide(dy)), _features_first(_wide(x))
        pattern = _csr(
            self.row_starts,
            self.columns,
            left.new_zeros(self.columns.numel()),
            self.out_features,
            self.in_features,
        )
        found = torch.sparse.sampled_addmm(pattern, left, right.t(), beta=0.0)
        return found.values().to(dy.dtype)


def _multiply(weight: Tensor, right: Tensor) -> Tensor:
    """Sparse [M, K] x dense [K, T] -> [M, T], a part of the tokens at a time."""
    num_tokens = right.shape[1]
    result = right.new_empty(weight.shape[0], num_tokens)
    for begin in range(0, num_tokens, CHUNK_TOKENS):
        part = slice(begin, min(begin + CHUNK_TOKENS, num_tokens))
        torch.mm(weight, right[:, part], out=result[:, part])
    return result


def _features_first(x: Tensor) -> Tensor:
    """[T, F] -> contiguous [F, T]; free if x is feature-major."""
    return x.t().contiguous()


def _wide(x: Tensor) -> Tensor:
    """torch has these kernels for fp32 and fp64; lower precisions are computed in fp32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _csr(starts: Tensor, indices: Tensor, values: Tensor, rows: int, columns: int) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Ss]parse")
        return torch.sparse_csr_tensor(
            starts, indices, values, size=(rows, columns), check_invariants=False
        )
