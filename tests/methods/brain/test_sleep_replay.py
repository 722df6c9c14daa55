"""Sleep replay by hand: the rule on single weights, an MLP that sleeps, and what never moves."""

import math
from dataclasses import replace

import pytest
import torch

from sparsecl.errors import UserError
from sparsecl.methods.brain.config import SleepReplayConfig
from sparsecl.methods.brain.sleep_replay import Asleep, Rule, SleepReplay, gains, sleep
from sparsecl.topology.layer import LayerShape
from tests.methods.plain import FACTS, PlainContext

RULE = Rule(increase=0.032064, decrease=0.003344, width=0.001)
"""Of the public code for MNIST, in its own units."""

SG = {
    -1.0: 2.0,
    -0.002: 1.76159,
    -0.001: 1.46212,
    0.0: 1.0,
    0.001: 0.537883,
    0.002: 0.238406,
    0.01: 9.08e-5,
    1.0: 0.0,
}


def bits(*values: int) -> torch.Tensor:
    return torch.tensor(values) > 0


def learned(rule: Rule, rows: list[list[float]], before, after, free=None) -> torch.Tensor:
    weight = torch.tensor(rows)
    rule.learn(weight, torch.ones_like(weight) > 0 if free is None else free, before, after)
    return weight


def test_below_and_near_zero_weights_move():
    weights = torch.tensor(list(SG))
    wanted = torch.tensor(list(SG.values()))
    assert RULE.moves(weights).allclose(wanted, rtol=1e-3, atol=1e-7)
    assert replace(RULE, sign="mirror").moves(-weights).allclose(wanted, rtol=1e-3, atol=1e-7)
    assert replace(RULE, sign="none").moves(weights).equal(torch.ones(8))


def test_the_reference_vector():
    found = learned(RULE, [[-0.002, 0.001], [0.0, 0.003]], bits(1, 0), bits(1, 0))
    assert found.allclose(torch.tensor([[0.054484, -0.000799], [0.0, 0.003]]), atol=1e-6)
    assert found[1].equal(torch.tensor([0.0, 0.003]))  # its unit was silent


@pytest.mark.parametrize(("weight", "gain"), [(-1.0, 2.0), (0.0, 1.0), (1.0, 0.0)])
def test_one_weight(weight, gain):
    both = learned(RULE, [[weight]], bits(1), bits(1))
    assert float(both) == pytest.approx(weight + gain * RULE.increase)
    only_after = learned(RULE, [[weight]], bits(0), bits(1))
    assert float(only_after) == pytest.approx(weight - gain * RULE.decrease)
    assert float(learned(RULE, [[weight]], bits(1), bits(0))) == weight


def test_what_is_not_free_keeps_its_bits():
    free = torch.tensor([[True, False, False]])
    found = learned(RULE, [[-0.5, 0.0, -0.0]], bits(1, 1, 0), bits(1), free)
    assert found[0, 0] != -0.5 and (found[0, 1:] == 0).all()
    assert math.copysign(1.0, float(found[0, 2])) == -1.0


def test_gains():
    weights = [torch.tensor([[2.0, -9.0]]), torch.tensor([[0.5], [0.25]])]
    # Sizes 4 and 0.5, of an activation and of a weight.
    assert gains(weights, [4.0, 0.1], 8.0) == [8.0 * 1.0 / 4.0, 8.0 * 4.0 / 0.5]


def layer(rows: list[list[float]], threshold: float, rule: Rule = RULE) -> Asleep:
    weight = torch.tensor(rows)
    return Asleep(weight, torch.ones_like(weight) > 0, rule, gain=2.0, threshold=threshold)


def test_a_voltage_is_kept_until_its_unit_fires():
    still = replace(RULE, increase=0.0, decrease=0.0)
    one = layer([[0.5], [0.25]], 1.5, still)
    # Of the first unit 1, then 0.5 + 1: it fires at the threshold, and begins at 0.
    fired = [one.step(bits(x), decay=0.5).tolist() for x in (1, 1, 0, 1)]
    assert fired == [[False, False], [True, False], [False, False], [False, False]]
    assert one.voltage.tolist() == [1.0, 0.5 * 0.5 * 0.75 + 0.5] and int(one.num_spikes) == 1
    assert one.weight.equal(torch.tensor([[0.5], [0.25]]))


