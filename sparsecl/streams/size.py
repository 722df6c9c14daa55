"""How large a network of a stream is, before it is made. No torch."""

from dataclasses import dataclass

from sparsecl.streams.config import StreamRunConfig
from sparsecl.topology.build import build_topologies


@dataclass(frozen=True)
class NetworkSize:
    """Of the network of the first seed."""

    live: int
    """Weights that are there, and biases."""

    total: int
    """All of them."""

    density: float
    """Live share of the matrices of hidden layers, which alone have a graph."""


def network_size(config: StreamRunConfig, inputs: int, classes: int) -> NetworkSize:
    """Counted on the graph as it is drawn.

    Raises:
        UserError: the graph does not exist for a layer.
    """
    shapes = config.learner.shapes(inputs, classes)
    graphs = build_topologies(config.topology, shapes[:-1], seed=config.seed)
    cells = sum(shape.num_cells for shape in shapes)
    hidden = cells - shapes[-1].num_cells
    kept = sum(graph.num_live for graph in graphs.values()) if graphs else hidden
    biases = sum(shape.out_features for shape in shapes)
    density = kept / hidden if hidden else 1.0
    return NetworkSize(kept + cells - hidden + biases, cells + biases, density)
