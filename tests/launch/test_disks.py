"""Disks that are full, fail or go away under a whole run, and who may read what it leaves."""

import os
import re
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.events import wait_for
from tests.launch.starter import ROOT, Done, Starter, run_script

# launch/train.py in a process where something is different from the start.
WRAPPER = """
import errno, os, runpy, sys
sys.path.insert(0, {root!r})
{change}
sys.argv[0] = {train!r}
runpy.run_path({train!r}, run_name="__main__")
"""
FAIL = """
real = {{name: getattr(os, name) for name in ("open", "mkdir", "replace", "rename")}}

def failing(name):
    def call(path, *args, **kwargs):
        makes = name != "open" or (args and args[0] & os.O_CREAT)
        if makes and {wanted!r} in os.path.basename(os.fspath(path)):
            raise OSError(errno.{code}, os.strerror(errno.{code}))
        return real[name](path, *args, **kwargs)
    return call

for name in real:
    setattr(os, name, failing(name))
"""
# What a run writes -> None: it goes on without; else it ends with 73 or 74.
WRITTEN = {
    "forgetting.png": None,
    "log.txt": None,
    "attempts.jsonl": None,
    "tb": None,
    "config.yaml": "config.yaml",
    "ds_config.json": "ds_config.json",
    "environment.json": "environment.json",
    "scalars.jsonl": "scalars.jsonl",
    "results.json": "results.json",
    "checkpoints": "checkpoints",
    "step_": "checkpoints/step_",
    "topology.safetensors": "topology.safetensors",
    "rank_0.safetensors": "rank_0.safetensors",
    "manifest.json": "manifest.json",
    "latest": "latest",
    ".lock": "run",
}
CODES = {"ENOSPC": 74, "EROFS": 73, "EDQUOT": 74, "EIO": 74, "EACCES": 73}
EVERYWHERE = ("ENOSPC", "EROFS")
"""One of each exit code fails at every file, and each file by one of the others."""


def run_changed(starter: Starter, change: str, run_dir: Path) -> Done:
    script = starter.folder / "wrapped.py"
    train = str(ROOT / "launch" / "train.py")
    script.write_text(WRAPPER.format(root=str(ROOT), train=train, change=change))
    words = starter.arguments("--run_dir", str(run_dir), "--set", "phases.steps=5")
    return run_script(script, words, cwd=starter.folder)


def one_line(done: Done) -> str:
    """The error of a run that may have warned before."""
    assert "Traceback" not in done.err + done.out, done.err
    *before, last = done.err.splitlines()
    said = [line for line in before if line.startswith("sparsecl: ")]
    assert all(re.match("sparsecl: (warning|injected)", line) for line in said), done.err
    assert last.startswith("sparsecl: "), done.err
    return last


def fail_at(starter: Starter, name: str, code: str) -> None:
    run_dir = starter.folder / "run"
    done = run_changed(starter, FAIL.format(wanted=name, code=code), run_dir)
    if WRITTEN[name] is None:
        assert done.code == 0, done.err
        assert "Traceback" not in done.err and (run_dir / "results.json").is_file()
        assert done.err.count("sparsecl: warning: ") == 1, done.err
    else:
        assert done.code == CODES[code], (name, code, done.err)
        line = one_line(done)
        assert str(WRITTEN[name]) in line, (name, line)
        assert ("make room" in line) == (code in ("ENOSPC", "EDQUOT")), line
    shutil.rmtree(run_dir, ignore_errors=True)


@pytest.mark.fault("F3")
@pytest.mark.parametrize("name", ["config.yaml", "results.json", "forgetting.png", "latest"])
def test_a_disk_that_is_full_at_one_file(starter, name):
    fail_at(starter, name, "ENOSPC")


@pytest.mark.fault("F3")
@pytest.mark.slow
@pytest.mark.parametrize("code", list(CODES))
def test_a_disk_that_fails_at_any_file(starter, code):
    others = [other for other in CODES if other not in EVERYWHERE]
    for number, name in enumerate(WRITTEN):
        chosen = code in EVERYWHERE or code == others[number % len(others)]
        if chosen and not (name == ".lock" and code == "ENOSPC"):
            fail_at(starter, name, code)


