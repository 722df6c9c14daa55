"""Which parameters of a model live on a topology: the list that the optimizer side works from."""

from dataclasses import dataclass

from torch import Tensor, nn

from sparsecl.sparse.backends import Role
from sparsecl.sparse.dense import DenseBackend
from sparsecl.sparse.linear import SparseLinear
from sparsecl.topology.layer import LayerTopology


@dataclass(frozen=True, eq=False)
class SparseParameter:
    """One parameter on a topology, as this tensor-parallel rank holds it."""

    name: str
    """Parameter name in the model, for example layers.3.mlp.up.weight."""

    layer: SparseLinear

    @property
    def dead(self) -> Tensor | None:
        """bool, the shape of the local parameter, True = absent; None if packed: nothing absent
        is kept then. Shared with the layer: read only."""
        return self.layer.dead

    @property
    def topology(self) -> LayerTopology:
        """Live weights of the global matrix."""
        assert self.layer.topology is not None
        return self.layer.topology

    @property
    def role(self) -> Role:
        """topology: absent entries are zero. update: they keep their initial value."""
        return self.layer.options.role

    @property
    def partition_dim(self) -> int:
        """The dim of the matrix that is split over tp."""
        return self.layer.partition_dim


def sparse_parameters(model: nn.Module) -> dict[str, SparseParameter]:
    """The parameters of `model` on a topology, by parameter name, in module order; dense layers
    left out.

    Call it after the model was moved to its device: the masks are those of the layers.
    """
    return {
        f"{name}.weight" if name else "weight": SparseParameter(
            f"{name}.weight" if name else "weight", module
        )
        for name, module in model.named_modules()
        if isinstance(module, SparseLinear) and module.topology is not None
    }


def masks(model: nn.Module) -> dict[str, Tensor]:
    """`dead` by parameter name, of the masked parameters."""
    found = {name: entry.dead for name, entry in sparse_parameters(model).items()}
    return {name: dead for name, dead in found.items() if dead is not None}


def count_live(model: nn.Module) -> tuple[int, int]:
    """Live weights of all matrices on a topology, and their cells: global, on every rank. Local."""
    found = [entry.topology for entry in sparse_parameters(model).values()]
    return sum(t.num_live for t in found), sum(t.num_cells for t in found)


def forget_expansions(model: nn.Module) -> None:
    """Weights have changed: matrices made of them must be made again. Local."""
    for module in model.modules():
        if isinstance(module, DenseBackend):
            module.forget()


def absent_in_expansions(model: nn.Module) -> dict[str, Tensor]:
    """Nonzero absent cells of the matrices that are kept, by parameter name, for the audit."""
    return {
        name: entry.layer.backend.count_absent()
        for name, entry in sparse_parameters(model).items()
        if isinstance(entry.layer.backend, DenseBackend) and entry.layer.backend.keep
    }
