"""What a context does for hidden units: figures over all ranks, and units that begin anew.

n = units of a group, global. Loss of plasticity is a matter of units, not of weights; a method says
which units, and this file knows in which slices of which parameters they lie.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsecl import dist
from sparsecl.methods.lines import add_lines, counted
from sparsecl.sparse.units import SUMS, UnitGroup


@dataclass(frozen=True)
class UnitFigures:
    """Means of each unit of a group, fp32 [n], the same on all ranks, on the ranks' devices; of
    networks side by side [networks, n]."""

    mean: Tensor
    """h over all tokens of the step."""

    mean_abs: Tensor
    """|h|"""

    active: Tensor
    """Share of tokens with h > 0."""

    distance: Tensor
    """|h - centre|; 0 if the tap was armed without one."""

    incoming: Tensor
    """|w| over all cells of the unit's rows, as they are now, absent ones too."""

    outgoing: Tensor
    """|w| over all cells of its columns."""


def unit_figures(context: Any, groups: Mapping[str, UnitGroup]) -> dict[str, UnitFigures]:
    """Of all groups, in one exchange. Collective over the world."""
    num_rows = len(SUMS) + 2
    sizes = [group.num_units for group in groups.values()]
    total = torch.zeros(num_rows, sum(sizes), dtype=torch.float64, device=dist.device())
    parts = dict(zip(groups, total.split(sizes, dim=1), strict=True))
    for name, group in groups.items():
        part = parts[name]
        part[: len(SUMS), group.local] = group.sums.to(total.device, total.dtype)
        for row, names, dim in ((-2, group.incoming, 0), (-1, group.outgoing, 1)):
            for parameter in names:
                item = counted(context, parameter)
                # Of the biases among them nothing is added: they are no weights of a unit's row.
                if item is not None and len(item.matrix_shape) >= 2:
                    add_lines(context, item, dim, item.master, part[row], absolute=True)
    dist.all_reduce(total)
    return {name: _figures(context, groups[name], part) for name, part in parts.items()}


def _figures(context: Any, group: UnitGroup, part: Tensor) -> UnitFigures:
    tokens = part[0].clamp(min=1.0)
    cells = []
    for names, dim in ((group.incoming, 0), (group.outgoing, 1)):
        shapes = [context.global_shape(name) for name in names]
        cells.append(sum(shape[1 - dim] for shape in shapes if len(shape) == 2))
    mean, mean_abs, active, distance = (part[row] / tokens for row in range(1, 5))
    incoming, outgoing = part[-2] / cells[0], part[-1] / cells[1]
    every = (mean, mean_abs, active, distance, incoming, outgoing)
    return UnitFigures(*(value.float() for value in every))


def begin_anew(
    context: Any,
    group: UnitGroup,
    units: NDArray[np.int64],
    rng: np.random.Generator,
    *,
    moments: bool = True,
) -> dict[str, Tensor]:
    """Give units [k] the incoming weights of a new model and outgoing ones of zero, and with
    `moments` also moments of zero: on live weights only. Local; every rank passes the same.

    Returns:
        Which elements have begun anew, as in `hold`, by parameter name.
    """
    changed = {}
    for name in group.incoming:
        rows = torch.from_numpy(group.fresh(name, units, rng))
        changed[name] = _set_lines(context, name, 0, units, rows)
    for name in group.outgoing:
        changed[name] = _set_lines(context, name, 1, group.columns(units), None)
    for name, where in changed.items() if moments else ():
        context.reset_state(name, where)
    return changed


def _set_lines(
    context: Any, name: str, dim: int, units: NDArray[np.int64], rows: Tensor | None
) -> Tensor:
    shape, device = context.global_shape(name), dist.device()
    chosen = torch.from_numpy(units).to(device)
    # Numbers in place of bools: packed storage gathers nothing else on a GPU.
    values, where = torch.zeros(2, *shape, device=device)
    where.index_fill_(dim, chosen, 1.0)
    if rows is not None:
        values[chosen] = rows.to(device)
    local = context.local_of(name, where) > 0
    context.write(name, context.local_of(name, values), where=local)
    return local
