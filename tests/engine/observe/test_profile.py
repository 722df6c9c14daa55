"""A traced run writes a trace of the named steps and the operators, and trains the same."""

import json

import pytest
import torch

from sparsecl import config as configs
from sparsecl.engine.observe.profile import StepProfile
from sparsecl.engine.run_config import RunConfig
from sparsecl.engine.speed_config import ProfileConfig, SpeedConfig, check_speed
from sparsecl.errors import UserError


class FakeJournal:
    """Keeps what is said; `log` is rank 0's."""

    def __init__(self, log):
        self.log, self.lines = log, []

    def say(self, text):
        self.lines += text.splitlines()


def walk(profile, numbers):
    matrix = torch.ones(64, 64)
    for number in numbers:
        with profile.step(number):
            matrix @ matrix


def test_the_named_steps_are_traced(tmp_path):
    journal = FakeJournal(log=object())
    walk(StepProfile(ProfileConfig(first=2, steps=2), journal, tmp_path / "tb"), range(1, 5))
    events = json.loads((tmp_path / "tb" / "steps_2.pt.trace.json").read_text())["traceEvents"]
    names = [event.get("name") for event in events if event.get("cat") == "user_annotation"]
    assert sorted(names) == ["step 2", "step 3"]
    assert "profile of 2 steps" in journal.lines[0]
    product = next(line for line in journal.lines if line.split()[0] == "aten::mm")
    assert product.split()[-1] == "1.0"  # calls in each step
    assert not any(line.split()[0] == "step" for line in journal.lines)


def test_a_trace_that_cannot_be_written_ends_nothing(tmp_path):
    (tmp_path / "tb").write_text("a file, not a folder")
    journal = FakeJournal(log=object())
    walk(StepProfile(ProfileConfig(first=1, steps=1), journal, tmp_path / "tb"), [1, 2])
    assert "no trace written" in journal.lines[-1]


@pytest.mark.parametrize(
    ("config", "log", "numbers"),
    [
        (None, object(), [1, 2]),
        (ProfileConfig(first=1), None, [1, 2, 3, 4]),  # another rank
        (ProfileConfig(first=2, steps=2), object(), [3, 4, 5]),  # resumed in the middle
    ],
)
def test_nothing_is_traced(tmp_path, config, log, numbers):
    journal = FakeJournal(log)
    walk(StepProfile(config, journal, tmp_path), numbers)
    assert journal.lines == [] and list(tmp_path.iterdir()) == []


def test_a_step_that_fails_ends_the_trace(tmp_path):
    profile = StepProfile(ProfileConfig(first=1, steps=2), FakeJournal(object()), tmp_path)
    with pytest.raises(ZeroDivisionError), profile.step(1):
        1 / 0  # noqa: B018
    walk(profile, [2])
    with torch.profiler.profile():  # there is one at a time
        pass


def test_keys():
    texts = ["speed={compile: true, prefetch: 0, profile: {first: 3, steps: 1}}"]
    speed = configs.load(RunConfig, None, texts).speed
    assert speed == SpeedConfig(compile=True, prefetch=0, profile=ProfileConfig(first=3, steps=1))
    check_speed(speed, stage=2)
    with pytest.raises(UserError, match=r"speed.compile=true does not go with ZeRO stage 3"):
        check_speed(speed, stage=3)
    check_speed(SpeedConfig(), stage=3)
    for bad in ("speed.prefetch=-1", "speed.peak_tflops=0", "speed.profile={steps: 51}"):
        with pytest.raises(UserError, match="must be"):
            configs.load(RunConfig, None, [bad])
