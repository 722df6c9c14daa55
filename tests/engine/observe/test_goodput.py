"""Where the wall time went: the breakdown by hand, and the file under kills, clocks and disks."""

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsecl.engine.observe import goodput
from sparsecl.engine.observe.goodput import (
    ATTEMPTS,
    Attempt,
    Attempts,
    Spent,
    breakdown,
    read_attempts,
)

FIRST = Attempt(
    begun=1000.0,
    seconds=100.0,
    spent=Spent(startup=10.0, steps=60.0, evaluation=8.0, checkpoint=12.0),
)
SECOND = Attempt(
    begun=1200.0, seconds=50.0, spent=Spent(startup=5.0, steps=40.0, evaluation=1.0, checkpoint=2.0)
)


def test_two_attempts_with_lost_steps_by_hand():
    """100 s of steps, of which a kill cost 20; 100 s passed between the attempts."""
    assert breakdown([FIRST, SECOND], useful=80.0) == {
        "goodput": 80.0 / 250.0,
        "goodput_of_attempts": 80.0 / 150.0,
        "attempts": 2,
        "wall_seconds": 250.0,
        "parts": {
            "startup": 15.0,
            "training": 80.0,
            "evaluation": 9.0,
            "checkpoint": 14.0,
            "lost": 20.0,
            "other": 12.0,
            "between_attempts": 100.0,
        },
    }


def test_a_checkpoint_may_know_more_steps_than_the_file():
    """Killed after the save and before the line: 7 s of training fell between the attempts."""
    found = breakdown([FIRST, SECOND], useful=107.0)
    assert (found["parts"]["training"], found["parts"]["lost"]) == (107.0, 0.0)
    assert (found["parts"]["between_attempts"], found["wall_seconds"]) == (93.0, 250.0)


def test_a_file_that_lost_its_beginning_gives_no_goodput_above_one():
    found = breakdown([FIRST], useful=1e6)
    assert found["parts"]["training"] == 60.0 and found["goodput"] == 0.6


def test_a_clock_that_was_set_back_gives_no_negative_time():
    earlier = Attempt(begun=400.0, seconds=50.0, spent=SECOND.spent)
    found = breakdown([FIRST, earlier], useful=100.0)
    assert found["parts"]["between_attempts"] == 0.0 and found["wall_seconds"] == 150.0


def test_no_time_has_no_goodput():
    found = breakdown([Attempt(begun=0.0)], useful=0.0)
    assert (found["goodput"], found["goodput_of_attempts"]) == (None, None)
    assert found["wall_seconds"] == 0.0


def spent_attempt(begun: float, rest: float, *parts: float) -> Attempt:
    startup, steps, evaluation, checkpoint = parts
    spent = Spent(startup=startup, steps=steps, evaluation=evaluation, checkpoint=checkpoint)
    return Attempt(begun=begun, seconds=sum(parts) + rest, spent=spent)


seconds = st.floats(0.0, 1e6)
attempts = st.builds(spent_attempt, *[seconds] * 6)


@given(st.lists(attempts, min_size=1, max_size=4), seconds)
def test_the_parts_are_the_whole(found, useful):
    parts = breakdown(found, useful=useful)["parts"]
    inside = sum(attempt.seconds for attempt in found)
    pairs = zip(found, found[1:], strict=False)
    between = sum(max(0.0, after.begun - before.end) for before, after in pairs)
    assert sum(parts.values()) == pytest.approx(inside + between, abs=1e-6)
    assert min(parts.values()) >= 0.0
    assert parts["training"] <= useful


# ---- the file ----------------------------------------------------------------------------------


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / ATTEMPTS).read_text().splitlines()]


def write(folder: Path, *records: dict, torn: str = "") -> None:
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / ATTEMPTS).write_text(text + torn)


NOW = 1.7e9  # Unix seconds


class Clock:
    """Stands still, unless a test moves it."""

    def __init__(self):
        self.now = 0.0

    def time(self):
        return NOW + self.now

    def monotonic(self):
        return self.now


@pytest.fixture
def young(monkeypatch):
    """The clock of a process that began 5 s ago."""
    clock = Clock()
    monkeypatch.setattr(goodput, "time", clock)
    monkeypatch.setattr(goodput, "process_seconds", lambda: 5.0 + clock.now)
    return clock


