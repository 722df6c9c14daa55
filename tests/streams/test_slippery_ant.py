"""The body and its friction; and a run that is stopped. Needs the extra `rl`."""

import json
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mujoco", reason="needs mujoco, of the extra rl")
pytest.importorskip("gymnasium.envs.mujoco.ant_v5", reason="needs gymnasium, of the extra rl")

from sparsecl import signals
from sparsecl.errors import DataError, Preempted, UserError
from sparsecl.methods.config import MethodsConfig
from sparsecl.methods.plasticity.config import CbpConfig, L2Config, ShrinkPerturbConfig
from sparsecl.streams import ant_records, ant_run
from sparsecl.streams.ant_config import (
    AgentConfig,
    AntRunConfig,
    AntStreamConfig,
    PpoConfig,
    RolloutSaveConfig,
)
from sparsecl.streams.ant_loop import AntPack
from sparsecl.streams.slippery_ant import HIGHEST, LOWEST, SlipperyAnt, friction
from sparsecl.topology.config import TopologyConfig

FLOOR = 0


def returned(body: SlipperyAnt, steps: int = 200) -> float:
    """Of fixed actions, from the first episode on."""
    actions = np.random.default_rng(0).uniform(-1, 1, (steps, 8)).astype(np.float32)
    body.reset()
    total = 0.0
    for action in actions:
        reward, _, over = body.step(action)
        total += reward
        if over:
            body.reset()
    return total


def with_floor(value: float, *, priority: int) -> SlipperyAnt:
    """Friction of the floor alone."""
    body = SlipperyAnt(seed=0, episode=1000)
    assert body.model.geom(FLOOR).name == "floor"
    body.model.geom_friction[FLOOR] = (value, 0.5, 0.5)
    body.model.geom_priority[FLOOR] = priority
    return body


def test_friction_is_that_of_all_bodies():
    """A floor alone is inert below 1; one that goes before its partner does the same as all."""
    found = {}
    for value in (0.02, 0.5):
        body = SlipperyAnt(seed=0, episode=1000)
        body.set_friction(value)
        found[value] = returned(body)
        assert found[value] == returned(with_floor(value, priority=1))
    assert abs(found[0.02] - found[0.5]) > 1.0
    assert returned(with_floor(0.02, priority=0)) == returned(with_floor(0.5, priority=0))


def test_frictions_follow_from_the_seed():
    table = np.array([[friction(seed, task) for task in range(50)] for seed in range(40)])
    assert LOWEST <= table.min() < 0.021 and 1.95 < table.max() <= HIGHEST
    assert np.log10(table).mean() == pytest.approx(-0.699, abs=0.05)  # log-uniform
    assert len(np.unique(table)) == table.size
    assert friction(3, 2) == table[3, 2]


def test_a_body_goes_on_bit_for_bit_and_begins_each_episode_by_its_number():
    rng = np.random.default_rng(1)
    body, other = (SlipperyAnt(seed=5, episode=1000) for _ in range(2))
    body.set_friction(0.3)
    other.set_friction(0.3)
    body.reset()
    for _ in range(40):
        body.step(rng.uniform(-1, 1, 8).astype(np.float32))
    other.load_state(json.loads(json.dumps(body.state())))
    assert np.array_equal(body.observation, other.observation)
    for _ in range(40):
        action = rng.uniform(-1, 1, 8).astype(np.float32)
        assert body.step(action) == other.step(action)
        assert np.array_equal(body.observation, other.observation)
    body.reset()
    other.reset()
    assert body.number == other.number == 1
    assert np.array_equal(body.observation, other.observation)
    wrong = body.state() | {"physics": [0.0]}
    with pytest.raises(ValueError, match="body.physics: is not"):
        body.load_state(wrong)


