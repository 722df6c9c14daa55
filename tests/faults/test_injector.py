"""What a user may write after --inject, what is drawn, and that each fault does what it says."""

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sparsecl import faults
from sparsecl.errors import UserError
from sparsecl.faults import ACTIONS, POINTS, InjectedError, parse

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _disarmed():
    yield
    faults.disarm()


def arm(*specs: str, seed: int = 0, rank: int = 0) -> None:
    faults.arm(specs, seed=seed, rank=rank)


# ---- grammar -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "action", "argument", "points", "passages", "chance", "rank"),
    [
        ("raise@step:3", "raise", 0, 1, (3, 3), None, None),
        ("kill@save.shard_written:2/rank=1", "kill", 0, 1, (2, 2), None, 1),
        ("sleep=30@step:5/rank=0", "sleep", 30, 1, (5, 5), None, 0),
        ("sleep=0.5@batch", "sleep", 0.5, 1, (0, 0), None, None),
        ("spike=-1e3@loss:20", "spike", -1000, 1, (20, 20), None, None),
        ("spike@loss", "spike", 1000, 1, (0, 0), None, None),
        ("nan@gradient:7-9", "nan", 0, 1, (7, 9), None, None),
        ("kill@*~0.01", "kill", 0, len(POINTS), (0, 0), 0.01, None),
        ("nan@*~1", "nan", 0, 3, (0, 0), 1.0, None),
        ("full@save.*:4", "full", 0, 9, (4, 4), None, None),
        ("truncate=0.25@save.synced", "truncate", 0.25, 1, (0, 0), None, None),
        ("exit=3@step:2", "exit", 3, 1, (2, 2), None, None),
    ],
)
def test_grammar(spec, action, argument, points, passages, chance, rank):
    found = parse(spec)
    assert (found.action, found.argument, len(found.points)) == (action, argument, points)
    assert (found.first, found.last) == passages
    assert (found.chance, found.rank) == (chance, rank)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "write ACTION[=ARG]@POINT"),
        ("kill", "write ACTION[=ARG]@POINT"),
        ("kill@step:-1", "write ACTION[=ARG]@POINT"),
        ("kill@step/rank=x", "write ACTION[=ARG]@POINT"),
        ("kill@step;rm -rf /", "write ACTION[=ARG]@POINT"),
        ("kil@step", "unknown action kil; did you mean kill?"),
        ("kill@stpe", "no point stpe; did you mean step?"),
        ("kill@save.shard_writen", "did you mean save.shard_written?"),
        ("kill@nothing*", "no point nothing*"),
        ("kill=9@step", "takes no =ARG; leave =9 out"),
        ("sleep@step", "write =ARG after the action (seconds)"),
        ("sleep=soon@step", "seconds 'soon' must be a number in [0, 1e+06]"),
        ("sleep=nan@step", "must be a number"),
        ("exit=256@step", "exit code '256' must be a number in [0, 255]"),
        ("exit=2.5@step", "must be a whole number"),
        ("truncate=1.5@save.synced", "share that stays '1.5'"),
        ("nan@step", "nan cannot happen there; points for it: loss, gradient, weights"),
        ("full@step", "full cannot happen there; points for it: save.begin"),
        ("kill@*~1.5", "probability '1.5' must be a number in [0, 1]"),
        ("kill@step:5-2", "the range 5-2 is empty; write 2-5"),
        ("kill@step:0", "counted from 1"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(spec, message):
    arm("raise@step")
    with pytest.raises(UserError) as raised:
        arm("nan@loss", spec)
    text = str(raised.value)
    assert text.startswith("--inject ") and message in text and "\n" not in text
    with pytest.raises(InjectedError):  # what was armed before still is
        faults.point("step", step=1)


def test_the_docstring_is_up_to_date():
    text = faults.__doc__ or ""
    examples = re.findall(r"^    ([a-z]+(?:=\d+)?@\S+)  ", text, re.MULTILINE)
    assert len(examples) == 6
    for spec in examples:
        parse(spec)


def test_every_point_that_is_passed_has_a_meaning():
    """In the code of the package, and each border of publication is passed."""
    passed = set()
    for path in (ROOT / "sparsecl").rglob("*.py"):
        passed |= set(re.findall(r'faults\.point\(\s*"([^"]+)"', path.read_text()))
    assert passed <= set(POINTS)
    assert faults.SAVE_POINTS <= passed


# ---- when and where ------------------------------------------------------------------------------


def passages(name: str, count: int, step: Callable[[int], int] | None = None) -> list[int]:
    """Which of `count` passages, from 1, raise."""
    hits = []
    for number in range(1, count + 1):
        try:
            faults.point(name, **({} if step is None else {"step": step(number)}))
        except InjectedError:
            hits.append(number)
    return hits


def test_nothing_happens_unless_armed():
    assert passages("batch", 5) == []
    arm()
    assert faults._armed is None
    arm("raise@batch")
    faults.disarm()
    assert passages("batch", 5) == []


@pytest.mark.parametrize(
    ("spec", "hits"),
    [
        ("raise@batch", [1]),
        ("raise@batch:3", [3]),
        ("raise@batch:2-4", [2, 3, 4]),
        ("raise@batch~1", [1, 2, 3, 4, 5, 6]),
        ("raise@batch~0", []),
        ("raise@step", []),
        ("raise@batch:2/rank=1", []),
        ("raise@batch:2/rank=0", [2]),
        ("raise@ba*:2", [2]),
    ],
)
def test_which_passage(spec, hits):
    arm(spec)
    assert passages("batch", 6) == hits


def test_a_step_is_a_step_and_not_a_passage():
    """A resumed run begins at step 10. A step tried again is hit once, by a range each time."""
    arm("raise@step:12")
    assert passages("step", 5, lambda k: 9 + k) == [3]
    arm("raise@step:12")
    assert passages("step", 4, lambda k: 12) == [1]
    arm("raise@step:12-13")
    assert passages("step", 4, lambda k: 12) == [1, 2, 3, 4]


def test_a_pattern_counts_all_its_points():
    arm("raise@save.s*:3")
    faults.point("save.begin")
    faults.point("save.shard")
    faults.point("save.shard_written")
    with pytest.raises(InjectedError):
        faults.point("save.synced")


def test_random_passages_come_from_the_seed_and_the_rank():
    def drawn(seed: int, rank: int) -> list[int]:
        arm("raise@batch~0.1", seed=seed, rank=rank)
        return passages("batch", 500)

    assert drawn(1, 0) == drawn(1, 0)
    assert drawn(1, 0) != drawn(2, 0) != drawn(1, 1)
    # Binomial with mean 50 and standard deviation 6.7; 4 of them.
    assert all(23 < len(drawn(seed, 0)) < 77 for seed in range(5))


def test_an_unknown_point_in_the_code_is_a_bug():
    arm("raise@step")
    with pytest.raises(AssertionError, match="no_such"):
        faults.point("no_such")


# ---- tensors and files ---------------------------------------------------------------------------


def changed(spec: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Two tensors of ones, 4 + 6 elements, after the fault."""
    a, b = torch.ones(4, dtype=dtype), torch.ones(4, 3, dtype=dtype)[::2].requires_grad_()
    arm(spec, seed=seed)
    faults.point("weights", tensors={"a": a, "b": b}, step=1)
    return torch.cat([a, b.detach().reshape(-1)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("spec", "holds"),
    [
        ("nan@weights", torch.isnan),
        ("inf@weights", torch.isposinf),
        ("spike=-8@weights", lambda x: x == -8),
        ("flip@weights", lambda x: x != 1),
    ],
)
def test_one_element_changes(spec, holds, dtype, capfd):
    found = changed(spec, dtype=dtype)
    assert int(holds(found).sum()) == 1 and int((found == 1).sum()) == 9
    line = capfd.readouterr().err
    assert line.startswith(f"sparsecl: injected {spec}: element [") and line.count("\n") == 1
    assert line.endswith("at passage 1 of weights, step 1, rank 0\n")


def test_every_element_is_drawn_sometime_and_always_the_same():
    places = [int((changed("nan@weights", seed).isnan()).nonzero()) for seed in range(120)]
    assert set(places) == set(range(10))
    assert int(changed("nan@weights", 7).isnan().nonzero()) == places[7]


def test_a_named_bit_flips():
    found = changed("flip=31@weights")
    assert sorted(found.tolist()) == [-1.0] + [1.0] * 9


def test_scalars_and_nothing(capfd):
    arm("spike=1000@loss~1")
    loss = torch.tensor(2.5)
    faults.point("loss", tensors=[loss], step=3)
    assert loss == 2500
    faults.point("loss", tensors=[torch.empty(0)], step=4)
    assert "no element to change" in capfd.readouterr().err


@pytest.mark.parametrize(("share", "kept"), [("0", 0), ("0.5", 5), ("1", 10)])
def test_a_file_is_truncated(tmp_path, share, kept):
    (tmp_path / "file").write_bytes(b"0123456789")
    arm(f"truncate={share}@save.synced")
    faults.point("save.synced", path=tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"0123456789"[:kept]


@pytest.mark.parametrize(("action", "number"), [("full", 28), ("eio", 5)])
def test_errors_of_the_disk(action, number):
    arm(f"{action}@save.shard")
    with pytest.raises(OSError) as raised:
        faults.point("save.shard")
    assert raised.value.errno == number


# ---- processes -----------------------------------------------------------------------------------


def ends(spec: str, log: Path, *, wait_stopped: bool = False) -> int:
    """Fork, pass `step` once; the wait status."""
    child = os.fork()
    if child == 0:
        try:
            sys.stderr = open(log, "w")
            for name in ("SIGTERM", "SIGUSR1", "SIGINT"):
                signal.signal(getattr(signal, name), signal.SIG_DFL)
            arm(spec, rank=3)
            faults.point("step", step=1)
        finally:
            os._exit(77)  # the fault did not happen
    status = os.waitpid(child, os.WUNTRACED)[1]
    if wait_stopped and os.WIFSTOPPED(status):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return status


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ("kill@step", -signal.SIGKILL),
        ("term@step", -signal.SIGTERM),
        ("usr1@step", -signal.SIGUSR1),
        ("int@step", -signal.SIGINT),
        ("exit=3@step", 3),
        ("exit@step", 1),
    ],
)
def test_a_process_ends_and_says_so_before(tmp_path, spec, code):
    assert os.waitstatus_to_exitcode(ends(spec, tmp_path / "log")) == code
    text = (tmp_path / "log").read_text()
    name = spec.split("@")[0].split("=")[0]
    assert f"injected {spec}: {ACTIONS[name].meaning}" in text and "rank 3" in text


def test_a_process_stops(tmp_path):
    status = ends("stop@step", tmp_path / "log", wait_stopped=True)
    assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGSTOP


def test_it_sleeps(monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    arm("sleep=2.5@step:2")
    faults.point("step", step=1)
    faults.point("step", step=2)
    assert slept == [2.5]