def test_an_attempt_writes_its_start_and_how_far_it_is(tmp_path, young):
    attempt = Attempts(tmp_path)
    for steps in (1.0, 2.0, 3.0):
        young.now += 1.0
        attempt.mark(Spent(startup=5.0, steps=steps), at_most_every=3600.0)
    attempt.mark(Spent(startup=5.0, steps=4.0))
    attempt.close()
    start, *marks = lines(tmp_path)
    assert (start["event"], start["time"]) == ("start", NOW - 5.0)
    assert [mark["steps"] for mark in marks] == [1.0, 4.0]
    assert [mark["seconds"] for mark in marks] == [6.0, 8.0]
    (found,) = read_attempts((tmp_path / ATTEMPTS).read_bytes())
    assert found.spent == Spent(startup=5.0, steps=4.0) and found.begun == start["time"]


def test_the_time_before_a_restart_counts(tmp_path, young):
    begun = NOW - 1000.0
    write(
        tmp_path,
        {"event": "start", "time": begun},
        {"event": "mark", "seconds": 100.0, "startup": 10.0, "steps": 80.0},
        torn='{"event": "mark", "seconds": 9',
    )
    attempt = Attempts(tmp_path)
    found = attempt.breakdown(Spent(startup=5.0), useful=60.0)
    attempt.close()
    assert found["attempts"] == 2 and found["parts"]["lost"] == pytest.approx(20.0)
    assert found["wall_seconds"] == pytest.approx(1000.0)
    assert found["parts"]["between_attempts"] == pytest.approx(895.0)
    assert [record["event"] for record in lines(tmp_path)] == ["start", "mark", "start"]


def test_a_clock_that_jumps_back_between_attempts(tmp_path, young):
    write(tmp_path, {"event": "start", "time": NOW + 1e6})
    attempt = Attempts(tmp_path)
    young.now += 1.0
    assert attempt.seconds == 1.0
    assert attempt.breakdown(Spent(), useful=0.0)["wall_seconds"] == pytest.approx(1.0)
    attempt.close()


def test_two_attempts_of_one_process_share_no_second(tmp_path, young):
    first = Attempts(tmp_path)
    first.mark(Spent())
    first.close()
    young.now += 1.0
    second = Attempts(tmp_path)
    found = second.breakdown(Spent(), useful=0.0)
    assert found["wall_seconds"] == pytest.approx(6.0)  # and not 5 s twice
    second.close()


def test_odd_lines_are_passed_over():
    good = b'{"event": "start", "time": 7}\n{"event": "mark", "seconds": 3, "steps": 2}\n'
    odd = [
        b"", b"[" * 100_000, b"\xff\xfe", b"7", b'{"event": "start", "time": "soon"}',
        b'{"event": "mark", "seconds": NaN}', b'{"event": "mark", "seconds": -1}',
        b'{"event": "mark", "seconds": 1' + b"0" * 400 + b"}", b'{"event": "later"}',
    ]  # fmt: skip
    assert read_attempts(b"\n".join(odd) + b"\n" + good + b"\n".join(odd)) == [
        Attempt(begun=7.0, seconds=3.0, spent=Spent(steps=2.0))
    ]
    assert read_attempts(b'{"event": "mark", "seconds": 3}\n') == []  # of no attempt


def test_a_disk_that_fails_stops_nothing(tmp_path, young, monkeypatch, capsys):
    (tmp_path / ATTEMPTS).mkdir()
    attempt = Attempts(tmp_path)
    attempt.mark(Spent())
    attempt.close()
    assert capsys.readouterr().err.count(f"warning: {tmp_path / ATTEMPTS}: cannot be") == 1
    (tmp_path / ATTEMPTS).rmdir()
    attempt = Attempts(tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        attempt.mark(Spent())
        attempt.mark(Spent())
    attempt.mark(Spent(steps=1.0))
    attempt.close()
    assert "No space left" in capsys.readouterr().err
    assert [record["event"] for record in lines(tmp_path)] == ["start", "mark", "mark", "mark"]


def test_the_age_of_this_process():
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    first = goodput.process_seconds()
    time.sleep(0.05)
    second = goodput.process_seconds()
    assert 0.0 < first < before
    assert 0.05 <= second - first <= time.clock_gettime(time.CLOCK_BOOTTIME) - before


@pytest.mark.fault("R4")
def test_a_changed_file_gives_no_goodput_rather_than_another(tmp_path, young, capsys):
    first = Attempts(tmp_path)
    first.mark(Spent(startup=5.0, steps=1.0))
    first.close()
    path = tmp_path / ATTEMPTS
    content = path.read_bytes()
    for place in range(0, 8 * (len(content) - 1), 37):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        attempt = Attempts(tmp_path)
        attempt.close()
        assert attempt.breakdown(Spent(), useful=0.0) == {}
        assert "is not as it was written" in capsys.readouterr().err
        again = Attempts(tmp_path)  # what is written behind it does not make it good
        again.close()
        assert again.breakdown(Spent(), useful=0.0) == {}
