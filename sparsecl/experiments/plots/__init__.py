"""All pictures; beside benchmarks/plot.py nothing else knows matplotlib."""

from sparsecl.experiments.plots.runs import comparison_plot, forgetting_plot
from sparsecl.experiments.plots.topology import MaskPicture, ReachPicture, topology_plot

__all__ = [
    "MaskPicture",
    "ReachPicture",
    "comparison_plot",
    "forgetting_plot",
    "topology_plot",
]
