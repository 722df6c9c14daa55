"""What becomes of weights where a method moves them: how long they live, how many came in a phase,
and how many cells ever lived.

A weight that goes and comes back begins a new life. The last figure is the in-time
over-parameterisation of Liu et al. 2021, https://arxiv.org/abs/2102.02887: a sparse graph that
moves has in the end tried more cells than it has weights.

Graphs are global and the same on all ranks, so nothing is gathered. Nothing is done where no method
moves the graph.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsecl.engine.observe.observer import Observer
from sparsecl.engine.position import Count
from sparsecl.sparse.registry import sparse_parameters
from sparsecl.topology.layer import LayerTopology

NEVER, GONE = 0, -1
"""In place of a step of birth, which counts from 1."""


@dataclass
class Lives:
    """Part of every checkpoint, with the births as arrays beside it."""

    gone: Count = 0
    """Lives that have ended."""

    steps: Count = 0
    """The optimizer steps that they lasted, together."""


class Turnover(Observer[Lives]):
    """Looks at the graphs after each step. All methods are local."""

    def __init__(self, module: nn.Module, *, moves: bool) -> None:
        """`moves`: a method of the run moves the graph."""
        super().__init__(Lives())
        self._sparse = sparse_parameters(module) if moves else {}
        self._seen: dict[str, LayerTopology] = {}
        self.born: dict[str, Tensor] = {
            name: _mask(entry.topology).to(torch.int32) for name, entry in self._sparse.items()
        }
        """By parameter, int32 [cells] of the global matrix: the step before which a weight began,
        from 1; or GONE, or NEVER."""

    def look(self, step: int) -> None:
        """After `step` steps; what is live before the first was born at 0."""
        for name, entry in self._sparse.items():
            topology = entry.topology
            if self._seen.get(name) is topology:
                continue
            self._seen[name] = topology
            live, born = _mask(topology), self.born[name]
            ended = (born > 0) & ~live
            self.kept.gone += int(ended.sum())
            self.kept.steps += int((step + 1 - born[ended]).sum())
            born[ended] = GONE
            born[live & (born <= 0)] = step + 1

    def figures(self, step: int, phase_steps: int) -> dict[str, float]:
        """At the end of a phase of so many steps; empty where nothing moves.

        Returns:
            came: share of the live weights whose life began in the phase; lifetime: mean steps of
            all lives so far, those of today counted up to now; ever: share of all cells that have
            lived.
        """
        if not self.born:
            return {}
        live = came = ever = cells = lasted = 0
        for born in self.born.values():
            lives = born > 0
            live += int(lives.sum())
            came += int((born > step - phase_steps + 1).sum())
            ever += int((born != NEVER).sum())
            cells += born.numel()
            lasted += int((step + 1 - born[lives]).sum())
        total = live + self.kept.gone
        return {
            "came": came / live,
            "lifetime": (lasted + self.kept.steps) / total,
            "ever": ever / cells,
        }

    def arrays(self) -> Mapping[str, Tensor]:
        return dict(self.born)

    def load_arrays(self, arrays: Mapping[str, Tensor]) -> None:
        self.born.update(arrays)
        self._seen = {}


def births_problems(
    arrays: Mapping[str, Tensor], topologies: Mapping[str, LayerTopology]
) -> Iterator[str]:
    """What is wrong with the arrays that a checkpoint holds, a line each: they know the graphs."""
    for name, born in arrays.items():
        if name not in topologies:
            yield f"{name} is on no topology"
        elif born.dtype != torch.int32 or born.shape != (topologies[name].num_cells,):
            yield f"{name}: {born.dtype} {list(born.shape)} is not int32 of every cell"
        elif not torch.equal(born > 0, _mask(topologies[name])):
            yield f"{name}: not those that live have a birth"


def _mask(topology: LayerTopology) -> Tensor:
    return torch.from_numpy(topology.mask()).view(-1)
