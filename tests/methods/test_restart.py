"""The size of a new weight's first steps under Adam, late in a run."""

from typing import Any

import pytest
import torch
from torch import nn

from sparsecl.methods.base import Method
from sparsecl.methods.dst.config import SetConfig
from sparsecl.methods.facts import RunFacts
from sparsecl.methods.restart import AdamRestart
from tests.methods.plain import PlainContext

LATE = 20_000.0
"""Steps after which 1 - 0.999^t is 1."""


class Owner(Method):
    """Starts a weight anew and lets the helper do the rest."""

    name = "owner"

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.restart = AdamRestart(kind)

    def after_update(self, context, items) -> None:
        self.restart.after_update(context, items)


def started(kind: str, betas: tuple[float, float]) -> tuple[PlainContext, Any, Owner, nn.Parameter]:
    """Two weights that have had a gradient of 1 for long; the second begins anew."""
    weight = nn.Parameter(torch.tensor([5.0, 0.0]))
    optimizer = torch.optim.AdamW([weight], lr=1.0, betas=betas, eps=1e-12, weight_decay=0.0)
    owner = Owner(kind)
    context = PlainContext(weight, optimizer, [owner])
    weight.grad = torch.ones(2)
    context.step(optimizer)
    state = optimizer.state[weight]
    state["step"].fill_(LATE)
    where = torch.tensor([False, True])
    with torch.no_grad():
        weight.copy_(torch.tensor([5.0, 0.0]))
        state["exp_avg"].fill_(1.0), state["exp_avg_sq"].fill_(1.0)
    context.reset_state("weight", where)
    owner.restart.mark(context, "weight", where)
    return context, optimizer, owner, weight


@pytest.mark.parametrize(
    ("kind", "betas", "size"),
    [
        ("global", (0.9, 0.999), 3.162),
        ("global", (0.9, 0.95), 0.447),
        ("global", (0.9, 0.99), 1.0),
        ("per_weight", (0.9, 0.999), 1.0),
        ("per_weight", (0.9, 0.95), 1.0),
        ("per_weight", (0.9, 0.99), 1.0),
        ("per_weight", (0.0, 0.99), 1.0),
    ],
)
def test_the_first_step_of_a_new_weight(kind, betas, size):
    context, optimizer, _, weight = started(kind, betas)
    weight.grad = torch.ones(2)
    context.step(optimizer)
    assert 5.0 - float(weight[0]) == pytest.approx(1.0, abs=1e-5)  # the old one steps as ever
    assert -float(weight[1]) == pytest.approx(size, abs=1e-3)


def test_a_young_weight_steps_as_in_an_optimizer_of_its_age():
    context, optimizer, _, weight = started("per_weight", (0.9, 0.999))
    alone = nn.Parameter(torch.zeros(1))
    own = torch.optim.AdamW([alone], lr=1.0, betas=(0.9, 0.999), eps=1e-12, weight_decay=0.0)
    for gradient in (0.5, -2.0, 0.1, 3.0):
        weight.grad, alone.grad = torch.tensor([1.0, gradient]), torch.tensor([gradient])
        context.step(optimizer)
        own.step()
        assert float(weight[1]) == pytest.approx(float(alone), abs=1e-4)


def test_a_discarded_step_changes_nothing():
    context, optimizer, owner, weight = started("per_weight", (0.9, 0.999))
    born = owner.restart.born["weight"].clone()
    weight.grad = torch.ones(2)
    context.step(optimizer, applied=False)
    assert weight.tolist() == [5.0, 0.0] and torch.equal(owner.restart.born["weight"], born)
    assert born.tolist() == [0.0, LATE]


def test_a_reset_of_the_optimizer_makes_all_weights_one_age():
    context, optimizer, owner, weight = started("per_weight", (0.9, 0.999))
    owner.restart.phase_start(context)
    assert owner.restart.born
    optimizer.state[weight]["step"].zero_()
    owner.restart.phase_start(context)
    assert not owner.restart.born


def test_global_keeps_nothing():
    _, _, owner, _ = started("global", (0.9, 0.999))
    assert not owner.restart.born and not list(owner.restart.slice_tensors())
    with pytest.raises(ValueError, match="born"):
        owner.restart.check_state({"born"})


def test_it_is_for_adam():
    facts: Any = {
        "storage": "masked",
        "joint": False,
        "num_phases": 1,
        "micro": 1,
        "others": (),
        "layers": (),
    }
    run = RunFacts(dense=False, role="topology", optimizer="sgd", **facts)
    SetConfig().check(run)
    with pytest.raises(ValueError, match=r"^adam_restart=per_weight is for Adam.* sgd; use global"):
        SetConfig(adam_restart="per_weight").check(run)
