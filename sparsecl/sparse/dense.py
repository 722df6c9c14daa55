"""The dense backend: expand the live values to the matrix, multiply, gather the gradient.

O = out_features, I = in_features (local), N = live weights, T = tokens. The products are those of
torch's own linear, in the same order of operands, so an all-live layer gives the bits of a dense
one. By default the matrix exists for the length of one product only; `keep` holds it from one
optimizer step to the next: it is then expanded once instead of twice for each micro-batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsecl.sparse.index import LiveIndex
from sparsecl.sparse.product import Backend


class DenseBackend(Backend):
    """y = x W^T with W expanded from [N]."""

    kept: Tensor | None
    """[O, I] with zeros in absent cells, or None while nothing is kept."""

    def __init__(self, index: LiveIndex, *, keep: bool = False) -> None:
        super().__init__()
        self.index = index
        self.keep = keep and not index.is_full  # an all-live matrix is a view of its values
        self.kept, self._fresh = None, False

    @property
    def index_bytes(self) -> int:
        """The layer's own index is all it needs."""
        return 0

    def is_row_major(self, device: torch.device) -> bool:
        """As torch's own linear."""
        return True

    def matrix(self, values: Tensor) -> Tensor:
        """W [O, I]."""
        if not self.keep:
            return self.index.expand(values)
        if self.kept is None or self.kept.dtype != values.dtype:
            self.kept = self.index.expand(values)
        elif not self._fresh:
            self.index.expand(values, out=self.kept)
        self._fresh = True
        return self.kept

    def forget(self) -> None:
        """The values have changed: the next product expands them again."""
        self._fresh = False

    def forward_product(self, x: Tensor, values: Tensor) -> Tensor:
        """[T, I] -> [T, O]."""
        return F.linear(x, self.matrix(values))

    def grad_input(self, dy: Tensor, values: Tensor) -> Tensor:
        """[T, O] -> [T, I]."""
        return dy.mm(self.matrix(values))

    def grad_values(self, dy: Tensor, x: Tensor) -> Tensor:
        """Gradient of the live values, [N]; that of the matrix exists in here only."""
        return self.index.gather(dy.t().mm(x))

    def count_absent(self) -> Tensor:
        """Nonzero absent cells of the kept matrix (0 if none is kept), for the audit."""
        if self.kept is None:
            return torch.zeros((), dtype=torch.int64)
        absent = ~self.index.mask().to(self.kept.device)
        return ((self.kept != 0) & absent).sum()
