"""Runs whose streams or limits are not what a run is used to."""

import os
import resource

import pytest

from tests.launch.starter import Starter


def close_both() -> None:
    os.close(1)
    os.close(2)


def fill_both() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, 1)
    os.dup2(full, 2)


def leave_both() -> None:
    reader, writer = os.pipe()
    os.dup2(writer, 1)
    os.dup2(writer, 2)
    os.close(reader)
    os.close(writer)


def few_files() -> None:
    limit = len(os.listdir("/proc/self/fd")) + 4
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


def little_memory() -> None:
    """Enough for torch, and for a tiny model; not for a matrix of 1 TiB."""
    resource.setrlimit(resource.RLIMIT_AS, (1 << 36, 1 << 36))


@pytest.mark.fault("X5")
@pytest.mark.parametrize("prepare", [close_both, fill_both, leave_both])
def test_a_run_does_not_need_its_streams(starter, prepare):
    folder = starter.folder / "run"
    words = starter.arguments("--run_dir", str(folder), "--set", "phases.steps=6")
    done = starter.start(words, prepare=prepare).wait()
    assert done.code == 0
    assert (folder / "results.json").exists() and (folder / "forgetting.png").exists()
    # What was not printed is in the log, and in no file that took the place of a stream.
    assert "Validation loss" in (folder / "log.txt").read_text()
    assert all(line.startswith(b"{") for line in open(folder / "scalars.jsonl", "rb"))


@pytest.mark.fault("X10")
@pytest.mark.parametrize(
    ("prepare", "setting", "text"),
    [
        (few_files, "seed=0", "too many files are open"),
        (little_memory, "model={preset: null, layers: 1, width: 1048576, heads: 4, context: 4}",
         "memory is short (Unable to allocate 1.00 TiB"),
    ],
)  # fmt: skip
def test_limits_of_the_machine_are_one_line(starter: Starter, prepare, setting, text):
    words = starter.arguments("--run_dir", str(starter.folder / "run"), "--set", setting)
    done = starter.start(words, prepare=prepare).wait()
    assert done.code == 74 and text in done.line
    assert not (starter.folder / "run").exists()
