"""A kill at the end of a domain, and a restart on a machine whose clock shows another hour."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sparsecl.checkpoint.publish import candidates


@pytest.mark.fault("T8", "J4")
def test_a_kill_at_the_end_of_a_domain_and_another_time_zone(starter):
    folder = starter.folder / "run"
    words = starter.arguments("--run_dir", str(folder))
    killed = starter.start([*words, "--inject", "kill@phase_end"], {"TZ": "UTC-12"}).wait()
    assert killed.code == -9
    # The domain is trained, and nothing of that is saved: it has to be finished once more.
    assert candidates(folder / "checkpoints")[0].name == "step_8"
    done = starter.start(words, {"TZ": "UTC+12"}).wait()
    assert done.code == 0, done.err
    assert "resumed from step_8" in done.out
    found = [json.loads(line) for line in open(folder / "scalars.jsonl", encoding="utf-8")]
    borders = [(r["phase"], r["domain"], r["step"]) for r in found if r["kind"] == "phase"]
    cost = found[-1]["performance"]
    assert cost["attempts"] == 2 and cost["parts"]["lost"] > 0.0  # steps 9 to 12 of the first
    assert 0.0 < cost["goodput"] < cost["goodput_of_attempts"] < 1.0
    assert sum(cost["parts"].values()) == cost["wall_seconds"]
    assert borders == [(0, "a", 0), (0, "a", 12), (1, "b", 12), (1, "b", 24)]
    assert [r["step"] for r in found if r["kind"] == "train"] == list(range(1, 25))
    seconds = [r["seconds"] for r in found if r["kind"] == "train"]
    assert seconds == sorted(seconds) and seconds[0] > 0
    points = EventAccumulator(str(folder / "tb")).Reload().Scalars("train/loss")
    assert [point.step for point in points] == [128 * step for step in range(1, 25)]
    walls = [point.wall_time for point in points]
    assert walls == sorted(walls)
