"""Lives of weights: by hand on six cells, then in a run that is stopped and goes on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparsecl.checkpoint.publish import newest_valid
from sparsecl.checkpoint.reader import Reader
from sparsecl.engine.observe.turnover import Lives, Turnover, births_problems
from sparsecl.sparse.linear import ColumnParallelSparseLinear
from sparsecl.topology.layer import LayerShape, LayerTopology
from tests.distributed import cases


def graph(*cells: int) -> LayerTopology:
    mask = np.zeros((2, 3), bool)
    mask.reshape(-1)[list(cells)] = True
    return LayerTopology.from_mask("w", mask)


@dataclass
class Watched:
    layer: Any
    turnover: Turnover

    def move(self, step: int, *cells: int) -> None:
        self.layer.set_topology(graph(*cells))
        self.turnover.look(step)


def watched() -> Watched:
    layer = ColumnParallelSparseLinear(LayerShape("w", "up", 2, 3), graph(0, 1))
    return Watched(layer, Turnover(layer, moves=True))


def test_by_hand():
    """0 lives 3 steps, goes, and comes back at 7; 2 comes at 3 and goes at 7."""
    run = watched()
    run.turnover.look(1)
    assert run.turnover.figures(1, 1) == {"came": 0.0, "lifetime": 1.0, "ever": 2 / 6}
    run.move(3, 1, 2)
    run.move(7, 0, 1)
    run.turnover.look(10)
    assert run.turnover.kept == Lives(gone=2, steps=3 + 4)
    # Of today's lives one has lasted 10 steps and one 3.
    expected = {"came": 0.5, "lifetime": (3 + 4 + 10 + 3) / 4, "ever": 3 / 6}
    assert run.turnover.figures(10, 5) == pytest.approx(expected)
    assert run.turnover.figures(10, 2)["came"] == 0.0  # it came before that phase


def test_nothing_is_kept_of_a_graph_that_stays():
    turnover = Turnover(watched().layer, moves=False)
    turnover.look(1)
    assert not turnover.arrays() and turnover.figures(1, 1) == {}


def test_births_that_no_run_has():
    graphs = {"w": graph(0, 1)}
    good = torch.tensor([1, 5, 0, -1, 0, 0], dtype=torch.int32)
    assert not list(births_problems({"w": good}, graphs))
    for bad in ({"v": good}, {"w": good.long()}, {"w": good[:5]}, {"w": good.roll(1)}):
        (problem,) = births_problems(bad, graphs)
        assert problem.startswith(next(iter(bad)))


RUN = (
    *cases.TWO_DOMAINS,
    "methods.set={every: 4, drop_fraction: 0.3}",
    "batch.micro=4",
    "checkpoint={every: 6, keep: 9}",
)


def trained(cache: str, overrides: tuple[str, ...], folder: str, start: str = "") -> Any:
    """Ends of phases, and the state and births at the end."""
    trainer, *_ = cases.assemble(cases.load(cache, overrides), "zero2", folder)
    if start:
        trainer.take_up(Path(start))
    trainer.run()
    ends = [r for r in trainer.records if r["kind"] == "phase" and r["event"] == "end"]
    births = {name: born.tolist() for name, born in trainer.turnover.born.items()}
    return ends, trainer.turnover.state_dict(), births


@pytest.mark.dist
def test_a_run_that_goes_on_knows_the_same_lives(pool, shared_cache, tmp_path):
    places = (str(shared_cache), RUN, str(tmp_path / "whole"))
    ends, state, births = pool.run(trained, 1, *places)[0]
    folder, _ = newest_valid(tmp_path / "whole")
    kept = Reader(folder).manifest.state["observers"]["turnover"]
    assert kept == state and state["gone"] > 0
    start = str(tmp_path / "whole" / "step_16")
    again = pool.run(trained, 1, str(shared_cache), RUN, str(tmp_path / "rest"), start)[0]
    assert (again[1], again[2]) == (state, births) and again[0] == ends[1:]
    # What lives now and did not at the border has come since; some may have gone and come back.
    then, now = (Reader(tmp_path / "whole" / f"step_{step}").topologies for step in (10, 20))
    live = sum(topology.num_live for topology in now.values())
    new = sum(int((now[name].mask() & ~then[name].mask()).sum()) for name in now)
    first, second = ends
    assert new / live <= second["came"] < new / live + 0.1
    assert 0.25 < first["ever"] < second["ever"] and 4 < first["lifetime"] < 10
