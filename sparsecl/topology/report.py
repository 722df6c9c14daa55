"""What a set of topologies looks like: counts, degrees, isolated units, one digest.

The degree of a row is the number of live inputs of an output unit, that of a column the number of
live outputs of an input unit; a unit of degree 0 is isolated.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
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
    row_degree_mean: float
    row_degree_std: float
    """Over the rows of the matrix, divided by their number (not by one less)."""

    column_degree_min: int
    column_degree_max: int
    column_degree_mean: float
    column_degree_std: float
    num_isolated_rows: int
    num_isolated_columns: int
    digest: str


@dataclass(frozen=True)
class GroupSummary:
    """Several layers as one line: those of a kind over all blocks, or a single one."""

    label: str
    num_layers: int
    shape: str
    """"O x I", or "mixed" if the layers differ."""

    density: float
    """Live weights / all weights of these layers together."""

    row_degree_min: int
    row_degree_mean: float
    row_degree_max: int
    column_degree_min: int
    column_degree_mean: float
    column_degree_max: int
    num_isolated_rows: int
    num_isolated_columns: int


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
        row_degree_mean=float(rows.mean()),
        row_degree_std=float(rows.std()),
        column_degree_min=int(columns.min()),
        column_degree_max=int(columns.max()),
        column_degree_mean=float(columns.mean()),
        column_degree_std=float(columns.std()),
        num_isolated_rows=int((rows == 0).sum()),
        num_isolated_columns=int((columns == 0).sum()),
        digest=topology.digest,
    )


def summarize(topologies: Mapping[str, LayerTopology]) -> list[LayerSummary]:
    """One row per layer, in the order of `topologies`."""
    return [summarize_layer(topology) for topology in topologies.values()]


def kind_of(name: str) -> str:
    """The job of a layer in its block: the last part of its name, q of layers.3.attention.q."""
    return name.rpartition(".")[2]


def group(
    rows: Sequence[LayerSummary], label: Callable[[str], str] = kind_of
) -> list[GroupSummary]:
    """Join the rows whose names have one label, in the order in which labels first appear."""
    members: dict[str, list[LayerSummary]] = {}
    for row in rows:
        members.setdefault(label(row.name), []).append(row)
    return [_join(name, layers) for name, layers in members.items()]


def _join(label: str, rows: Sequence[LayerSummary]) -> GroupSummary:
    num_live = sum(row.num_live for row in rows)
    shapes = {f"{row.out_features} x {row.in_features}" for row in rows}
    return GroupSummary(
        label=label,
        num_layers=len(rows),
        shape=shapes.pop() if len(shapes) == 1 else "mixed",
        density=num_live / sum(row.out_features * row.in_features for row in rows),
        row_degree_min=min(row.row_degree_min for row in rows),
        row_degree_mean=num_live / sum(row.out_features for row in rows),
        row_degree_max=max(row.row_degree_max for row in rows),
        column_degree_min=min(row.column_degree_min for row in rows),
        column_degree_mean=num_live / sum(row.in_features for row in rows),
        column_degree_max=max(row.column_degree_max for row in rows),
        num_isolated_rows=sum(row.num_isolated_rows for row in rows),
        num_isolated_columns=sum(row.num_isolated_columns for row in rows),
    )


def table(topologies: Mapping[str, LayerTopology]) -> str:
    """One line per kind of layer, its blocks joined: density, degrees, isolated units."""
    if not topologies:
        return "dense: every weight is live"
    return degree_table(group(summarize(topologies)))


def degree_table(rows: Sequence[GroupSummary]) -> str:
    """Aligned text; at most 100 columns for labels of up to 24 characters."""
    label = max(5, *(len(row.label) for row in rows))
    shape = max(5, *(len(row.shape) for row in rows))
    # Degrees are of live weights: those of a row are a unit's inputs, of a column its outputs.
    lines = [
        f"{'':{label + shape + 14}} {'inputs per row':^18}  {'outputs per column':^18}  isolated",
        f"{'layer':<{label}} {'num':>3} {'shape':>{shape}} {'density':>8} "
        + "  ".join([f"{'min':>5} {'mean':>6} {'max':>5}"] * 2)
        + "  rows cols",
    ]
    for row in rows:
        inputs = _degrees(row.row_degree_min, row.row_degree_mean, row.row_degree_max)
        outputs = _degrees(row.column_degree_min, row.column_degree_mean, row.column_degree_max)
        lines.append(
            f"{row.label:<{label}} {row.num_layers:>3} {row.shape:>{shape}} {row.density:>8.5f} "
            f"{inputs}  {outputs}  {row.num_isolated_rows:>4} {row.num_isolated_columns:>4}"
        )
    return "\n".join(lines)


def _degrees(low: int, mean: float, high: int) -> str:
    """Three numbers in 18 columns; tenths of the mean while they matter."""
    digits = 1 if mean < 1000.0 else 0
    return f"{low:>5} {mean:>6.{digits}f} {high:>5}"


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
