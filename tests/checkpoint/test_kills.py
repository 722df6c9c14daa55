"""A save may be killed at any moment, on any rank: one whole newest checkpoint, never a torn one.

Ranks are forked processes and the kills are real. fsync is left out here: a killed process loses
nothing of what it has written (tests/checkpoint/test_power_cut.py is about what a machine loses).
"""

import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsecl import faults
from sparsecl.checkpoint import publish as publication
from sparsecl.checkpoint.background import Saver
from sparsecl.checkpoint.publish import newest_valid
from sparsecl.checkpoint.published import PUBLISHED
from sparsecl.seeding import stream
from tests.checkpoint.tiny import (
    PARAMETERS,
    TOPOLOGY,
    check_law,
    fork_ranks,
    parts,
    save,
    was_killed,
)

CALLS = ("rename", "replace", "unlink", "rmdir", "mkdir")


@pytest.fixture(autouse=True)
def _without_fsync(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_a_point(draws: np.random.Generator) -> Callable[[], None]:
    """At a border between two events; some are passed twice by rank 0."""
    point = str(draws.choice(sorted(faults.SAVE_POINTS)))
    number = int(draws.integers(1, 3)) if "shard" in point or "synced" in point else 1
    return lambda: faults.arm([f"kill@{point}:{number}"], seed=0, rank=0)


def in_a_file(draws: np.random.Generator) -> Callable[[], None]:
    """In the middle of a file: the first that grows beyond a size, after some point."""
    after = str(draws.choice(sorted(faults.SAVE_POINTS)))
    size = int(2 ** draws.uniform(0, 11.5))
    real = faults.point

    def point(name: str, **objects: Any) -> None:
        real(name, **objects)
        if name == after:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the kernel ends who writes further

    return lambda: setattr(faults, "point", point)


def at_a_call(draws: np.random.Generator) -> Callable[[], None]:
    """Before or after a change of a folder, also amid the removal of an old checkpoint."""
    left, before = int(draws.integers(1, 14)), bool(draws.random() < 0.5)

    def counting(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0 and before:
                die()
            result = real(*args, **kwargs)
            if left == 0:
                die()
            return result

        return call

    def prepare() -> None:
        for name in CALLS:
            setattr(os, name, counting(getattr(os, name)))

    return prepare


KINDS = (at_a_point, in_a_file, at_a_call)


def kill_once(root: Path, number: int) -> tuple[bool, int]:
    """One save by one or two ranks, one of which is to die; whether it did, and what it saved."""
    draws = stream(0, "kills", number)
    newest = int(newest_valid(root)[0].name.removesuffix(".old").removeprefix("step_"))
    # Now and then the same step again, as after a resume from an older checkpoint.
    step = newest + int(draws.random() < 0.7)
    keep, value = int(draws.integers(1, 3)), 1000 + number
    num_ranks = 1 if number % 5 else 2  # a fork takes longer than a save
    victim = int(draws.integers(num_ranks))
    prepare = KINDS[number % len(KINDS)](draws)

    def body(rank: int) -> None:
        if rank == victim:
            prepare()
        save(root, step, value, keep=keep, num_ranks=num_ranks)

    log = root.parent / "log"
    statuses = fork_ranks(num_ranks, body, log)
    died = was_killed(statuses[victim]) or was_killed(statuses[victim], signal.SIGXFSZ)
    assert died or not any(statuses), (number, statuses, log.exists() and log.read_text())
    return died, value


def kill_often(root: Path, num_kills: int) -> None:
    save(root, 1, 0)
    value, deaths, number = 0, 0, 0
    while deaths < num_kills:
        number += 1
        assert number < 3 * num_kills
        died, new = kill_once(root, number)
        deaths += died
        found = check_law(root, {value, new} if died else {new})
        # The next save tidies up.
        value = -number
        step = int(found.name.removesuffix(".old").removeprefix("step_")) + 1
        save(root, step, value, keep=2)
        check_law(root, {value})
        assert not list(root.glob("*.tmp")) and not list(root.glob(".*.tmp"))


@pytest.mark.fault("P3", "P5")
def test_twelve_kills(tmp_path):
    kill_often(tmp_path / "checkpoints", 12)


@pytest.mark.fault("P3", "P4")
@pytest.mark.slow
def test_two_hundred_kills(tmp_path):
    kill_often(tmp_path / "checkpoints", 200)


@pytest.mark.fault("P3")
@pytest.mark.parametrize("point", sorted(faults.SAVE_POINTS))
def test_a_kill_of_the_background_writer(tmp_path, point):
    """The same law, while the main thread trains on."""
    save(tmp_path, 1, keep=1)

    def body(rank: int) -> None:
        saver = Saver(tmp_path, keep=1, background=True)
        faults.arm([f"kill@{point}"], seed=0, rank=rank)
        saver.save(2, *parts(2, 0, 1), PARAMETERS, {"value": 2}, {"up.weight": TOPOLOGY})
        saver.wait()

    (status,) = fork_ranks(1, body, tmp_path / "log")
    assert was_killed(status)
    named = point in ("save.renamed", "save.latest", "save.retained")
    check_law(tmp_path, {2 if named else 1})


@pytest.mark.fault("P5")
def test_a_step_that_is_saved_again_is_never_without_a_checkpoint(tmp_path, monkeypatch):
    """The only checkpoint is replaced, and the process dies when it has stepped aside."""
    save(tmp_path, 5, 50)
    real = os.rename

    class Killed(BaseException):
        """Nobody may catch it, as nobody can catch SIGKILL."""

    def rename(source: Any, target: Any) -> None:
        real(source, target)
        if str(target).endswith("step_5.old"):
            raise Killed

    monkeypatch.setattr(publication.os, "rename", rename)
    with pytest.raises(Killed):
        save(tmp_path, 5, 51)
    monkeypatch.setattr(publication.os, "rename", real)
    assert check_law(tmp_path, {50}).name == "step_5.old"
    shutil.copytree(tmp_path, other := tmp_path.parent / f"{tmp_path.name}_other")
    save(tmp_path, 5, 52, keep=1)
    assert check_law(tmp_path, {52}).name == "step_5"
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["latest", PUBLISHED, "step_5"]
    save(other, 6, 60, keep=2)
    assert check_law(other, {60}).name == "step_6" and (other / "step_5.old").is_dir()
