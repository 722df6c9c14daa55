"""AFAF by hand: links and fixed units of two domains on a small MLP (methods.md 6.2)."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsecl.errors import UserError
from sparsecl.methods.config import MethodsConfig
from sparsecl.methods.dst.base import look
from sparsecl.methods.sparse_cl.afaf import Afaf
from sparsecl.methods.sparse_cl.config import AfafConfig
from sparsecl.methods.work import LayerWork, RunWork
from sparsecl.sparse.linear import ColumnParallelSparseLinear, RowParallelSparseLinear
from sparsecl.sparse.registry import masks
from sparsecl.sparse.units import UnitGroup
from sparsecl.topology.layer import LayerShape, LayerTopology
from tests.methods import plain
from tests.methods.plain import PlainContext

HALF = np.array([[True, False], [False, True], [True, False], [False, True]])
UP, DOWN = "up.weight", "down.weight"


class Mlp(nn.Module):
    """2 -> 4 -> 2, eight weights a matrix, of which four live; and a norm of two."""

    def __init__(self) -> None:
        super().__init__()
        up, down = (
            LayerTopology.from_mask(name, mask) for name, mask in [("up", HALF), ("down", HALF.T)]
        )
        self.up = ColumnParallelSparseLinear(LayerShape("up", "up", 4, 2), up)
        self.down = RowParallelSparseLinear(LayerShape("down", "down", 2, 4), down)
        self.up.fill(torch.arange(1.0, 9.0).view(4, 2) / 8)
        self.down.fill(torch.arange(1.0, 9.0).view(2, 4) / 8)
        self.up.init_std = self.down.init_std = 0.1
        self.norm = nn.Parameter(torch.ones(2))
        self.hidden = UnitGroup(4, incoming=[UP], outgoing=[DOWN], fresh=lambda *_: np.empty(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm * self.down(self.hidden(F.relu(self.up(x))))


class Run:
    """Phases of ten steps under SGD."""

    def __init__(self, **options: Any) -> None:
        self.method, self.model = Afaf(AfafConfig(**options)), Mlp()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.context = PlainContext(
            self.model, self.optimizer, [self.method], dead=masks(self.model)
        )
        (self.group,) = self.context.units
        self.phase = -1

    def begin(self, domain: str) -> None:
        self.phase += 1
        self.context.domain = domain
        self.context.at(10 * self.phase, phase=self.phase, phase_step=0)
        items = self.context.slices
        self.context.means = {item.name: torch.ones_like(item.master) for item in items}
        self.method.phase_start(self.context)

    def step(self, *, applied: bool = True) -> None:
        self.context.methods.step_start(self.context)
        self.optimizer.zero_grad()
        self.model(torch.tensor([[1.0, 0.5]])).square().sum().backward()
        self.context.step(self.optimizer, applied=applied)

    def end(self) -> None:
        self.context.methods.phase_end(self.context)

    def live(self, name: str = UP) -> torch.Tensor:
        return self.context.sparse[name].layer.live_mask()

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return {name: value.detach().clone() for name, value in self.model.named_parameters()}


def test_the_next_link_joins_the_most_important_ends():
    """methods2.md: in [3, 1], out [2, 1], present {(0, 0)} -> [[6, 3], [2, 1]] -> in 0 to out 1."""
    run = Run()
    run.begin("a")
    run.context.set_live(UP, torch.tensor([[True, False]] + [[False, True]] + [[True, True]] * 2))
    run.method._units = {run.group: torch.tensor([2.0, 1.0, 0.0, 0.0])}
    run.method._stream = torch.tensor([3.0, 1.0])
    choice = look(run.context, UP)
    # Absent are (out 0, in 1) with 2 and (out 1, in 0) with 3.
    assert run.method.grow(run.context, choice, 1).tolist() == [2]
    assert run.method.grow(run.context, choice, 9).tolist() == [2, 1]


def test_scores_are_sums_of_what_moved_times_gradients():
    run = Run(every=100)
    run.begin("a")
    wanted = torch.zeros(4, 2)
    for _ in range(2):
        before = run.weights[UP]
        run.step()
        gradient = run.model.up.weight.grad
        assert gradient is not None
        wanted += ((run.weights[UP] - before) * gradient).abs()
    assert torch.allclose(run.method.scores[UP].view(4, 2), wanted) and wanted.any()
    run.step(applied=False)
    assert torch.allclose(run.method.scores[UP].view(4, 2), wanted)


def test_the_new_links_of_lowest_score_go():
    run = Run(drop_fraction=0.5, every=1)
    run.begin("a")
    run.method._matrices = {UP: torch.tensor([[4.0, 0.0], [0.0, 3.0], [2.0, 0.0], [0.0, 1.0]])}
    run.context.at(1)
    assert run.method.drop(run.context, look(run.context, UP)).tolist() == [7, 4]


def test_a_second_domain_adds_links_and_leaves_the_first_as_it_is():
    run = Run(every=6, drop_fraction=0.5, allocate=1.0, reuse=0.5, fix=0.5, links=0.5)
    run.begin("a")
    for _ in range(5):
        run.step()
    assert [int(run.live(name).sum()) for name in (UP, DOWN)] == [4, 4]
    run.end()
    first, graphs = run.weights, {name: run.live(name) for name in (UP, DOWN)}
    fixed = run.method.fixed[run.group].clone()
    assert int(fixed.sum()) == 2  # half of four
    run.begin("b")
    allocated = run.method.allocated[run.group]
    assert int(allocated.sum()) == 4 and int((allocated & fixed).sum()) == 2
    moved = False
    for _ in range(7):
        before = run.live(DOWN)
        run.step()
        assert run.context.guard.audit(run.context.progress.step) == 0
        new = {name: run.live(name) & ~graphs[name] for name in graphs}
        assert int(new[UP].sum()) == 2 and int(new[DOWN].sum()) == 2
        assert not new[UP][fixed].any()
        assert all((graphs[name] & ~run.live(name)).sum() == 0 for name in graphs)
        moved = moved or not torch.equal(before, run.live(DOWN))
    assert moved
    now = run.weights
    assert torch.equal(now["norm"], first["norm"])
    for name, graph in graphs.items():
        assert torch.equal(now[name][graph], first[name][graph])
        assert not torch.equal(now[name], first[name])
    with run.method.scoring(run.context, "a"):
        assert all(torch.equal(run.weights[name], first[name]) for name in first)
    assert all(torch.equal(run.weights[name], now[name]) for name in now)


def test_the_fixed_units_that_matter_are_used_again():
    run = Run(allocate=0.5, reuse=0.5, links=0.25)
    run.begin("a")
    run.end()
    run.method.fixed[run.group] = torch.tensor([True, True, False, False])
    run.begin("b")
    # |w| of down, with a gradient of one: unit 1 has 6 / 8 and unit 0 1 / 8.
    assert run.method.allocated[run.group][:2].tolist() == [False, True]
    assert int(run.method.allocated[run.group].sum()) == 2


def test_too_few_cells_are_an_error_before_the_phase():
    run = Run(allocate=0.25, reuse=0.0, links=1.0)
    run.begin("a")
    run.end()
    before = run.weights
    with pytest.raises(UserError) as caught:
        run.begin("b")
    assert str(caught.value) == (
        "methods.afaf: phase 1 (b) adds 4 links to up.weight, and 1 cells are left between its "
        "units. Raise allocate, or lower links or topology.density."
    )
    assert all(torch.equal(before[name], value) for name, value in run.weights.items())


def test_its_state_goes_and_comes_back():
    run = Run(every=2)
    run.begin("a")
    run.step()
    run.end()
    tensors, values = run.method.state_dict()
    arrays = run.method.arrays()
    other = Afaf(AfafConfig())
    other.check_state(tensors, values)
    other.check_arrays(arrays, values)
    other.load_state_dict(tensors, values)
    other.load_arrays(arrays)
    assert other.phases == {"a": 0} and other.scores.keys() == {UP, DOWN}
    assert torch.equal(other.fixed[run.group], run.method.fixed[run.group])
    assert torch.equal(other.allocated[run.group], run.method.allocated[run.group])
    key = f"fixed.{run.group}"
    with pytest.raises(ValueError, match=f"{key} is missing"):
        other.check_arrays({k: v for k, v in arrays.items() if k != key}, values)
    with pytest.raises(ValueError, match="are no 4 units"):
        other.check_arrays({**arrays, key: torch.zeros(2, dtype=torch.uint8)}, values)
    with pytest.raises(ValueError, match="units.x: 0 is no number of units"):
        other.check_state(tensors, {**values, "units": {"x": 0}})
    with pytest.raises(ValueError, match="units: none, after a phase that has ended"):
        other.check_arrays(arrays, {**values, "units": {}})


def test_without_its_state_it_goes_on_in_the_first_phase_alone():
    run = Run(every=3, drop_fraction=0.5)
    run.phase = 0
    run.context.at(4)
    run.method.began_anew(run.context)
    before = run.live()
    for _ in range(3):
        run.step()
    assert not torch.equal(run.live(), before)  # at step 6
    run.end()
    assert int(run.method.fixed[run.group].sum()) == round(0.3 * 4)
    with pytest.raises(UserError, match="Resume it without --weights_only"):
        run.method.began_anew(run.context.at(10, phase=1))


def test_nothing_dropped_is_plain_training_in_the_first_phase():
    """Bit for bit."""
    run, other = Run(every=2, drop_fraction=0.0), Run()
    run.begin("a")
    context = PlainContext(other.model, other.optimizer, [], dead=masks(other.model))
    for _ in range(5):
        run.step()
        other.optimizer.zero_grad()
        other.model(torch.tensor([[1.0, 0.5]])).square().sum().backward()
        context.step(other.optimizer)
    assert all(torch.equal(run.weights[name], value) for name, value in other.weights.items())


def test_a_checkpoint_is_checked_for_scores_below_zero():
    assert MethodsConfig(afaf=AfafConfig()).not_negative() == ["afaf.born", "afaf.scores"]


LAYERS = (LayerShape("0.up", "up", 10, 4), LayerShape("0.down", "down", 4, 10))
FACTS = replace(plain.FACTS, num_phases=4, layers=LAYERS, rewires=True)


def test_too_few_units_are_an_error_before_the_run():
    AfafConfig().check(FACTS)
    AfafConfig(first_block=0).check(replace(FACTS, num_phases=1))
    with pytest.raises(ValueError) as caught:
        AfafConfig(reuse=0.0, fix=0.5).check(FACTS)
    # 5 of 10 are fixed, then round(2.5) = 2 more.
    assert str(caught.value) == (
        "allocate=0.5: phase 2 of 4 needs 5 free hidden units of each block, and of 10 3 are left. "
        "Lower allocate or fix, raise reuse, or train fewer phases."
    )
    with pytest.raises(ValueError, match="first_block=1: the model has 1 blocks"):
        AfafConfig(first_block=1).check(FACTS)


def test_too_few_cells_are_an_error_before_the_run():
    """Ten units of four inputs with eight links: phases 1 and 2 open three units each. The first
    finds 3 x (4 - 0.8) = 9.6 cells. Six free units then have 6 x 0.8 + 8 x 2 / 3 links, so the
    second finds 3 x (4 - 1.69) = 6.9."""
    live = {"0.up": 8, "0.down": 8}
    AfafConfig().check_layers(live, 2, LAYERS)
    AfafConfig(links=0.8).check_layers(live, 3, LAYERS)
    with pytest.raises(ValueError) as caught:
        AfafConfig().check_layers(live, 3, LAYERS)
    assert str(caught.value) == (
        "links=1: phase 2 of 3 adds 8 links to 0.up, and about 7 cells are left between its units "
        "by then. Raise allocate, lower links or topology.density, or train fewer phases."
    )
    twice = [replace(layer, name=f"1.{layer.kind}") for layer in LAYERS]
    AfafConfig(first_block=1).check_layers({**live, "1.up": 1}, 3, (*LAYERS, *twice))


def test_links_of_later_domains_are_in_the_flops():
    layers = [
        LayerWork(outputs=4, inputs=2, live=4, kind=kind, sparse=False, has_gradient=True)
        for kind in ("q", "up", "down", "q", "up", "down")
    ]
    run = RunWork(layers=tuple(layers), phases=(2, 3), tokens=10)
    # Four feed-forward matrices get two links each, for three steps.
    assert AfafConfig(links=0.5).work(run).density == 6 * 10 * 3 * 4 * 2
    assert AfafConfig(links=0.5, first_block=1).work(run).density == 6 * 10 * 3 * 2 * 2
