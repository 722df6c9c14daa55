"""OSFT by hand: projections, shares, what an Adam step leaves of them, and what is refused."""

from dataclasses import replace

import pytest
import torch

from sparsecl.methods.adapters.config import OsftConfig
from sparsecl.methods.adapters.osft import (
    Directions,
    Osft,
    adaptive_shares,
    largest_directions,
    likeness,
)
from sparsecl.methods.config import MethodsConfig
from sparsecl.methods.table import build_methods
from tests.methods.adapters.linear import FACTS, Model
from tests.methods.plain import PlainContext

THIRD = 3**-0.5


def test_a_gradient_and_a_step_by_hand():
    """U = e1 takes row 1 out; V = (1, 1, 1) / sqrt 3 its part of the other row."""
    held = Directions(torch.tensor([[1.0], [0.0]]), torch.tensor([2.0]), torch.full((1, 3), THIRD))
    gradient = torch.tensor([[5.0, -1, 3], [2, 1, 0]])
    assert held.apart(gradient).tolist() == [[0, 0, 0], pytest.approx([1, 0, -1], abs=1e-6)]
    # The step that Adam makes of it leaks: v . step = .057735.
    step = torch.tensor([-0.1, 0.1, 0.1])
    assert float(held.v[0] @ step) == pytest.approx(0.057735, abs=1e-6)
    after = held.beside(torch.stack([torch.ones(3), step]))
    assert after[1].tolist() == pytest.approx([-0.133333, 0.066667, 0.066667], abs=1e-6)
    assert float(held.v[0] @ after[1]) == pytest.approx(0.0, abs=1e-7)
    # The first row is what is held of it: 2 u v.
    assert after[0].tolist() == pytest.approx([2 * THIRD] * 3, abs=1e-6)
    assert held.moved(after) == pytest.approx(0.0, abs=1e-6)


def test_shares_by_hand():
    found = adaptive_shares({"a": 1.0, "b": -2.0, "c": 3.0}, least=0.1, most=0.8)
    assert found == {"a": pytest.approx(0.45), "b": pytest.approx(0.8), "c": 1.0}
    assert adaptive_shares({"a": 0.0}, least=0.1, most=0.8) == {"a": pytest.approx(0.8)}


def test_likeness_by_hand():
    """W x = (3, 4) and (0, 0, 5) of which two entries count; x = (1, 0) and (1, 0, 1)."""
    square = torch.tensor([[3.0, 0], [4, 0]])
    assert likeness(torch.tensor([[1.0, 0], [1, 0]]), square) == pytest.approx(2 * 0.6)
    wide = torch.tensor([[0.0, 2, 3], [0, 4, 4]])  # W x = (3, 4), against (1, 0) of x
    assert likeness(torch.tensor([[1.0, 0, 1]]), wide) == pytest.approx(0.6)


def trained(share: float, steps: int, *, from_start: bool = False, **changes):
    """A matrix [4, 3] under Adam with weight decay: before and after the second phase."""
    torch.manual_seed(0)
    method, model = Osft(OsftConfig(rule="fixed", share=share, from_start=from_start)), Model(4)
    torch.nn.init.normal_(model.q.weight)
    method.attach(model, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    context = PlainContext(model, optimizer, [method])
    context.at(0, **{"phase": 1, **changes})
    before = model.q.weight.detach().clone()
    context.methods.phase_start(context)
    for _ in range(steps):
        model.q.weight.grad = torch.randn(4, 3)
        context.step(optimizer)
    return before, model.q.weight.detach(), method, context


def test_adam_steps_leave_what_is_held_and_move_the_rest():
    before, after, method, context = trained(0.7, steps=5)
    held = largest_directions(before, 2)
    inside = held.u.T @ (after - before)
    assert inside.abs().max() < 1e-6 and ((after - before) @ held.v.T).abs().max() < 1e-6
    assert (after - before).abs().max() > 0.05
    assert method.figures(context) == {
        "rank": 2.0,
        "capacity": pytest.approx(2 / 3),
        "left": pytest.approx(1 / 3),
        "moved": pytest.approx(0.0, abs=1e-6),
    }


def test_all_directions_held_is_no_step_and_none_is_plain_training():
    before, after, *_ = trained(1.0, steps=3)
    assert before.equal(after)
    _, free, *_ = trained(0.0, steps=3)
    _, plain, method, _ = trained(0.7, steps=3, phase=0)
    assert free.equal(plain) and not method.held
    _, _, method, _ = trained(0.7, steps=0, phase=0, from_start=True)
    assert method.held.keys() == {"q.weight"}


def test_a_discarded_step_moves_nothing():
    before, _, _, context = trained(0.7, steps=0)
    weight = context.module.q.weight
    context.after_step(applied=False)
    assert weight.detach().equal(before)


@pytest.mark.parametrize(
    ("options", "facts", "message"),
    [
        ({}, {"dense": False}, "would fill absent weights.* topology.kind=dense"),
        ({}, {"num_phases": 1}, "2 at least, or 1 with init_from"),
        ({}, {"joint": True}, "2 at least"),
        ({}, {"freezing": ("packnet",)}, "packnet freezes weights too.* Take one of them"),
    ],
)
def test_what_it_cannot_be_part_of(options, facts, message):
    OsftConfig(**options).check(FACTS)
    OsftConfig(from_start=True).check(replace(FACTS, num_phases=1))
    with pytest.raises(ValueError, match=message):
        OsftConfig(**options).check(replace(FACTS, **facts))


def test_bad_options():
    with pytest.raises(ValueError, match=r"least=0.9 is more than most=0.8"):
        OsftConfig(least=0.9)
    with pytest.raises(ValueError, match="share"):
        OsftConfig(share=1.5)


def test_beside_another_that_projects_it_is_refused():
    from sparsecl.methods.cl.config import AgemConfig

    with pytest.raises(ValueError, match="both project gradients"):
        build_methods(MethodsConfig(osft=OsftConfig(), agem=AgemConfig()))


def test_directions_survive_a_checkpoint_bit_for_bit():
    _, _, method, _ = trained(0.7, steps=1)
    arrays = dict(method.arrays())
    assert set(arrays) == {f"q.weight.{key}" for key in "usv"}
    again = Osft(method.config)
    again.check_arrays(arrays, {})
    again.load_arrays(arrays)
    pairs = zip(again.held["q.weight"], method.held["q.weight"], strict=True)
    assert all(one.equal(other) for one, other in pairs)
    # Bit for bit in products too: a checkpoint has no other strides.
    assert all(part.is_contiguous() for part in method.held["q.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q.weight.w": torch.ones(2)}, "q.weight.w is not known"),
        ({"q.weight.u": None}, "q.weight: u, s and v belong together"),
        ({"q.weight.s": torch.ones(3)}, "is not of a linear's directions"),
        ({"q.weight.s": torch.ones(2, dtype=torch.float64)}, "is not fp32"),
    ],
)
def test_a_checkpoint_that_was_never_written(change, message):
    _, _, method, _ = trained(0.7, steps=0)
    arrays = {
        key: value for key, value in {**method.arrays(), **change}.items() if value is not None
    }
    with pytest.raises(ValueError, match=message):
        method.check_arrays(arrays, {})
