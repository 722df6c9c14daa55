"""Which parameters of a model live on a topology: the list that the optimizer side works from."""

from dataclasses import dataclass

from torch import Tensor, nn

from sparsecl.sparse.linear import Role, SparseLinear
from sparsecl.topology.layer import LayerTopology


@dataclass(frozen=True, eq=False)
class SparseParameter:
    """One masked parameter, as this tensor-parallel rank holds it."""

    name: str
    """Parameter name in the model, for example layers.3.mlp.up.weight."""

    dead: Tensor
    """bool, the shape of the local parameter, True = absent. Shared with the layer: read only."""

    topology: LayerTopology
    """Live weights of the global matrix."""

    role: Role
    """topology: absent entries are zero. update: they keep their initial value."""

    partition_dim: int
    """The dim that is split over tp."""


def sparse_parameters(model: nn.Module) -> dict[str, SparseParameter]:
    """The masked parameters of `model` by parameter name, in module order; dense layers left out.

    Call it after the model was moved to its device: the masks are those of the layers.
    """
    found: dict[str, SparseParameter] = {}
    for module_name, module in model.named_modules():
        if not isinstance(module, SparseLinear):
            continue
        if module.topology is None or module.dead is None:
            continue
        name = f"{module_name}.weight" if module_name else "weight"
        found[name] = SparseParameter(
            name, module.dead, module.topology, module.role, module.partition_dim
        )
    return found
