"""An agent on the slippery Ant: rollouts and updates, the hooks of methods around them.

A task is a friction, a phase for methods; a step of theirs is an optimizer step.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch

from sparsecl import dist, seeding, signals
from sparsecl.errors import InvariantError, Preempted
from sparsecl.methods.context import Progress
from sparsecl.methods.table import build_methods
from sparsecl.methods.work import Moment
from sparsecl.metrics.plasticity import flat_figures
from sparsecl.optim.masking import MaskGuard
from sparsecl.streams import checkpoint
from sparsecl.streams.ant_config import AntRunConfig
from sparsecl.streams.context import StreamContext, StreamModel
from sparsecl.streams.figures import layer_figures, weight_figures
from sparsecl.streams.loop import Record, build_optimizer
from sparsecl.streams.models import Networks
from sparsecl.streams.ppo import Agent, Lesson, Rollout, agent_shapes
from sparsecl.streams.slices import NetworkSlices
from sparsecl.streams.slippery_ant import (
    NUM_ACTIONS,
    NUM_OBSERVATIONS,
    SlipperyAnt,
    friction,
)
from sparsecl.topology.build import build_topologies

COUNTS = ("pack", "task", "step", "rollout", "update", "checks", "first_update", "episodes")


@dataclass
class AntPosition:
    """Where an agent is, between two rollouts; part of every checkpoint."""

    pack: int = 0
    """Of config.packs."""

    task: int = 0
    step: int = 0
    """Steps of the environment since the begin."""

    rollout: int = 0
    update: int = 0
    """Optimizer steps since the begin."""

    checks: int = 0
    """Audits so far, of all agents."""

    first_update: int = 0
    """Optimizer steps before this task."""

    episodes: int = 0
    """That have ended in this task."""

    returns: float = 0.0
    """Their sum."""

    gained: float = 0.0
    """In the episode that is under way."""

    body: dict[str, Any] = field(default_factory=dict)
    """SlipperyAnt.state."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> "AntPosition":
        """Raises ValueError for what `as_json` never gives."""
        names = [one.name for one in fields(cls)]
        if not isinstance(value, dict) or set(value) != set(names):
            raise ValueError(f"position: must have {', '.join(names)}")
        for name in COUNTS:
            if type(value[name]) is not int or value[name] < 0:
                raise ValueError(f"position.{name}: {value[name]!r:.40} is no count")
        for name in ("returns", "gained"):
            if type(value[name]) is not float or not math.isfinite(value[name]):
                raise ValueError(f"position.{name}: {value[name]!r:.40} is no finite number")
        if not isinstance(value["body"], dict):
            raise ValueError("position.body: is no state of a body")
        return cls(**value)


class AntContext(StreamContext):
    """What methods see of an agent: no rows, and phases whose length is only about known."""

    def __init__(self, config: AntRunConfig, agent: Any, position: AntPosition, *rest: Any) -> None:
        """`rest`: slices, guard and methods."""
        seeds: Any = config.packs[position.pack]
        given: Any = (config.stream, agent)
        super().__init__(*given, *rest, seeds=seeds, tasks=(), position=position)  # pyright: ignore
        self.run, self.at = config, position

    @property
    def progress(self) -> Progress:
        at, total = self.at, self.run.num_rollouts * self.run.ppo.updates
        within, length = at.update - at.first_update, total // self.run.stream.tasks
        return Progress.plain(
            Moment(
                step=at.update,
                total_steps=total,
                phase=at.task,
                phase_step=within,
                phase_steps=max(length, within),
            )
        )

    @property
    def batch_sequences(self) -> int:
        return self.run.ppo.rollout // self.run.ppo.minibatches