def test_the_next_layer_sees_the_spikes_of_the_same_step():
    first, second = layer([[1.0, 0.0]], 1.0), layer([[1.0], [-1.0]], 1.0)
    assert sleep([first, second], [bits(1, 0)], decay=0.999) == 1
    # All of the first unit's weights are positive or zero: only the one of the silent input moves.
    assert first.weight.tolist() == [[1.0, pytest.approx(-RULE.decrease)]]
    assert second.weight.tolist() == [[1.0], [-1.0]] and second.voltage.tolist() == [0.0, -2.0]
    assert sleep([first, second], [bits(0, 0)], decay=0.999) == 1  # nobody fires
    assert second.voltage.tolist() == pytest.approx([0.0, -1.998])


def test_an_mlp_sleeps_as_written_out():
    """40 time steps of three layers, one weight after the other."""
    draws = torch.Generator().manual_seed(3)
    widths = (5, 4, 4, 3)
    start = [torch.randn(o, i, generator=draws) for i, o in zip(widths, widths[1:], strict=False)]
    free = [torch.rand(w.shape, generator=draws) < 0.7 for w in start]
    rule, betas, decay = Rule(0.2, 0.05, 0.3), (1.0, 1.5, 2.0), 0.9
    shown = torch.rand(40, 5, generator=draws) < 0.5
    layers = [
        Asleep(w.clone(), f, rule, 1.5, beta) for w, f, beta in zip(start, free, betas, strict=True)
    ]
    assert sleep(layers, shown, decay=decay) == 40

    weights = [w.double().tolist() for w in start]
    volts = [[0.0] * width for width in widths[1:]]
    spikes = [0, 0, 0]
    for x in shown.int().tolist():
        for at, rows in enumerate(weights):
            y = []
            for o, row in enumerate(rows):
                drive = 1.5 * sum(value for i, value in enumerate(row) if x[i])
                volts[at][o] = decay * volts[at][o] + drive
                y.append(int(volts[at][o] >= betas[at]))
                if y[o]:
                    volts[at][o] = 0.0
                    for i in [i for i in range(len(row)) if free[at][o, i]]:
                        change = 0.2 if x[i] else -0.05
                        row[i] += change * 2 / (1 + math.exp(row[i] / 0.3))
            x, spikes[at] = y, spikes[at] + sum(y)
    assert min(spikes) > 5 and [int(one.num_spikes) for one in layers] == spikes
    for one, wanted, old, may in zip(layers, weights, start, free, strict=True):
        assert one.weight.allclose(torch.tensor(wanted), atol=1e-4)
        assert one.weight[~may].equal(old[~may]) and (one.weight != old)[may].any()


def test_at_zero_nobody_looks_or_sleeps():
    method = SleepReplay(SleepReplayConfig(increase=0.0, decrease=0.0))
    method.parts = {"layers.0.mlp": 4}
    method.phase_trained(None)
    assert method.state_dict() == ({}, {"num_sleeps": 0})
    assert not method.arrays() and not method.figures(None)


def test_a_gated_feed_forward_part_is_refused():
    gate = LayerShape("gate", "gate", 8, 4)
    with pytest.raises(ValueError, match="no one matrix .* Use model.form gpt or gpt2"):
        SleepReplayConfig().check(replace(FACTS, layers=(gate,)))
    SleepReplayConfig().check(FACTS)


def test_weights_alone_do_not_say_what_earlier_inputs_were():
    method, weight = SleepReplay(SleepReplayConfig()), torch.nn.Parameter(torch.zeros(2))
    context = PlainContext(weight, torch.optim.SGD([weight], lr=0.1), [method])
    method.began_anew(context)
    context.progress = replace(context.progress, phase=1)
    with pytest.raises(UserError, match="inputs of earlier phases"):
        method.began_anew(context)


@pytest.mark.parametrize(
    ("arrays", "num_sleeps", "problem"),
    [
        ({}, 1, "part is missing"),
        ({"part": torch.ones(3)}, 0, "part is not known"),
        ({"part": torch.ones(4)}, 1, r"part: .* \[4\] is not its inputs"),
        ({"part": torch.ones(3).double()}, 1, "part: .*float64"),
        ({"part": -torch.ones(3)}, 1, "below zero"),
    ],
)
def test_a_checkpoint_that_it_never_wrote_is_refused(arrays, num_sleeps, problem):
    method = SleepReplay(SleepReplayConfig())
    method.parts = {"part": 3}
    with pytest.raises(ValueError, match=problem):
        method.check_arrays(arrays, {"num_sleeps": num_sleeps})
    with pytest.raises(ValueError, match="num_sleeps: -1"):
        method.check_state((), {"num_sleeps": -1})
    method.check_arrays({"part": torch.ones(3)}, {"num_sleeps": 2})
