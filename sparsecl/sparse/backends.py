"""From a backend's name to a backend; what a user may choose, and where it works.

A new backend is one class on `Backend`, one entry of `BACKENDS`, and its name in `BackendName`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from sparsecl.errors import UserError
from sparsecl.sparse.block import BlockBackend
from sparsecl.sparse.csr import CsrBackend
from sparsecl.sparse.dense import DenseBackend
from sparsecl.sparse.index import LiveIndex
from sparsecl.sparse.native import NativeBackend, missing
from sparsecl.sparse.product import Backend
from sparsecl.topology.config import BackendName

Role = Literal["topology", "update"]
Storage = Literal["masked", "packed"]


@dataclass(frozen=True, kw_only=True)
class LinearOptions:
    """How a layer keeps its weight and multiplies; see TopologyConfig for the words."""

    role: Role = "topology"
    storage: Storage = "masked"
    backend: BackendName = "dense"
    block_size: int = 1
    """Side of the tiles that the topology is made of."""

    keep_expansion: bool = False


DEFAULT = LinearOptions()

PlanFn = Callable[[LinearOptions, LiveIndex, NDArray[np.bool_]], Backend]
"""(options, index, mask) -> the products of one layer, planned; see `make_backend`. It raises
ValueError if it cannot work on this mask."""


def make_backend(
    options: LinearOptions, index: LiveIndex, mask: NDArray[np.bool_], name: str
) -> Backend:
    """Prepare the products of one layer.

    Args:
        index: of `mask`.
        mask: this rank's slice [O, I], True = live.
        name: of the layer, for the message.

    Raises:
        UserError: if the backend cannot work on this mask or this machine.
    """
    try:
        return BACKENDS[options.backend](options, index, mask)
    except ValueError as error:
        raise UserError(
            f"topology.backend={options.backend}: {name}: {error}. Use dense."
        ) from None


def _csr(options: LinearOptions, index: LiveIndex, mask: NDArray[np.bool_]) -> Backend:
    """Refused where sparse rows would be slower than a dense product at any density."""
    _check_cpu()
    return CsrBackend(mask)


def _native(options: LinearOptions, index: LiveIndex, mask: NDArray[np.bool_]) -> Backend:
    """Refused where it would be another backend by this name."""
    _check_cpu()
    reason = missing()
    if reason is not None:
        raise ValueError(f"{reason}; csr does the same without them")
    return NativeBackend(mask)


def _check_cpu() -> None:
    if torch.cuda.is_available():
        raise ValueError(
            "it runs on the CPU only: on a GPU unstructured sparse products are slower than dense "
            "ones above about 1 % density"
        )


BACKENDS: dict[BackendName, PlanFn] = {
    "dense": lambda options, index, mask: DenseBackend(index, keep=options.keep_expansion),
    "native": _native,
    "csr": _csr,
    "block": lambda options, index, mask: BlockBackend(mask, options.block_size),
}