class AntPack:
    """One agent through all frictions; as `Pack` for a run."""

    def __init__(self, config: AntRunConfig, pack: int, *, checks: int = 0) -> None:
        """Draw graphs and weights, make optimizer, methods and the body. Local.

        Raises:
            UserError: a graph does not exist for a shape.
        """
        self.config, self.seeds = config, config.packs[pack]
        (self.seed,) = self.seeds
        policy, value = agent_shapes(config.learner, NUM_OBSERVATIONS, NUM_ACTIONS)
        graphs = build_topologies(config.topology, (*policy[:-1], *value[:-1]), seed=self.seed)
        self.model = Agent(
            config.learner, NUM_OBSERVATIONS, NUM_ACTIONS, seed=self.seed, graphs=graphs
        )
        self.methods = build_methods(config.methods)
        shown: Any = self.model
        self.methods.attach(StreamModel(shown, self.seeds), config.stream.tasks)
        self.model.to(dist.device())
        self.optimizer = build_optimizer(config.optimizer, self.model)
        self.slices = NetworkSlices(self.model, self.optimizer, self.model.networks)
        self.guard = MaskGuard(self.slices, self.model.masks())
        self.position = AntPosition(pack=pack, checks=checks)
        self.context: Any = AntContext(
            config, self.model, self.position, self.slices, self.guard, self.methods
        )
        self.body = SlipperyAnt(seed=self.seed, episode=config.stream.episode)

    @property
    def num_steps(self) -> int:
        """Steps of the environment, of all tasks."""
        return self.config.num_steps

    @property
    def num_done(self) -> int:
        """Those that lie behind."""
        return self.position.step

    @property
    def nonzero(self) -> int:
        """Absent weights that were found to be there."""
        return self.guard.nonzero

    def state(self) -> tuple[checkpoint.Tensors, Mapping[str, Any]]:
        """What a checkpoint keeps beside the position."""
        return checkpoint.gather(self.slices, self.methods)

    def go_on(self, saved: checkpoint.Saved) -> None:
        """Be where a checkpoint was written.

        Raises:
            DataError: the checkpoint cannot be true.
        """
        checkpoint.put_back(saved, self.slices, self.methods)
        try:
            found = AntPosition.from_json(saved.value["position"])
            if found.task >= self.config.stream.tasks or found.rollout > self.config.num_rollouts:
                raise ValueError(f"position: rollout {found.rollout} is not in the run")
            self.body.load_state(found.body)
        except (ValueError, TypeError) as error:
            raise saved.wrong(error) from None
        for name, value in vars(found).items():
            setattr(self.position, name, value)
        self.body.set_friction(friction(self.seed, found.task))
        self.methods.resumed(self.context)

    def train(
        self, record: Record, save: Callable[["AntPack"], None], advance: Callable[..., None]
    ) -> None:
        """All rollouts that are left. Arguments and errors as `Pack.train`."""
        position, config = self.position, self.config
        if position.rollout == 0:
            self._begin_task()
            self.body.reset()
        while position.rollout < config.num_rollouts:
            rollout = self._collect(record)
            self._learn(rollout, record)
            position.rollout += 1
            advance(config.ppo.rollout, self._shown())
            if position.rollout == config.num_rollouts:
                self._end_task(record)
            self.position.body = self.body.state()
            stopped = signals.received()
            if stopped or position.rollout % config.checkpoint.every == 0:
                save(self)
            if stopped:
                raise Preempted(f"{stopped}: saved after rollout {position.rollout}")

    def _shown(self) -> Mapping[str, str]:
        at = self.position
        mean = f"{at.returns / at.episodes:.1f}" if at.episodes else "-"
        return {"task": f"{at.task + 1}/{self.config.stream.tasks}", "return": mean}

    def _collect(self, record: Record) -> Rollout:
        """Act for the length of a rollout; the friction may change within it."""
        at, body, size = self.position, self.body, self.config.ppo.rollout
        rng = seeding.stream(self.seed, "ppo", "actions", at.rollout)
        noise = torch.from_numpy(rng.standard_normal((size, NUM_ACTIONS), dtype=np.float32))
        noise = noise.to(dist.device())
        seen, after = (np.empty((size, NUM_OBSERVATIONS), dtype=np.float32) for _ in range(2))
        rewards, fallen, ended = np.empty(size), np.empty(size, dtype=bool), np.empty(size, bool)
        actions = torch.empty_like(noise)
        for t in range(size):
            seen[t] = body.observation
            actions[t] = self.model.act(body.observation, noise[t])
            rewards[t], fallen[t], ended[t] = body.step(actions[t].cpu().numpy())
            after[t] = body.observation
            at.step, at.gained = at.step + 1, at.gained + float(rewards[t])
            if ended[t]:
                self._end_episode(record)
        return Rollout(seen, after, actions, rewards, fallen, ended)

    def _end_episode(self, record: Record) -> None:
        at, stream = self.position, self.config.stream
        at.returns, at.episodes = at.returns + at.gained, at.episodes + 1
        record("episode", seed=self.seed, task=at.task, episode=self.body.number, step=at.step,
               length=self.body.age, episode_return=at.gained)  # fmt: skip
        at.gained = 0.0
        # Of multiples since the begin, so that a late change makes no later one late.
        if at.task < min(at.step // stream.steps_per_task, stream.tasks - 1):
            self._end_task(record)
            at.task, at.first_update = at.task + 1, at.update
            at.returns, at.episodes = 0.0, 0
            self._begin_task()
        self.body.reset()

    def _begin_task(self) -> None:
        self.body.set_friction(friction(self.seed, self.position.task))
        self.methods.phase_start(self.context)
        self.methods.stage_start(self.context)

    def _end_task(self, record: Record) -> None:
        at = self.position
        self.methods.phase_trained(self.context)
        self.guard.audit(at.update)
        at.checks += 1
        record("task", seed=self.seed, task=at.task, step=at.step,
               friction=friction(self.seed, at.task), episodes=at.episodes,
               mean_return=at.returns / at.episodes)  # fmt: skip
        self.methods.phase_end(self.context)

    def _learn(self, rollout: Rollout, record: Record) -> None:
        """All minibatches of a rollout, and what the networks are then."""
        at, ppo = self.position, self.config.ppo
        lesson = Lesson(self.model, rollout, ppo)
        total = torch.zeros(2, device=dist.device())
        for part in lesson.parts(self.seed, at.rollout):
            total += self._step(lesson, part)
        means = (total / ppo.updates).tolist()
        if not np.isfinite(means).all():
            raise InvariantError(
                f"rollout {at.rollout}: the loss of seed {self.seed} is not finite; "
                "lower optimizer.lr"
            )
        record("rollout", seed=self.seed, task=at.task, rollout=at.rollout, step=at.step,
               policy_loss=means[0], value_loss=means[1],
               deviation=float(self.model.log_std.detach().exp().mean()),
               **looks(self.model.policy, lesson.x, ""),
               **looks(self.model.value, lesson.x, "value_"))  # fmt: skip

    def _step(self, lesson: Lesson, part: torch.Tensor) -> torch.Tensor:
        """One optimizer step. Returns the two losses."""
        self.methods.step_start(self.context)
        self.optimizer.zero_grad()
        losses = lesson.losses(part.to(dist.device()))
        sum(losses).backward()  # pyright: ignore
        self.context.after_backward()
        skipped = self.context.skips
        if not skipped:
            self.optimizer.step()
        self.position.update += 1
        self.context.after_step(applied=not skipped, skipped=skipped)
        return torch.stack(losses).detach()


@torch.no_grad()
def looks(network: Networks, x: torch.Tensor, prefix: str) -> dict[str, float]:
    """The signs of lost plasticity of one network, on the observations [T, inputs] of a rollout."""
    layers = [layer_figures(h, network.columns)[0] for h in network.hidden(x[None])]
    named: Any = {f"layers.{i}": figures for i, figures in enumerate(layers)}
    total: Any = weight_figures(network)[0]
    found = flat_figures(named, layers[-1], total)
    return {prefix + name: value for name, value in found.items()}
