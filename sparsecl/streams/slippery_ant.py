"""Slippery Ant: a four-legged body learns to run, and the friction of the ground changes.

Source: Dohare et al. 2024 (https://doi.org/10.1038/s41586-024-07711-7) and their public code
shibhansh/loss-of-plasticity: frictions are log-uniform in [0.02, 2]; one changes at the end of the
first episode after so many steps. MuJoCo takes the larger friction of two bodies that touch, and
the legs have 1: a slippery floor alone changes nothing. So friction is set on all bodies, as there.

Differs: Ant-v5 of gymnasium in place of v3, with contact forces among its 105 observations;
frictions follow from the seed in place of a table; actions are cut to [-1, 1] before the body, and
its cost of control, see them.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsecl import seeding
from sparsecl.errors import UserError

LOWEST, HIGHEST = 0.02, 2.0
NUM_OBSERVATIONS, NUM_ACTIONS = 105, 8
OTHER_FRICTIONS = (0.5, 0.5)
"""Torsional and rolling, as in the public code."""


def friction(seed: int, task: int) -> float:
    """Sliding friction of a task."""
    draw = seeding.stream(seed, "slippery_ant", "friction", task).random()
    return float(np.exp(np.log(LOWEST) + draw * (np.log(HIGHEST) - np.log(LOWEST))))


def check_installed() -> None:
    """Raises UserError without gymnasium and mujoco."""
    try:
        # First, since gymnasium has an error of its own for it.
        import mujoco  # pyright: ignore  # noqa: F401, I001
        import gymnasium.envs.mujoco.ant_v5  # pyright: ignore  # noqa: F401
    except ImportError as error:
        raise UserError(
            "stream.kind=slippery_ant asks for gymnasium and mujoco, which cannot be imported "
            f'({error}): pip install "sparsecl[rl]"'
        ) from None


class SlipperyAnt:
    """One body, in episodes. An episode follows from the seed and its number."""

    def __init__(self, *, seed: int, episode: int) -> None:
        """Args:
        episode: steps after which an episode is cut off.
        """
        import mujoco  # pyright: ignore
        from gymnasium.envs.mujoco.ant_v5 import AntEnv  # pyright: ignore

        self.seed, self.limit = seed, episode
        self._mujoco: Any = mujoco
        self._ant: Any = AntEnv()
        self.model, self.data = self._ant.model, self._ant.data
        self.number, self.age = -1, 0
        self.observation = np.zeros(NUM_OBSERVATIONS, dtype=np.float32)

    def set_friction(self, value: float) -> None:
        """Of all bodies, from now on."""
        self.model.geom_friction[:] = (value, *OTHER_FRICTIONS)

    def reset(self) -> None:
        """Begin the next episode."""
        self.number, self.age = self.number + 1, 0
        key = seeding.stream_key(self.seed, "slippery_ant", "episode", self.number)
        found, _ = self._ant.reset(seed=key)
        self.observation = found.astype(np.float32)

    def step(self, action: NDArray[np.float32]) -> tuple[float, bool, bool]:
        """Act for 0.05 s.

        Returns:
            Reward; whether the body has fallen; whether the episode is over, for that or its age.
        """
        found, reward, fallen, _, _ = self._ant.step(np.clip(action, -1.0, 1.0))
        self.age += 1
        self.observation = found.astype(np.float32)
        return float(reward), bool(fallen), bool(fallen) or self.age >= self.limit

    @property
    def _parts(self) -> int:
        """Positions, velocities, time and what the solver starts from."""
        return int(self._mujoco.mjtState.mjSTATE_INTEGRATION)

    def state(self) -> dict[str, Any]:
        """All that a step depends on, and what has been seen, for JSON; exact."""
        physics = np.empty(self._mujoco.mj_stateSize(self.model, self._parts))
        self._mujoco.mj_getState(self.model, self.data, physics, self._parts)
        return {
            "number": self.number,
            "age": self.age,
            "physics": physics.tolist(),
            # The place of the torso lags behind the physics by a part of a step; rewards use it.
            "torso": self.data.xpos[1].tolist(),
            "observation": self.observation.tolist(),
        }

    def load_state(self, value: Mapping[str, Any]) -> None:
        """Raises ValueError for what `state` never gives."""
        own = self.state()
        if set(value) != set(own):
            raise ValueError(f"body: must have {', '.join(own)}")
        for key in ("number", "age"):
            if type(value[key]) is not int or value[key] < 0:
                raise ValueError(f"body.{key}: {value[key]!r:.40} is no count")
        for key in ("physics", "torso", "observation"):
            found = np.asarray(value[key], dtype=np.float64)
            if found.shape != np.shape(own[key]) or not np.isfinite(found).all():
                raise ValueError(f"body.{key}: is not {len(own[key])} finite numbers")
        self.number, self.age = value["number"], value["age"]
        self._mujoco.mj_setState(self.model, self.data, np.asarray(value["physics"]), self._parts)
        self.data.xpos[1] = value["torso"]
        self.observation = np.asarray(value["observation"], dtype=np.float32)
