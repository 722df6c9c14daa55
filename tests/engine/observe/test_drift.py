"""How far a model has moved: planted distributions by hand, then real runs in several layouts.

A pool worker imports this file to run the cases in it.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sparsecl.engine.observe.drift import (
    NUM_DRAWS,
    Drift,
    Reference,
    References,
    array_problems,
    moved,
)
from sparsecl.engine.schedule import JOINT
from tests.distributed import cases

V = 7
INF = float("inf")


class Planted(nn.Module):
    """The distribution after token t is row t of a table; the last column is padding."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.vocab_size = V
        self.embedding = SimpleNamespace(vocab_start_index=0)
        self.table = self.random(seed)

    @staticmethod
    def random(seed: int) -> torch.Tensor:
        table = torch.randn(V, V + 1, generator=torch.Generator().manual_seed(seed))
        table[:, V] = -INF
        return table

    @property
    def module(self) -> "Planted":
        """It is its own engine."""
        return self

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor, *, with_logits: bool) -> Any:
        assert with_logits and not self.training and not torch.is_grad_enabled()
        return None, None, self.table[tokens]


def planted(order: tuple[int, ...], *, tokens: int = 1024, seed: int = 0) -> tuple[Planted, Drift]:
    engine = Planted()
    built: Any = SimpleNamespace(engine=engine)
    rng = np.random.default_rng(1)
    texts = rng.integers(0, V, (3, 3000))

    def domain(name: str, text: np.ndarray) -> Any:
        def take(starts: np.ndarray, count: int) -> np.ndarray:
            return text[starts[..., None] + np.arange(count)]

        store = SimpleNamespace(num_tokens=len(text), take=take)
        return SimpleNamespace(name=name, validation=store)

    schedule: Any = SimpleNamespace(
        phases=[SimpleNamespace(index=k, domain=d) for k, d in enumerate(order)],
        domain_name=lambda phase: "abc"[phase.domain],
        shape=SimpleNamespace(context=16),
    )
    domains = [domain(name, text) for name, text in zip("abc", texts, strict=True)]
    drift = Drift(built, domains, schedule, tokens=tokens, seed=seed, batch=16)
    return engine, drift


def exact(then: torch.Tensor, now: torch.Tensor, tokens: torch.Tensor) -> float:
    """KL over the positions of a probe, with the whole vocabulary."""
    p, q = (table[:, :V].double().log_softmax(-1) for table in (then, now))
    return float((p.exp() * (p - q)).sum(-1)[tokens.long()].mean())


@pytest.mark.parametrize("size", [0.03, 0.3, 1.0, 3.0])
def test_the_estimate_is_the_exact_divergence(size):
    engine, drift = planted((0, 1))
    assert drift.phase_end(0) == {}
    then = engine.table
    engine.table = then + size * torch.cat([Planted.random(5)[:, :V], torch.zeros(V, 1)], dim=1)
    found = drift.phase_end(1)
    assert list(found) == ["a"]
    whole = exact(then, engine.table, drift.references[0].tokens)
    kl, error, num = found["a"]
    assert num == 1024 and error is not None
    assert abs(kl - whole) < 4 * error and error < 0.1 * whole + 0.01, (kl, whole, error)
    assert engine.training


def test_draws_of_other_seeds_scatter_as_the_standard_error_says():
    misses = []
    for seed in range(60):
        engine, drift = planted((0, 1), tokens=256, seed=seed)
        drift.phase_end(0)
        then, engine.table = engine.table, Planted.random(9)
        kl, error, _ = drift.phase_end(1)["a"]
        assert error is not None
        misses.append((kl - exact(then, engine.table, drift.references[0].tokens)) / error)
    # The positions are the same for all seeds, so the scatter is that of the draws alone.
    assert abs(np.mean(misses)) < 0.4 and np.std(misses) < 1.1


def test_a_model_that_has_not_moved_is_exactly_there():
    _, drift = planted((0, 1))
    drift.phase_end(0)
    assert drift.phase_end(1) == {"a": (0.0, 0.0, 1024)}


def test_a_domain_is_compared_with_its_latest_phase_and_not_with_itself():
    engine, drift = planted((0, 1, 0, 2))
    seen = []
    for phase in range(4):
        seen.append(drift.phase_end(phase))
        engine.table = Planted.random(10 + phase)
    assert [list(found) for found in seen] == [[], ["a"], ["b"], ["b", "a"]]
    assert drift.kept.phases == [1, 2, 3]
    # Draws have a name of their own.
    assert not drift.references[1].ids.equal(drift.references[2].ids)


def test_off_or_joint_there_is_nothing():
    for drift in (planted((0, 1), tokens=0)[1], planted((JOINT,))[1]):
        assert drift.phase_end(0) == {}
        assert drift.kept.phases == [] and drift.arrays() == {}


def test_what_is_kept_comes_back():
    engine, drift = planted((0, 1, 2))
    drift.phase_end(0)
    state, arrays = drift.state_dict(), drift.arrays()
    _, other = planted((0, 1, 2))
    other.load_state_dict(state)
    other.load_arrays(arrays)
    engine.table = other.built.engine.table = Planted.random(3)
    assert other.phase_end(1) == drift.phase_end(1)
    assert state == {"phases": [0]}  # what came later has not changed it
    for key, value in other.arrays().items():
        assert value.equal(drift.arrays()[key])


def lawful() -> dict[str, torch.Tensor]:
    _, drift = planted((0, 1), tokens=32)
    drift.phase_end(0)
    return dict(drift.arrays())


