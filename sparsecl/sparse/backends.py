"""From a backend's name to a backend; what a user may choose, and where it works."""

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

Role = Literal["topology", "update"]
Storage = Literal["masked", "packed"]
BackendName = Literal["dense", "csr", "block"]
AnyBackend = DenseBackend | CsrBackend | BlockBackend


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


def make_backend(
    options: LinearOptions, index: LiveIndex, mask: NDArray[np.bool_], name: str
) -> AnyBackend:
    """Plan the products of one layer.

    Args:
        index: of `mask`.
        mask: this rank's slice [O, I], True = live.
        name: of the layer, for the message.

    Raises:
        UserError: if the backend cannot work on this mask or this machine.
    """
    if options.backend == "dense":
        return DenseBackend(index, keep=options.keep_expansion)
    if options.backend == "csr":
        check_csr()
        return CsrBackend(mask)
    try:
        return BlockBackend(mask, options.block_size)
    except ValueError as error:
        raise UserError(f"topology.backend=block: {name}: {error}. Use dense.") from None


def check_csr() -> None:
    """Raise UserError where sparse rows would be slower than a dense product at any density."""
    if torch.cuda.is_available():
        raise UserError(
            "topology.backend=csr runs on the CPU only: on a GPU unstructured sparse products are "
            "slower than dense ones above about 1 % density. Use dense, block or auto."
        )
