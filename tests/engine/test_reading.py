"""How many tokens a run reads of each domain, by hand."""

import numpy as np
import pytest

from sparsecl import config as configs
from sparsecl.engine.reading import planned_tokens, reading_text
from sparsecl.engine.run_config import RunConfig
from sparsecl.engine.schedule import make_schedule
from sparsecl.methods.cl.reservoir import Reservoir

DOMAINS = "data.domains=[{name: a, source: synthetic}, {name: b, source: synthetic}]"
SMALL = ("batch.sequences=8", "model.context=16")  # 128 tokens a step


def made(*overrides):
    config = configs.load(RunConfig, None, [DOMAINS, *SMALL, *overrides])
    return config, make_schedule(config, world_size=1)


def test_each_phase_reads_its_domain():
    found = made("phases={order: [a, b, a], steps: [10, 20, 5]}")
    assert planned_tokens(*found) == [{"a": 1280}, {"b": 2560}, {"a": 640}]
    text = reading_text(*found, {"a": 120, "b": 2560})
    assert text == "a 16.0, b 1.00 (planned tokens / training tokens of the domain)"


def test_a_joint_phase_reads_them_all():
    found = made("phases={order: [a, b, a], steps: [10, 20, 5], joint: true}")
    assert planned_tokens(*found) == [{"a": 1920, "b": 2560}]


def test_a_phase_that_may_end_early_counts_in_full():
    config, schedule = made("phases={steps: 10, until_loss: [2.0]}", "eval.every=2")
    assert planned_tokens(config, schedule) == [{"a": 1280}, {"b": 1280}]
    assert reading_text(config, schedule, {"a": 128, "b": 128}).startswith("at most a 10.0, b 10.0")


def test_replayed_tokens_go_to_the_domains_that_they_are_of():
    """Step t of 3 + 2 draws half of its size from the t steps before it: 64 tokens."""
    found = made("phases={steps: [3, 2]}", "methods.replay={share: 0.5}")
    first, second = planned_tokens(*found)
    assert first == {"a": 3 * 128 + 2 * 64}  # the first step has nothing to draw from
    # Step 3 draws from a alone; step 4 from three steps of a and one of b.
    assert second == {"b": 2 * 128 + round(64 / 4), "a": round(64 + 64 * 3 / 4)}


def test_text_of_the_model_is_nobodys_text():
    found = made("phases={steps: [3, 2]}", "methods.self_replay={share: 0.5}")
    assert planned_tokens(*found) == [{"a": 3 * 128}, {"b": 2 * 128}]


def test_replay_draws_as_planned():
    """The mean over many draws of the real method is what is planned."""
    rng = np.random.default_rng(0)
    counts = np.zeros(2)
    for _ in range(200):
        memory = Reservoir(6)
        for step in range(5):
            phase = int(step >= 3)
            if step:
                counts += np.bincount(memory.draw(4, rng)[:, 0], minlength=2)
            names = np.stack([np.full(8, phase), np.arange(8) + 8 * step], axis=1)
            memory.insert(names, rng)
    assert counts / 200 * 16 == pytest.approx([2 * 64 + 64 + 48, 16], rel=0.1)


def test_before_the_text_is_prepared_it_is_not_known():
    assert "known when the text is prepared" in reading_text(*made(), {})