@pytest.mark.parametrize(
    ("key", "change", "says"),
    [
        ("0.ids", None, "0.ids is missing"),
        ("1.ids", lambda: torch.zeros(1, dtype=torch.int32), "1.ids is not known"),
        ("0.ids", lambda: lawful()["0.ids"].long(), "0.ids: torch.int64 is not torch.int32"),
        ("0.ids", lambda: lawful()["0.ids"] + V, "0.ids: no ids of 8 tokens"),
        ("0.tokens", lambda: lawful()["0.tokens"] - V, "0.tokens: no ids of 8 tokens"),
        ("0.log_probs", lambda: -lawful()["0.log_probs"], "a probability above 1"),
        ("0.log_probs", lambda: lawful()["0.log_probs"][:1], "not the shapes of one probe"),
        ("0.tokens", lambda: lawful()["0.tokens"][:, :3], "not the shapes of one probe"),
    ],
)
def test_arrays_that_make_no_sense(key, change, says):
    kept, arrays = References([0]), lawful()
    assert list(array_problems(kept, arrays, vocab_size=V + 1)) == []
    arrays.pop(key, None)
    if change is not None:
        arrays[key] = change()
    assert says in "\n".join(array_problems(kept, arrays, vocab_size=V + 1))


def test_a_single_position_has_no_error():
    ids = torch.zeros(1, 1, 2, dtype=torch.int32)
    one = Reference(ids[..., 0], ids, torch.tensor([[[-1.0, -2.0]]]))
    assert moved(one, torch.tensor([[[-1.5, -3.0]]])) == (0.75, None, 1)


# Real runs.

DOMAINS = ", ".join(
    f"{{name: {name}, source: synthetic, synthetic: {{train_tokens: 4000, validation_tokens: 400, "
    "num_symbols: 8}}"
    for name in "ab"
)
BASE = (
    f"data.domains=[{DOMAINS}]",
    "phases.order=[a, b, a]",
    "phases.steps=5",
    "optimizer.lr=0.01",
    "plasticity={tokens: 0, every: 0}",
)
ON = (*BASE, "eval.kl_tokens=256", "checkpoint={every: 4, keep: 9}")
OFF = (*BASE, "eval.kl_tokens=0")


def train(cache: str, stage: str, overrides: tuple[str, ...], folder: str) -> dict[str, Any]:
    """A whole run; the records of drift beside its losses."""
    trainer, *_ = cases.assemble(cases.load(cache, overrides), stage, folder)
    trainer.run()
    return outcome(trainer)


def go_on(cache: str, stage: str, overrides: tuple[str, ...], folder: str) -> dict[str, Any]:
    """The rest of a run after its step 9, in the middle of phase 1."""
    trainer, *_ = cases.assemble(cases.load(cache, overrides), stage, folder + "/again")
    trainer.take_up(Path(folder) / "step_9")
    assert trainer.drift.kept.phases == list(trainer.drift.references) == [0]
    trainer.run()
    return outcome(trainer)


def outcome(trainer: cases.RecordingTrainer) -> dict[str, Any]:
    points = [record for record in trainer.records if record["kind"] == "drift"]
    arrays = {key: value.numpy() for key, value in trainer.drift.arrays().items()}
    return {"losses": trainer.losses(), "points": points, "arrays": arrays}


@pytest.fixture(scope="module")
def alone(pool, shared_cache, tmp_path_factory) -> tuple[dict[str, Any], Path]:
    """One process, and the folder of its checkpoints."""
    folder = tmp_path_factory.mktemp("alone")
    return pool.run(train, 1, str(shared_cache), "zero0", ON, str(folder))[0], folder


@pytest.mark.dist
def test_a_record_of_every_phase_after_the_first(alone):
    points = alone[0]["points"]
    assert [(p["phase"], p["step"], list(p["kl"])) for p in points] == [
        (1, 10, ["a"]),
        (2, 15, ["b"]),
    ]
    for point in points:
        (kl,), (error,) = point["kl"].values(), point["standard_error"].values()
        assert list(point["num_tokens"].values()) == [256]
        assert 5 * error < kl < 3.0
    arrays = alone[0]["arrays"]
    assert sorted({key.split(".")[0] for key in arrays}) == ["1", "2"]
    assert arrays["1.ids"].shape == (16, 16, NUM_DRAWS)


@pytest.mark.dist
@pytest.mark.parametrize(("stage", "world", "tensor"), [("zero1", 4, 2), ("zero3", 2, 1)])
def test_every_layout_measures_the_same(pool, shared_cache, tmp_path, alone, stage, world, tensor):
    overrides = (*ON, f"parallel.tensor={tensor}")
    ranks = pool.run(train, world, str(shared_cache), stage, overrides, str(tmp_path))
    for rank in ranks:
        assert rank["points"] == ranks[0]["points"]
        assert all((rank["arrays"][k] == v).all() for k, v in ranks[0]["arrays"].items())
    for point, expected in zip(ranks[0]["points"], alone[0]["points"], strict=True):
        for key in ("kl", "standard_error", "num_tokens"):
            assert point[key] == pytest.approx(expected[key], rel=1e-3, abs=1e-4)


@pytest.mark.dist
def test_it_changes_no_bit_of_training(pool, shared_cache, tmp_path, alone):
    off = pool.run(train, 1, str(shared_cache), "zero0", OFF, str(tmp_path))[0]
    assert off["points"] == [] and off["arrays"] == {}
    assert off["losses"] == alone[0]["losses"]


@pytest.mark.dist
def test_a_resume_inside_a_phase_measures_the_same_bits(pool, shared_cache, alone):
    whole, folder = alone
    rest = pool.run(go_on, 1, str(shared_cache), "zero0", ON, str(folder))[0]
    assert rest["losses"] == whole["losses"][9:]
    assert rest["points"] == whole["points"]
    assert all((rest["arrays"][key] == value).all() for key, value in whole["arrays"].items())
