"""The parameters of a model as a manifest lists them."""

from collections.abc import Collection

from sparsecl.checkpoint.manifest import ParameterEntry
from sparsecl.model.config import ModelShape
from sparsecl.model.shapes import parts


def entries(shape: ModelShape, rows: int, live: Collection[str]) -> dict[str, ParameterEntry]:
    """Every parameter of a model, in its order.

    Args:
        rows: of the embedding, with its padding.
        live: names of the parameters on a topology.
    """
    return {
        part.name: ParameterEntry(part.shape, part.partition_dim, part.name in live)
        for part in parts(shape, rows)
    }
