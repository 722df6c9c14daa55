"""Proximal policy optimization: an agent, what it has seen, and the two losses.

Source: Schulman et al. 2017 (https://arxiv.org/abs/1707.06347), Eq. 7; advantages are those of
Schulman et al. 2016 (https://arxiv.org/abs/1506.02438), Eq. 16. Our own reading: the value's loss
is the plain mean square, without a bound of its own; nothing rewards entropy; gradients are not
clipped; advantages are scaled over a rollout; an episode that is cut off for its age counts as if
it went on, by the value of where it was cut; the last layer of the policy begins at a hundredth, so
that first actions are noise.

T = steps of a rollout, B = those of a minibatch, A = actions.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sparsecl import dist, seeding
from sparsecl.streams.ant_config import AgentConfig, PpoConfig
from sparsecl.streams.models import Networks
from sparsecl.topology.layer import LayerShape, LayerTopology

FIRST_POLICY = 0.01
MIN_DEVIATION = 1e-8

Shapes = tuple[LayerShape, ...]


def agent_shapes(config: AgentConfig, inputs: int, actions: int) -> tuple[Shapes, Shapes]:
    """The matrices of policy and value."""
    return config.shapes("policy", inputs, actions), config.shapes("value", inputs, 1)


class Agent(nn.Module):
    """A policy, normal with a mean for each state, and a value, as two networks."""

    networks = ()  # one, for methods
    dead = None  # log_std is all there

    def __init__(
        self,
        config: AgentConfig,
        inputs: int,
        actions: int,
        *,
        seed: int,
        graphs: Mapping[str, LayerTopology],
    ) -> None:
        super().__init__()
        policy, value = agent_shapes(config, inputs, actions)
        given: Any = {"apart": True, "activation": config.activation}
        self.policy = Networks(policy, [seed], [graphs], **given)
        self.value = Networks(value, [seed], [graphs], **given)
        self.log_std = nn.Parameter(torch.zeros(actions))
        with torch.no_grad():
            last: Any = self.policy.layers[-1]
            last.weight *= FIRST_POLICY

    @property
    def layers(self) -> list[Any]:
        return [*self.policy.layers, *self.value.layers]

    @property
    def weight(self) -> None:
        """There is none outside the layers."""

    def add_units(self) -> None:
        self.policy.add_units()
        self.value.add_units()

    def masks(self) -> dict[str, Tensor]:
        """Where weights are absent, by name."""
        return self.policy.masks() | self.value.masks()

    def log_probs(self, means: Tensor, actions: Tensor) -> Tensor:
        """[B], of actions [B, A] under means [B, A]."""
        distance = (actions - means) / self.log_std.exp()
        each = -0.5 * distance.square() - self.log_std - 0.5 * math.log(2.0 * math.pi)
        return each.sum(-1)

    @torch.no_grad()
    def act(self, observation: NDArray[np.float32], noise: Tensor) -> Tensor:
        """An action [A], from noise [A]; no method sees it."""
        x = torch.from_numpy(observation).to(noise.device)[None, None]
        return quiet(self.policy, x)[0, 0] + self.log_std.exp() * noise


def quiet(network: Networks, x: Tensor) -> Tensor:
    """Outputs, with nothing added up by taps."""
    last: Any = network.layers[-1]
    hidden = network.hidden(x)
    return last.activate(hidden[-1])


@dataclass(frozen=True, eq=False)
class Rollout:
    """What an agent has seen, done and got."""

    observations: NDArray[np.float32]
    """[T, inputs]"""

    following: NDArray[np.float32]
    """[T, inputs], what came of the action; not what the next episode begins with."""

    actions: Tensor
    """[T, A]"""

    rewards: NDArray[np.float64]
    """[T]"""

    fallen: NDArray[np.bool_]
    """[T], nothing comes after."""

    ended: NDArray[np.bool_]
    """[T], what comes after is another episode."""


def advantages(
    rollout: Rollout,
    values: NDArray[np.float64],
    following: NDArray[np.float64],
    *,
    gamma: float,
    lam: float,
) -> NDArray[np.float64]:
    """Generalized advantage estimates [T], of values [T] and those of what followed [T]."""
    after = np.where(rollout.fallen, 0.0, following)
    errors = rollout.rewards + gamma * after - values
    found, ahead = np.empty_like(errors), 0.0
    for t in reversed(range(len(errors))):
        found[t] = ahead = errors[t] + (0.0 if rollout.ended[t] else gamma * lam * ahead)
    return found


def policy_loss(new: Tensor, old: Tensor, gains: Tensor, clip: float) -> Tensor:
    """The clipped loss, from log-probabilities and advantages [B]."""
    ratio = (new - old).exp()
    bounded = ratio.clamp(1.0 - clip, 1.0 + clip)
    return -torch.minimum(ratio * gains, bounded * gains).mean()


class Lesson:
    """A rollout with all that an update needs of it."""

    def __init__(self, agent: Agent, rollout: Rollout, config: PpoConfig) -> None:
        """Value and weigh what was done, by the agent that did it. Local."""
        self.agent, self.config = agent, config
        device = dist.device()
        self.x = torch.from_numpy(rollout.observations).to(device)
        self.actions = rollout.actions
        after = torch.from_numpy(rollout.following).to(device)
        with torch.no_grad():
            values, following = (
                quiet(agent.value, x[None])[0, :, 0].double().cpu().numpy() for x in (self.x, after)
            )
            means = quiet(agent.policy, self.x[None])[0]
            self.old = agent.log_probs(means, self.actions)
        gains = advantages(rollout, values, following, gamma=config.gamma, lam=config.lam)
        self.targets = torch.from_numpy(gains + values).float().to(device)
        scaled = (gains - gains.mean()) / (gains.std() + MIN_DEVIATION)
        self.gains = torch.from_numpy(scaled).float().to(device)

    def parts(self, seed: int, number: int) -> Iterator[Tensor]:
        """Minibatches of all passes over the rollout `number`, int64 [B]."""
        size = len(self.x)
        for epoch in range(self.config.epochs):
            order = seeding.stream(seed, "ppo", "order", number, epoch).permutation(size)
            yield from torch.from_numpy(order).view(self.config.minibatches, -1)

    def losses(self, part: Tensor) -> tuple[Tensor, Tensor]:
        """Of policy and value, on a minibatch; methods see the units."""
        x, agent = self.x[part][None], self.agent
        new = agent.log_probs(agent.policy(x)[0], self.actions[part])
        of_policy = policy_loss(new, self.old[part], self.gains[part], self.config.clip)
        of_value = (agent.value(x)[0, :, 0] - self.targets[part]).square().mean()
        return of_policy, of_value