@pytest.fixture
def disk(tmp_path) -> Iterator["Disk"]:
    made = Disk(tmp_path / "disk")
    yield made
    made.unmount()


class Disk:
    """A small file system of its own, in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def mount(self, options: str) -> None:
        words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")

    def unmount(self) -> None:
        subprocess.run(["umount", "-l", str(self.folder)], capture_output=True)


def small(starter: Starter, disk: Disk, options: str) -> int:
    disk.mount(options)
    done = starter.run("--run_dir", str(disk.folder / "run"), "--set", "phases.steps=5")
    if done.code:
        assert done.code in (73, 74), done.err
        assert "No space left on device" in one_line(done) and str(disk.folder) in done.err
    else:
        assert "Traceback" not in done.err
    disk.unmount()
    return done.code


@pytest.mark.fault("F3")
@pytest.mark.parametrize("options", ["nr_inodes=8", "size=80k"])
def test_a_small_disk(starter, disk, options):
    assert small(starter, disk, options) != 0


@pytest.mark.fault("F3")
@pytest.mark.slow
def test_a_disk_of_any_size(starter, disk):
    codes = [small(starter, disk, f"nr_inodes={count}") for count in range(2, 34, 4)]
    codes += [small(starter, disk, f"size={size}k") for size in (4, 16, 64, 256, 1024, 4096)]
    assert set(codes) == {0, 74}


@pytest.mark.fault("F4")
@pytest.mark.parametrize("how", ["removed", "renamed", "replaced"])
def test_a_folder_that_goes_away_is_said_to_be_gone(starter, how):
    folder, away = starter.folder / "run", starter.folder / "away"
    job = starter.start(starter.arguments("--run_dir", str(folder), "--inject", "stop@step:6"))
    wait_for(lambda: job.stopped, "step 6", alive=lambda: job.alive)
    folder.rename(away)
    if how == "removed":
        shutil.rmtree(away)
    elif how == "replaced":
        (folder / "checkpoints").mkdir(parents=True)
    os.kill(job.process.pid, signal.SIGCONT)
    done = job.wait()
    assert done.code in (73, 74), done.err
    line = one_line(done)
    assert "removed" in line and "renamed" in line and str(folder) in line and "room" not in line
    if how == "replaced":
        assert {path.name for path in folder.rglob("*")} <= {"checkpoints", "log.txt"}
    else:
        assert not folder.exists()


@pytest.mark.fault("F5")
def test_under_a_strict_umask_nobody_else_can_read(starter, tmp_path):
    run_dir, starter.cache = tmp_path / "run", tmp_path / "own_cache"
    done = run_changed(starter, "os.umask(0o077)", run_dir)
    assert done.code == 0, done.err
    found = [run_dir, *run_dir.rglob("*"), *starter.cache.rglob("*")]
    assert len(found) > 30
    rights = {path: stat.S_IMODE(path.lstat().st_mode) for path in found}
    assert [str(path) for path, mode in rights.items() if mode & 0o077] == []


@pytest.mark.fault("F6")
def test_what_a_killed_run_left_half_written_is_gone(starter):
    folder = starter.folder / "run"
    job = starter.start(starter.arguments("--run_dir", str(folder), "--inject", "kill@step:6"))
    assert job.wait().code == -9
    places = [folder, folder / "diagnostics", folder / "checkpoints"]
    names = {".results.json": 0, ".step_4.json": 1, ".latest": 2}
    (folder / "diagnostics").mkdir()
    left = [places[k] / f"{name}.0123456789abcdef.tmp" for name, k in names.items()]
    mine = [place / ".notes.tmp" for place in places]
    for path in left + mine:
        path.write_text("x")
    assert starter.run("--run_dir", str(folder)).code == 0
    assert [path for path in left if path.exists()] == []
    assert all(path.exists() for path in mine)
    assert not [path for path in folder.rglob("*") if re.search(r"\.[0-9a-f]{16}\.tmp", path.name)]
