"""The csr backend: compressed sparse rows on the CPU, where native.py has not been built; cost
follows the live weights.

O = out_features, I = in_features (local), N = live weights, S = sequences, T = tokens of one. For
each sequence y^T = W x^T and dx^T = W^T dy^T are torch's sparse CSR products (MKL), and dW is the
sum over sequences of `sampled_addmm`, which computes the live cells only: nothing of size O x I is
ever built.

The kernels want features as rows, the tokens of a sequence side by side: activations [S, T, F] are
transposed views of contiguous [S, F, T], "feature-major". One that is so already is taken as it is,
and an output wider than the input is handed on in that form: between `up` and `down` stands an
elementwise function, which keeps strides, so the widest activation of the model is never
transposed.
"""

import functools
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsecl.sparse.product import Backend

# Below this many tokens sequences are folded into one: a call costs more than the cache saves.
MIN_TOKENS = 128


class CsrBackend(Backend):
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
        """Prepare the products of a local mask [O, I]."""
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

    def fold(self, x: Tensor) -> Tensor:
        """[S, T, F], a sequence at a time: 3072 features of 512 tokens are 6 MB, which stays in the
        cache while every row of W passes over it."""
        if x.dim() > 2 and x.shape[-2] >= MIN_TOKENS:
            return x.reshape(-1, *x.shape[-2:])
        return x.reshape(1, -1, x.shape[-1])

    def arrange(self, x: Tensor) -> Tensor:
        """Feature-major: a copy, unless it is so already."""
        return _transposed(x).transpose(1, 2)

    def restore(self, x: Tensor) -> Tensor:
        """Contiguous [S, T, F]."""
        return _transposed(x.transpose(1, 2))

    def forward_product(self, x: Tensor, values: Tensor) -> Tensor:
        """[S, T, I] -> [S, T, O]; feature-major if O > I."""
        weight = _csr(self.row_starts, self.columns, _wide(values), self.out_features, x.shape[2])
        y = _multiply(weight, x)
        return (y if self.out_features > self.in_features else self.restore(y)).to(values.dtype)

    def grad_input(self, dy: Tensor, values: Tensor) -> Tensor:
        """[S, T, O] -> [S, T, I], feature-major."""
        ordered = _wide(values).index_select(0, self.order)
        weight = _csr(self.transposed_starts, self.rows, ordered, self.in_features, dy.shape[2])
        return _multiply(weight, dy).to(dy.dtype)

    def grad_values(self, dy: Tensor, x: Tensor) -> Tensor:
        """Gradient of the live values, [N]."""
        left, right = _transposed(_wide(dy)), _transposed(_wide(x))
        total = _csr(
            self.row_starts,
            self.columns,
            left.new_zeros(self.columns.numel()),
            self.out_features,
            self.in_features,
        )
        for dy_sequence, x_sequence in zip(left, right, strict=True):
            total = torch.sparse.sampled_addmm(total, dy_sequence, x_sequence.t())
        return total.values().to(dy.dtype)


def _multiply(weight: Tensor, x: Tensor) -> Tensor:
    """Sparse [M, K] with x [S, T, K] -> [S, T, M], feature-major."""
    right = _transposed(_wide(x))
    result = right.new_empty(right.shape[0], weight.shape[0], right.shape[2])
    for given, out in zip(right, result, strict=True):
        # beta = 0 overwrites; `mm` would make zeros and copy the result over them.
        torch.addmm(out, weight, given, beta=0.0, out=out)
    return result.transpose(1, 2)


def _transposed(x: Tensor) -> Tensor:
    """[S, A, B] -> contiguous [S, B, A]; free if x is a transposed view of that."""
    wanted = x.detach().transpose(1, 2)
    if wanted.is_contiguous():
        return wanted
    result = torch.empty_like(wanted, memory_format=torch.contiguous_format)
    # Matrix by matrix: for these torch has a blocked transposition, of one thread only. At 1 %
    # live it is a third of the time, so the sequences are dealt out to threads.
    if torch.get_num_threads() > 1 and len(wanted) > 1:
        list(_workers(torch.get_num_threads()).map(Tensor.copy_, result, wanted))
    else:
        for out, source in zip(result, wanted, strict=True):
            out.copy_(source)
    return result


@functools.cache
def _workers(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="transpose")


def _wide(x: Tensor) -> Tensor:
    """torch has these kernels for fp32 and fp64; lower precisions are computed in fp32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _csr(starts: Tensor, indices: Tensor, values: Tensor, rows: int, columns: int) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Ss]parse")
        return torch.sparse_csr_tensor(
            starts, indices, values, size=(rows, columns), check_invariants=False
        )
