"""What a user may say of the slippery Ant and of its agent. No torch."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from sparsecl.bounds import check_bounds, check_name
from sparsecl.methods.config import MethodsConfig
from sparsecl.streams.config import (
    ActivationKind,
    StepConfig,
    check_blocks,
    check_topology,
    mlp_shapes,
)
from sparsecl.topology.config import TopologyConfig
from sparsecl.topology.layer import LayerShape


@dataclass(frozen=True, kw_only=True)
class AntStreamConfig:
    """The frictions, one after the other."""

    kind: Literal["slippery_ant"] = "slippery_ant"
    """slippery_ant: Ant-v5 of gymnasium, on a ground whose friction changes."""

    tasks: Annotated[int, Ge(1)] = 5
    """Frictions, each log-uniform in [0.02, 2]."""

    steps_per_task: Annotated[int, Ge(2)] = 40_000
    """Steps of the environment after which the friction changes, at the next end of an episode."""

    episode: Annotated[int, Ge(1)] = 1000
    """Steps after which an episode is cut off."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.steps_per_task < 2 * self.episode:
            raise ValueError(
                f"steps_per_task={self.steps_per_task} is less than two episodes "
                f"(episode={self.episode})"
            )


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """The two networks, one for the policy and one for the value."""

    width: Annotated[int, Ge(1)] = 256
    """Units of a hidden layer."""

    layers: Annotated[int, Ge(1)] = 2
    """Hidden layers of each."""

    activation: ActivationKind = "relu"
    """Of hidden units, as for the other streams. A unit under tanh is never dead."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def shapes(self, network: str, inputs: int, outputs: int) -> tuple[LayerShape, ...]:
        """The matrices of `policy` or `value`, in order."""
        sizes = (inputs, *[self.width] * self.layers, outputs)
        return mlp_shapes(sizes, self.activation, f"{network}.")


@dataclass(frozen=True, kw_only=True)
class PpoConfig:
    """Proximal policy optimization."""

    rollout: Annotated[int, Ge(2)] = 2048
    """Steps of the environment between two updates of the networks."""

    epochs: Annotated[int, Ge(1)] = 10
    """Passes of an update over its rollout."""

    minibatches: Annotated[int, Ge(1)] = 16
    """Optimizer steps of a pass; divides rollout."""

    gamma: Annotated[float, Ge(0), Le(1)] = 0.99
    """Discount of later rewards."""

    lam: Annotated[float, Ge(0), Le(1)] = 0.95
    """lambda of generalized advantage estimation."""

    clip: Annotated[float, Gt(0), Lt(1)] = 0.2
    """The ratio of probabilities counts within 1 - clip and 1 + clip."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.rollout % self.minibatches:
            raise ValueError(
                f"minibatches={self.minibatches} does not divide rollout={self.rollout}"
            )

    @property
    def updates(self) -> int:
        """Optimizer steps of a rollout."""
        return self.epochs * self.minibatches


@dataclass(frozen=True, kw_only=True)
class RolloutSaveConfig:
    """When the state is saved."""

    every: Annotated[int, Ge(1)] = 5
    """Rollouts between checkpoints."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True)
class AntRunConfig:
    """Agents that learn to run while the ground changes."""

    name: str = "slippery_ant"
    """For people, and for the run folder."""

    seed: Annotated[int, Ge(0)] = 0
    """Decides frictions, episodes, actions, weights, graph and all that methods draw."""

    seeds: Annotated[int, Ge(1)] = 1
    """Agents: of seed, seed + 1, and so on, one after the other."""

    stream: AntStreamConfig = field(default_factory=AntStreamConfig)
    learner: AgentConfig = field(default_factory=AgentConfig)
    ppo: PpoConfig = field(default_factory=PpoConfig)
    optimizer: StepConfig = field(default_factory=lambda: StepConfig(kind="adam", lr=1.0e-4))
    topology: TopologyConfig = field(default_factory=lambda: TopologyConfig(kind="dense"))
    methods: MethodsConfig = field(default_factory=MethodsConfig)
    checkpoint: RolloutSaveConfig = field(default_factory=RolloutSaveConfig)

    def __post_init__(self) -> None:
        check_bounds(self)
        check_name(self.name)
        check_topology(self.topology)

    @property
    def packs(self) -> tuple[tuple[int, ...], ...]:
        """Seeds, each by itself."""
        return tuple((seed,) for seed in range(self.seed, self.seed + self.seeds))

    @property
    def num_rollouts(self) -> int:
        """The last one is whole, even if the stream ends within it."""
        return -(-self.stream.tasks * self.stream.steps_per_task // self.ppo.rollout)

    @property
    def num_steps(self) -> int:
        """Steps of the environment of one agent."""
        return self.num_rollouts * self.ppo.rollout


def check_methods(config: AntRunConfig, shapes: tuple[LayerShape, ...]) -> None:
    """Raise ValueError, with the key as the user wrote it, for methods that cannot run here."""
    # What is made for images asks for rows; what takes one network in hand thins its units, which
    # would make two policies of one.
    size = config.ppo.rollout // config.ppo.minibatches
    check_blocks(config, shapes, able=("many",), where=config.stream.kind, micro=size)
