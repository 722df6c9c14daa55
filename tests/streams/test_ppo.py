"""The losses of PPO by hand, and methods on its two networks."""

import math
import sys
from typing import Any

import numpy as np
import pytest
import torch

from sparsecl.errors import UserError
from sparsecl.methods.cl.config import EwcConfig
from sparsecl.methods.config import MethodsConfig
from sparsecl.methods.plasticity.config import CbpConfig, DropoutConfig
from sparsecl.streams import ant_config
from sparsecl.streams.ant_config import (
    AgentConfig,
    AntRunConfig,
    AntStreamConfig,
    PpoConfig,
)
from sparsecl.streams.ppo import Agent, Lesson, Rollout, advantages, agent_shapes, policy_loss
from sparsecl.topology.build import build_topologies
from sparsecl.topology.config import TopologyConfig

PPO = PpoConfig(rollout=6, epochs=2, minibatches=2)


def rollout(*, rewards: Any = (1.0, 2.0, 3.0), fallen: Any = (0, 0, 0), ended: Any = (0, 0, 0)):
    size, rng = len(rewards), np.random.default_rng(0)
    seen, after = (rng.standard_normal((size, 4)).astype(np.float32) for _ in range(2))
    actions = torch.from_numpy(rng.standard_normal((size, 2)).astype(np.float32))
    return Rollout(
        seen, after, actions, np.array(rewards), np.array(fallen, bool), np.array(ended, bool)
    )


@pytest.mark.parametrize(
    ("fallen", "ended", "expected"),
    [
        # Errors of V = 1, 2, 4, then 8 behind the last: 1 + 1 - 1, 2 + 2 - 2, 3 + 4 - 4.
        ((0, 0, 0), (0, 0, 0), (1 + 0.25 * (2 + 0.25 * 3), 2 + 0.25 * 3, 3)),
        # Cut off at step 1: what follows counts by its value, and not by what is gained later.
        ((0, 0, 0), (0, 1, 0), (1 + 0.25 * 2, 2, 3)),
        # Fallen at step 1: nothing follows, 2 - 2.
        ((0, 1, 0), (0, 1, 0), (1.0, 0, 3)),
    ],
    ids=["goes on", "cut off", "fallen"],
)
def test_advantages_by_hand(fallen, ended, expected):
    values, following = np.array([1.0, 2.0, 4.0]), np.array([2.0, 4.0, 8.0])
    found = advantages(rollout(fallen=fallen, ended=ended), values, following, gamma=0.5, lam=0.5)
    assert found.tolist() == pytest.approx(expected)


def test_the_clipped_loss_by_hand():
    ratios = torch.tensor([1.0, 1.5, 1.5, 0.5, 0.5])
    new, gains = ratios.log().requires_grad_(), torch.tensor([2.0, 2.0, -2.0, 2.0, -2.0])
    loss = policy_loss(new, torch.zeros(5), gains, 0.2)
    assert float(loss.detach()) == pytest.approx(-(2.0 + 2.4 - 3.0 + 1.0 - 1.6) / 5)
    loss.backward()
    # What has gone too far already is not pushed on: it has no gradient.
    assert new.grad is not None
    assert new.grad.tolist() == pytest.approx([-0.4, 0.0, 0.6, -0.2, 0.0])


