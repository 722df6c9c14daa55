"""What a set of topologies looks like: counts, degrees, isolated units, one digest."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from sparsecl.topology.config import TopologyConfig
from sparsecl.topology.layer import LayerTopology


@dataclass(frozen=True)
class LayerSummary:
    """One row of the topology table."""

    name: str
    out_features: int
    in_features: int
    num_live: int
    density: float
    row_degree_min: int
    row_degree_max: int
    column_degree_min: int
    column_degree_max: int
    num_isolated_rows: int
    num_isolated_columns: int
    digest: str


def summarize_layer(topology: LayerTopology) -> LayerSummary:
    """Counts and degrees of one layer."""
    rows, columns = topology.row_degrees(), topology.column_degrees()
    return LayerSummary(
        name=topology.name,
        out_features=topology.out_features,
        in_features=topology.in_features,
        num_live=topology.num_live,
        density=topology.density,
        row_degree_min=int(rows.min()),
        row_degree_max=int(rows.max()),
        column_degree_min=int(columns.min()),
        column_degree_max=int(columns.max()),
        num_isolated_rows=int((rows == 0).sum()),
        num_isolated_columns=int((columns == 0).sum()),
        digest=topology.digest,
    )


def summarize(topologies: Mapping[str, LayerTopology]) -> list[LayerSummary]:
    """One row per layer, in the order of `topologies`."""
    return [summarize_layer(topology) for topology in topologies.values()]


def topology_digest(topologies: Mapping[str, LayerTopology]) -> str:
    """sha256 over the names and digests of all layers, sorted by name; hex."""
    lines = [f"{name} {topologies[name].digest}\n" for name in sorted(topologies)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def describe(config: TopologyConfig, topologies: Mapping[str, LayerTopology]) -> str:
    """One line for the header of a run."""
    if not topologies:
        return "dense: every weight is live"
    rows = summarize(topologies)
    num_cells = sum(row.out_features * row.in_features for row in rows)
    return (
        f"{config.kind} rho {config.rho:g}: {len(rows)} matrices, "
        f"{_short(sum(row.num_live for row in rows))} of {_short(num_cells)} live, "
        f"{sum(row.num_isolated_rows for row in rows)} isolated rows, "
        f"{sum(row.num_isolated_columns for row in rows)} isolated columns, "
        f"digest {topology_digest(topologies)[:12]}"
    )


def _short(count: int) -> str:
    """A count with three digits or so: 1.9M, 83.2k, 640."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)