def config(**changes: Any) -> AntRunConfig:
    methods = MethodsConfig(
        cbp=CbpConfig(rate=0.05, maturity=3, accumulate=False),
        l2=L2Config(strength=1e-3),
        shrink_perturb=ShrinkPerturbConfig(sigma=1e-4),
    )
    given: dict[str, Any] = {
        "stream": AntStreamConfig(tasks=2, steps_per_task=100, episode=30),
        "learner": AgentConfig(width=8, layers=2),
        "ppo": PpoConfig(rollout=40, epochs=2, minibatches=4),
        "topology": TopologyConfig(kind="er_fixed", density=0.5),
        "checkpoint": RolloutSaveConfig(every=2),
        "seeds": 2,
        "methods": methods,
        **changes,
    }
    return AntRunConfig(**given)


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, monkeypatch):
    whole, stopped = (ant_run.Prepared(config(), tmp_path / name) for name in ("whole", "stopped"))
    found = ant_run.run(whole)
    learn, done = AntPack._learn, 0

    def counted(pack: AntPack, *args: Any) -> None:
        nonlocal done
        learn(pack, *args)
        done += 1
        if done in (2, 3, 7):
            signals.note(15)

    monkeypatch.setattr(AntPack, "_learn", counted)
    for rollout in (2, 3, 2):
        with pytest.raises(Preempted, match=f"SIGTERM: saved after rollout {rollout}"):
            ant_run.run(stopped)
        signals.forget()
    again = ant_run.run(stopped)
    assert found.pop("seconds") > 0 and again.pop("seconds") > 0
    assert found == again
    ends = [sorted((at.folder / "checkpoints").glob("*.safetensors")) for at in (whole, stopped)]
    assert [p.name for p in ends[0]] == [p.name for p in ends[1]] != []
    assert ends[0][0].read_bytes() == ends[1][0].read_bytes()

    for seed, one in found["per_seed"].items():
        tasks, episodes = one["tasks"], one["episodes"]
        assert tasks["friction"] == [friction(int(seed), k) for k in (0, 1)]
        # The change comes with the first end of an episode after 100 steps.
        assert tasks["step"][0] == next(step for step in episodes["step"] if step >= 100)
        for k in (0, 1):
            own = [r for r, at in zip(episodes["episode_return"], episodes["task"], strict=True)
                   if at == k]  # fmt: skip
            assert tasks["episodes"][k] == len(own)
            assert tasks["mean_return"][k] == pytest.approx(np.mean(own))
        assert one["panel"]["step"] == [40, 80, 120, 160, 200]
        assert {"dead", "value_dead", "erank", "value_srank99"} <= set(one["panel"])
    assert found["audit"] == {"checks": 4, "nonzero": 0}
    assert "mean return" in ant_records.table(found)
    with pytest.raises(UserError, match="another config .ppo.clip: 0.2 -> 0.3"):
        ant_run.run(ant_run.Prepared(config(ppo=PpoConfig(
            rollout=40, epochs=2, minibatches=4, clip=0.3)), stopped.folder))  # fmt: skip


def test_a_checkpoint_that_cannot_be_true_is_refused(tmp_path):
    settings = config(seeds=1, methods=MethodsConfig())
    pack = AntPack(settings, 0)
    saved: Any = None
    from sparsecl.streams import checkpoint

    def save(made: AntPack) -> None:
        nonlocal saved
        state = checkpoint.gather(made.slices, made.methods)
        value = {"position": made.position.as_json(), "methods": state[1]}
        saved = saved or checkpoint.Saved(
            tmp_path, value, {k: v.clone() for k, v in state[0].items()}
        )

    pack.train(lambda *args, **kwargs: None, save, lambda *args: None)
    assert saved.value["position"]["rollout"] == 2
    good = AntPack(settings, 0)
    good.go_on(saved)
    assert good.position.step == 80
    for key, wrong in (("gained", float("nan")), ("task", 7), ("body", {})):
        position = {**saved.value["position"], key: wrong}
        bad = checkpoint.Saved(tmp_path, {**saved.value, "position": position}, saved.tensors)
        with pytest.raises(DataError, match="position|body"):
            AntPack(settings, 0).go_on(bad)