def agent(topology: TopologyConfig | None = None, activation: Any = "relu") -> Agent:
    config = AgentConfig(width=8, layers=2, activation=activation)
    policy, value = agent_shapes(config, 4, 2)
    graphs = build_topologies(
        topology or TopologyConfig(kind="dense"), (*policy[:-1], *value[:-1]), seed=0
    )
    return Agent(config, 4, 2, seed=0, graphs=graphs)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_a_lesson_is_what_a_plain_network_says(activation):
    made, seen = agent(activation=activation), rollout()
    with torch.no_grad():
        made.log_std[:] = torch.tensor([0.5, -0.5])
    params = dict(made.named_parameters())

    def plain(network: str, x: torch.Tensor) -> torch.Tensor:
        for k in range(3):
            name = f"{network}.layers.{k}"
            x = x @ params[f"{name}.weight"].T + params[f"{name}.bias"]
            x = getattr(x, activation)() if k < 2 else x
        return x

    x = torch.from_numpy(seen.observations)
    lesson = Lesson(made, seen, PPO)
    normal = torch.distributions.Normal(plain("policy", x), params["log_std"].exp())
    torch.testing.assert_close(lesson.old, normal.log_prob(seen.actions).sum(1))
    assert float(lesson.gains.mean()) == pytest.approx(0, abs=1e-6)
    of_policy, of_value = lesson.losses(torch.tensor([2, 0]))
    value = plain("value", x)[:, 0]
    expected = (value - lesson.targets)[[2, 0]].square().mean()
    torch.testing.assert_close(of_value, expected)
    assert float(of_policy.detach()) == pytest.approx(-float(lesson.gains[[2, 0]].mean()), abs=1e-6)
    noise = torch.tensor([1.0, -2.0])
    action = made.act(seen.observations[0], noise)
    torch.testing.assert_close(action, (plain("policy", x)[0] + params["log_std"].exp() * noise))


def test_an_epoch_sees_every_step_once():
    lesson = Lesson(agent(), rollout(rewards=range(6), fallen=[0] * 6, ended=[0] * 6), PPO)
    parts = [part.tolist() for part in lesson.parts(0, 3)]
    assert [len(part) for part in parts] == [3] * 4
    assert sorted(parts[0] + parts[1]) == sorted(parts[2] + parts[3]) == list(range(6))
    assert parts == [part.tolist() for part in lesson.parts(0, 3)]
    assert parts != [part.tolist() for part in lesson.parts(0, 4)]


def test_graphs_are_of_hidden_layers_and_differ():
    made = agent(TopologyConfig(kind="er_fixed", density=0.5))
    masks = made.masks()
    assert set(masks) == {
        f"{name}.layers.{k}.weight" for name in ("policy", "value") for k in (0, 1)
    }
    assert not torch.equal(masks["policy.layers.1.weight"], masks["value.layers.1.weight"])
    of_policy, of_value = Lesson(made, rollout(), PPO).losses(torch.arange(3))
    (of_policy + of_value).backward()
    for name, dead in masks.items():
        param = dict(made.named_parameters())[name]
        assert param.grad is not None and param.grad.abs().sum() > 0
        assert not param[dead].any() and not param.grad[dead].any()


def test_what_cannot_run_is_said_before_any_work():
    shapes = AgentConfig().shapes("policy", 4, 2)
    for methods, text in (
        ({"dropout": DropoutConfig()}, "methods.dropout: it does not run on slippery_ant"),
        ({"ewc": EwcConfig()}, "methods.ewc: it does not run on slippery_ant"),
    ):
        config = AntRunConfig(methods=MethodsConfig(**methods))
        with pytest.raises(ValueError, match=text):
            ant_config.check_methods(config, shapes)
    good = AntRunConfig(methods=MethodsConfig(cbp=CbpConfig(adam_restart="per_weight")))
    ant_config.check_methods(good, shapes)
    with pytest.raises(ValueError, match="minibatches=3 does not divide rollout=10"):
        PpoConfig(rollout=10, minibatches=3)
    with pytest.raises(ValueError, match="steps_per_task=10 is less than two episodes"):
        AntStreamConfig(steps_per_task=10)
    assert AntRunConfig().num_rollouts == math.ceil(200_000 / 2048)


def test_without_gymnasium_a_run_says_what_to_install(monkeypatch):
    from sparsecl.streams import slippery_ant

    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(UserError, match=r'pip install "sparsecl\[rl\]"'):
        slippery_ant.check_installed()
