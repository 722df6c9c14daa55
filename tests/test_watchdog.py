"""A process that gets nowhere is ended with its stacks; one that does, or was asleep, is not."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sparsecl import watchdog
from sparsecl.watchdog import GRACE, Watchdog
from tests.events import HANG

ROOT = Path(__file__).resolve().parent.parent

SCRIPT = """
import sys, threading, time
from sparsecl import watchdog

class Board:
    def post(self, line): pass
    def lines(self):
        # Rank 1 writes on, rank 2 does not.
        return {0: "1 0 here", 1: f"{time.monotonic_ns()} 7 step 4", 2: "9 3 step 3"}

def work():
    threading.Event().wait(float(sys.argv[1]))

dog = watchdog.Watchdog(0.2, rank=0, board=Board(), poll=0.05)
dog.start()
for n in range(3):
    watchdog.beat(f"step {n}")
watchdog.warm()
work()
print("done", flush=True)
"""


@pytest.mark.fault("P11")
def test_a_hang_ends_with_place_peers_and_stacks():
    command = [sys.executable, "-c", SCRIPT, str(HANG)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=2 * HANG)
    assert done.returncode == 76 and "done" not in done.stdout
    assert "rank 0: nothing has happened for" in done.stderr and "since: step 2" in done.stderr
    assert "rank 1: silent for 7 s, since: step 4" in done.stderr
    assert "rank 2: does not run (stopped or dead), since: step 3" in done.stderr
    assert "in work" in done.stderr


@pytest.mark.fault("P11")
def test_a_store_that_does_not_answer_holds_up_nobody():
    """Rank 0 keeps it: if that process is stopped, whoever asks it waits for ever."""
    script = SCRIPT.replace(
        "def lines(self):", "def lines(self):\n        threading.Event().wait()"
    )
    script = script.replace("dog =", "watchdog.ANSWER_SECONDS = 0.05\ndog =")
    command = [sys.executable, "-c", script, str(HANG)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=2 * HANG)
    assert done.returncode == 76 and "rank 0, which they write to, is stopped" in done.stderr
    assert "in work" in done.stderr


TICK = 1 / 16  # seconds; sums of it are exact


class Watched:
    """A watchdog of four ticks' patience that looks at every tick; the test moves its clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.bites = 0.0, []
        monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.dog = Watchdog(4 * TICK, poll=TICK)
        monkeypatch.setattr(self.dog, "_bite", self.bites.append)
        for number in range(3):
            self.dog.beat(f"step {number}")
        self.dog.warm()

    def watch(self, *seconds: float, beats: bool = False) -> list[float]:
        """Look after each of these times, with a beat before if `beats`; what it bites for."""
        left = iter(seconds)

        def wait(poll: float) -> bool:
            passed = next(left, None)
            if passed is None:
                return True
            self.now += passed
            if beats:
                self.dog.beat("on")
            return False

        self.dog._end = SimpleNamespace(wait=wait)
        self.dog._watch()
        return self.bites


@pytest.fixture
def watched(monkeypatch):
    return Watched(monkeypatch)


def test_silence_ends_a_process_and_beats_do_not(watched):
    assert watched.watch(*[TICK] * 30, beats=True) == []
    watched.dog.beat("the last")
    # Ten times the longest time between two beats, which is more than the patience.
    assert watched.watch(*[TICK] * 10) == []
    assert watched.watch(TICK) == [11 * TICK]


def test_what_is_known_to_take_long_may(watched):
    with watched.dog.patient("save", 30.0):
        assert watched.watch(*[TICK] * 480) == []
        assert watched.watch(TICK) == [481 * TICK]
    watched.bites.clear()
    assert watched.watch(*[TICK] * 4) == []
    assert watched.watch(TICK) == [5 * TICK]  # it does not count for what comes after


class Lines:
    """Lines of this rank, and of one that is `state`."""

    def __init__(self, state: str) -> None:
        self.state, self.looks = state, 0

    def post(self, line: str) -> None:
        pass

    def lines(self) -> dict[int, str]:
        self.looks += 1
        if self.state == "no answer" and self.looks > 1:
            raise ConnectionError
        other = {"mute": "7 3 save", "closed": f"7 0 {watchdog._CLOSED}"}
        return {0: f"{self.looks} 3 save", 1: other.get(self.state, f"{self.looks} 0 save")}


@pytest.mark.fault("P11")
@pytest.mark.parametrize("state", ["writes on", "closed"])
def test_a_long_save_is_waited_for_while_all_ranks_live(watched, state):
    watched.dog.board = Lines(state)
    with watched.dog.patient("save", 30.0):
        assert watched.watch(*[TICK] * 480) == []


@pytest.mark.fault("P11")
@pytest.mark.parametrize("state", ["mute", "no answer"])
def test_a_long_save_is_not_waited_for_if_a_rank_stands_still(watched, state):
    watched.dog.board = Lines(state)
    with watched.dog.patient("save", 30.0):
        # The usual time, and as long again from the first look at the others.
        assert watched.watch(*[TICK] * 9) == []
        assert watched.watch(TICK) == [10 * TICK]


@pytest.mark.fault("P11")
def test_a_suspended_process_starts_counting_anew(watched):
    assert watched.watch(*[TICK] * 3, 1000.0, *[TICK] * 4) == []
    assert watched.watch(TICK) == [5 * TICK]


@pytest.mark.fault("G2")
def test_patience_grows_with_the_longest_step(monkeypatch):
    now = 0.0
    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: now))
    dog = Watchdog(120.0)
    # Kernels may be compiled, also where evaluations or a restored optimizer come first.
    for place in ("start", *(f"evaluation, window {n}" for n in range(50)), "forward", "update"):
        assert dog.allowed == GRACE * 120.0
        dog.beat(place)
    now += 500.0
    dog.warm()
    assert dog.allowed == 120.0
    dog.beat("the next step")
    assert dog.allowed == 120.0  # how long the first update took is forgotten
    now += 50.0
    dog.beat("a long step")
    dog.warm()  # every step says so
    assert dog.allowed == GRACE * 50.0
