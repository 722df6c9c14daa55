"""A-GEM and GEM by hand: what is remembered and drawn, and where the gradient goes."""

import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sparsecl.errors import UserError
from sparsecl.methods.base import Method
from sparsecl.methods.cl.agem import Agem
from sparsecl.methods.cl.config import AgemConfig, GemConfig
from sparsecl.methods.cl.gem import Gem, dual
from sparsecl.methods.config import MethodsConfig
from sparsecl.methods.table import build_methods
from tests.methods.plain import PlainContext


class Run:
    """SGD of rate 1 on weights of zero, so that a step shows minus its gradient."""

    def __init__(self, method: Agem, references: dict[int, Any], dead: Any = None) -> None:
        """`references`: the gradient on the memory of each phase."""
        size = len(next(iter(references.values())))
        self.weight = nn.Parameter(torch.zeros(size))
        self.optimizer = torch.optim.SGD([self.weight], lr=1.0)
        self.method = method
        self.asked: list[Any] = []
        masks = {} if dead is None else {"weight": torch.tensor(dead)}
        self.context = PlainContext(self.weight, self.optimizer, [method], dead=masks)

        def mean_gradients(rows: np.ndarray, *, each: Any = None) -> Any:
            self.asked.append(rows[:, 0].tolist())
            found = [torch.tensor(references[int(row) // 100]) for row in rows[:, 0]]
            return {"weight": torch.stack(found).mean(0)}

        self.context.mean_gradients = mean_gradients  # type: ignore[method-assign]

    def step(self, gradient: Any, *, phase: int = 1, applied: bool = True) -> list[float]:
        """The gradient that the optimizer has seen."""
        before = self.weight.detach().clone()
        self.context.at(self.context.progress.step, phase=phase)
        self.method.step_start(self.context)
        self.weight.grad = torch.tensor(gradient)
        self.context.step(self.optimizer, applied=applied)
        return (before - self.weight.detach()).tolist()


def agem(*phases: int, **options: Any) -> Agem:
    """Remembers sequence 0 of each of `phases`."""
    method = Agem(AgemConfig(**options))
    method.names = np.array([(phase, 0) for phase in phases])
    return method


def gem(*phases: int, **options: Any) -> Gem:
    method = Gem(GemConfig(**options))
    method.names = np.array([(phase, 0) for phase in phases])
    return method


@pytest.mark.parametrize("make", [agem, lambda *phases: gem(*phases, margin=0.0)])
@pytest.mark.parametrize(
    ("g", "r", "wanted"),
    [
        ([1.0, 2.0, 0.0], [0.0, -1.0, 1.0], [1.0, 1.0, 1.0]),
        ([1.0, 0.0], [-1.0, 1.0], [0.5, 0.5]),
        ([0.5, 0.5], [-1.0, 1.0], [0.5, 0.5]),  # a second projection does nothing
        ([1.0, 0.0], [2.0, 5.0], [1.0, 0.0]),
        ([1.0, 0.0], [0.0, 0.0], [1.0, 0.0]),
    ],
)
def test_the_vectors_of_the_cards(make, g, r, wanted):
    assert Run(make(0), {0: r}).step(g) == pytest.approx(wanted)


@pytest.mark.parametrize("kind", ["held", "absent"])
def test_what_may_not_move_counts_in_no_product(kind):
    """With the third weight r.r is 2, without it 1."""
    dead = [False, False, True] if kind == "absent" else None
    run = Run(agem(0), {0: [0.0, -1.0, 1.0]}, dead)
    if kind == "held":
        run.context.hold("weight", torch.tensor([False, False, True]), owner="other")
    assert run.step([1.0, 2.0, 0.0]) == [1.0, 0.0, 0.0]


def test_without_memory_a_step_is_left_alone_and_costs_nothing():
    run = Run(Agem(AgemConfig()), {0: [-1.0, 1.0]})
    assert run.step([1.0, 0.0], phase=0) == [1.0, 0.0]
    assert not run.asked and run.method.replayed_sequences == 0


def remembered(**options: Any) -> Agem:
    """Two phases of 3 and 2 steps of 4 sequences are over."""
    method = Agem(AgemConfig(**options))
    run = Run(method, {0: [0.0]})
    for phase, steps in enumerate((3, 2)):
        run.context.at(steps, phase=phase, data_step=steps)
        method.phase_end(run.context)
    return method


def test_each_phase_has_the_same_quota():
    method = remembered(sequences=5)
    phases, numbers = method.names.T
    assert phases.tolist() == [0] * 5 + [1] * 5
    assert len(set(numbers[:5])) == 5 and numbers[:5].max() < 12
    assert len(set(numbers[5:])) == 5 and numbers[5:].max() < 8
    assert len(remembered(sequences=100).names) == 12 + 8  # no more than there were


def test_a_batch_is_of_all_earlier_phases_and_counted_when_it_is_applied():
    run = Run(remembered(sequences=5, sequences_per_step=4), {0: [1.0], 1: [1.0]})
    run.step([1.0], phase=2)
    (asked,) = run.asked
    names = {100 * phase + number for phase, number in run.method.names.tolist()}
    assert len(asked) == 4 == len(set(asked) & names)
    before = run.method.replayed_by_phase
    assert run.method.replayed_sequences == 4 == sum(before) and len(before) == 2
    run.step([1.0], phase=2, applied=False)
    assert run.method.replayed_sequences == 4
    run.step([1.0], phase=2)
    assert run.asked[1] != run.asked[2]  # drawn anew in each step


def test_gem_asks_every_earlier_phase_and_all_of_its_memory_if_it_may():
    method = Gem(GemConfig(sequences=5, sequences_per_step=9))
    method.names = remembered(sequences=5).names
    run = Run(method, {0: [1.0], 1: [1.0]})
    run.step([1.0], phase=2)
    wanted = [method.names[:5] @ [100, 1], method.names[5:] @ [100, 1]]
    assert run.asked == [some.tolist() for some in wanted]
    assert method.replayed_by_phase == [5, 5]


def test_gem_with_two_constraints_by_hand():
    references = {0: [1.0, 0.0], 1: [0.0, 1.0]}
    assert Run(gem(0, 1, margin=0.0), references).step([-1.0, 3.0]) == [0.0, 3.0]
    # The second is kept already, and gets the margin all the same; the first needs more than it.
    assert Run(gem(0, 1, margin=0.5), references).step([-1.0, 3.0]) == pytest.approx([0.0, 3.5])
    assert Run(gem(0, 1, margin=0.5), references).step([1.0, 3.0]) == [1.0, 3.0]


def by_trial(r: Any, g: Any, margin: float) -> Any:
    """The best of all v whose parts are at the margin or free, by least squares."""
    best, found = np.inf, None
    for free in itertools.product((False, True), repeat=len(r)):
        v, free = np.full(len(r), margin), np.array(free)
        rest = g + (v * ~free) @ r
        v[free] = np.linalg.lstsq(r[free].T, -rest, rcond=1e-10)[0] if free.any() else 0.0
        value = np.square(v @ r + g).sum()
        if (v >= margin - 1e-9).all() and value < best - 1e-12:
            best, found = value, v
    return found


@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize("num", [1, 2, 3, 5])
def test_the_dual_is_the_best_of_all_sets_of_bounds(num, margin):
    rng = np.random.default_rng(num)
    for _ in range(20):
        r, g = rng.normal(size=(num, 6)), rng.normal(size=6)
        v = dual(r @ r.T, r @ g, margin)
        assert (v >= margin).all()
        np.testing.assert_allclose(v @ r + g, by_trial(r, g, margin) @ r + g, atol=1e-9)
        if margin == 0.0:
            assert (r @ (v @ r + g) >= -1e-9).all()


def test_a_direction_that_two_phases_share_counts_once():
    r, g = np.array([[1.0, 0.0], [2.0, 0.0]]), np.array([-3.0, 1.0])
    v = dual(r @ r.T, r @ g, 0.0)
    np.testing.assert_allclose(v @ r + g, [0.0, 1.0], atol=1e-12)


@pytest.mark.parametrize("method", [agem(0), gem(0)])
def test_what_is_not_finite_stays_so(method):
    """So that the step is discarded."""
    run = Run(method, {0: [np.inf, -1.0]})
    assert not np.isfinite(run.step([-1.0, 1.0])).all()


def test_state_goes_and_comes_back():
    run = Run(remembered(sequences=5, sequences_per_step=4), {0: [1.0], 1: [1.0]})
    run.step([1.0], phase=2)
    values = json.loads(json.dumps(run.method.state_dict()[1]))
    other = Run(Agem(run.method.config), {0: [1.0], 1: [1.0]})
    other.method.check_state((), values)
    other.method.load_state_dict({}, values)
    other.context.at(1)
    for one in (run, other):
        one.step([1.0], phase=2)
    assert other.asked == run.asked[1:]
    assert other.method.state_dict() == run.method.state_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": [[0, 1], [0, 2], [0, 3]]}, "names: 3 of one phase, room 2"),
        ({"names": [[-1, 1]]}, r"names: \[-1, 1\] is no \[phase, number\]"),
        ({"num_replayed": -1}, "num_replayed: -1 is no count"),
        ({"by_phase": [3]}, "by_phase: 3 of 0 replayed"),
    ],
)
def test_a_state_that_it_never_gave_is_refused(change, message):
    method: Method = Agem(AgemConfig(sequences=2))
    with pytest.raises(ValueError, match=message):
        method.check_state((), {**method.state_dict()[1], **change})


def test_it_does_not_go_on_without_its_memory():
    run = Run(Agem(AgemConfig()), {0: [1.0]})
    run.method.began_anew(run.context)
    with pytest.raises(UserError, match="methods.agem: which sequences .* without --weights_only"):
        run.method.began_anew(run.context.at(0, phase=1))


def test_both_project_so_one_run_has_one_of_them():
    with pytest.raises(ValueError, match="agem and gem both project gradients; take one"):
        build_methods(MethodsConfig(agem=AgemConfig(), gem=GemConfig()))
