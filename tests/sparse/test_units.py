"""A group of units: what its tap adds up, and that it costs nothing where nobody asks."""

import numpy as np
import pytest
import torch

from sparsecl.model.build import build_gpt
from sparsecl.model.config import ModelConfig
from sparsecl.model.surgery import GptSide
from sparsecl.sparse.units import SUMS, UnitGroup
from sparsecl.topology.config import TopologyConfig


def group(num_units: int = 2) -> UnitGroup:
    return UnitGroup(num_units, incoming=["a"], outgoing=["b"], fresh=lambda *_: np.zeros((1, 1)))


def test_a_tap_adds_up_what_passes_while_it_is_armed():
    units = group()
    h = torch.tensor([[[1.0, -2.0], [3.0, 0.0]]])
    units(h)
    units.arm(torch.tensor([2.0, 1.0]))
    assert units(h) is h
    units(h[:, :1])
    units.disarm()
    units(h)
    found = dict(zip(SUMS, units.sums.tolist(), strict=True))
    assert found == {
        "tokens": [3.0, 3.0],
        "h": [5.0, -4.0],
        "|h|": [5.0, 4.0],
        "h > 0": [3.0, 0.0],
        "|h - centre|": [3.0, 7.0],
    }
    units.arm()
    assert not units.sums.any()


def test_a_gate_multiplies_and_an_open_one_changes_no_bit():
    units, h = group(), torch.randn(5, 2)
    units.add_gate()
    assert units(h).equal(h)
    units.gate[1] = 0.0
    assert units(h)[:, 1].tolist() == [0.0] * 5 and units(h)[:, 0].equal(h[:, 0])
    assert units(h.bfloat16()).dtype == torch.bfloat16


def test_sums_stay_exact_where_the_model_is_cast():
    units = group().bfloat16()
    units.arm()
    units(torch.ones(1, 301, 2, dtype=torch.bfloat16))
    assert units.sums.dtype == torch.float32 and units.sums[1].tolist() == [301.0, 301.0]


def gpt(**fields):
    config = ModelConfig(preset=None, layers=2, width=16, heads=2, context=8, **fields)
    return build_gpt(config, TopologyConfig(density=0.25), vocab_size=20, seed=1)


def passed(model):
    tokens = torch.arange(18).view(2, 9)
    losses, _ = model(tokens[:, :-1], tokens[:, 1:])
    losses.mean().backward()
    return [losses.detach(), *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("gated", [False, True])
def test_a_gpt_has_groups_when_it_is_asked_and_gives_the_same_bits(gated):
    plain, seen = gpt(), gpt()
    assert not any(isinstance(part, UnitGroup) for part in plain.modules())
    groups = GptSide(seen, 1).units(gated=gated)
    assert list(groups) == ["layers.0.mlp", "layers.1.mlp"]
    assert groups["layers.1.mlp"].incoming == ("layers.1.mlp.up.weight",)
    assert groups["layers.1.mlp"].outgoing == ("layers.1.mlp.down.weight",)
    assert GptSide(seen, 1).units() == groups
    for each in groups.values():
        each.arm()
    assert all(a.equal(b) for a, b in zip(passed(plain), passed(seen), strict=True))
    assert groups["layers.0.mlp"].sums[0, 0] == 16


def test_activation_checkpointing_leaves_the_means():
    means = []
    for again in (False, True):
        model = gpt(activation_checkpointing=again)
        (units, _) = GptSide(model, 1).units().values()
        units.arm()
        passed(model)
        means.append(units.sums[2] / units.sums[0])
    assert means[0].allclose(means[1])


def test_fresh_rows_are_of_the_initial_distribution_on_live_weights():
    model = gpt()
    (units, _) = GptSide(model, 1).units().values()
    rows = np.array([3, 40])
    found = units.fresh("layers.0.mlp.up.weight", rows, np.random.default_rng(0))
    live = model.layers[0].mlp.up.topology.mask()[rows]
    again = np.random.default_rng(0).standard_normal((2, 16), dtype=np.float32)
    scale = 0.02 * np.sqrt(16 / live.sum(1, keepdims=True))
    assert (found[~live] == 0).all()
    assert np.allclose(found[live], (again * scale)[live])
