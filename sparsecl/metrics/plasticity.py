"""One row of a plasticity table out of one record: what results.json and TensorBoard show.

A record has figures of each block, of the final hidden state, and of the whole model. A row has one
number for each name: the mean over blocks; with the prefix `final_`, that of the final hidden
state; and where the whole model has a figure of the same name, that one in place of a mean.
"""

from collections.abc import Mapping
from typing import Any

from sparsecl.metrics.records import PlasticityPoint, RunRecords

Figures = Mapping[str, float | None]


def flat_figures(layers: Mapping[str, Figures], final: Figures, total: Figures) -> dict[str, Any]:
    """Name -> value; None = not measured.

    Args:
        layers: block name -> its figures; empty if the probe is off.
        final: figures of the final hidden state.
        total: figures of the whole model.
    """
    row: dict[str, Any] = {}
    for name in dict.fromkeys(name for figures in layers.values() for name in figures):
        values = [figures.get(name) for figures in layers.values()]
        known = [value for value in values if value is not None]
        row[name] = sum(known) / len(known) if len(known) == len(values) else None
    return {**row, **{f"final_{name}": value for name, value in final.items()}, **total}


def plasticity_rows(records: RunRecords) -> list[dict[str, Any]]:
    """One row for each record, in the order of the phases; the first is from before training."""
    return [_row(point) for point in sorted(records.plasticity, key=lambda point: point.phase)]


def _row(point: PlasticityPoint) -> dict[str, Any]:
    place = {"phase": point.phase, "step": point.step, "tokens": point.tokens}
    return {**place, **flat_figures(point.layers, point.final, point.total)}
