"""Links, pipes and folders in the place of anything that a run writes or reads."""

import os
import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from sparsecl.engine.resume.run_folder import FILES, FOLDERS, RunFolder
from sparsecl.errors import CannotCreateError
from sparsecl.locks import LOCK
from tests.launch.starter import Starter


def link_to_file(path: Path, victim: Path) -> None:
    path.symlink_to(victim / "precious")


def link_to_folder(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def dangling(path: Path, victim: Path) -> None:
    path.symlink_to(victim / "absent")


PLANTS: dict[str, Callable[[Path, Path], None]] = {
    "file": link_to_file,
    "folder": link_to_folder,
    "dangling": dangling,
    "pipe": lambda path, victim: os.mkfifo(path),
}


@pytest.fixture
def victim(tmp_path) -> Path:
    """A folder with what a run might take for its own."""
    folder = tmp_path / "victim"
    for name in ("step_4.tmp", "step_4", "step_4.old"):
        (folder / name).mkdir(parents=True)
        (folder / name / "manifest.json").write_text("precious")
    for name in (
        "precious",
        "latest",
        "events.out.tfevents.9999999999.x",
        ".x.0123456789abcdef.tmp",
    ):
        (folder / name).write_text("precious\n")
    return folder


def content(folder: Path) -> dict[str, Any]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def runs(server, tmp_path_factory, shared_cache) -> dict[str, Path]:
    """A finished run, and one that was stopped after 20 of 24 steps."""
    starter = Starter(tmp_path_factory.mktemp("runs"), shared_cache)
    done, half = starter.folder / "done", starter.folder / "half"
    assert starter.run("--run_dir", str(done)).code == 0
    assert starter.run("--run_dir", str(half), "--inject", "usr1@step:20").code == 75
    return {"done": done, "half": half}


def test_the_names_of_a_run_folder_are_known(runs):
    assert {path.name for path in runs["done"].iterdir()} <= {*FILES, *FOLDERS, LOCK}


@pytest.mark.fault("F1", "F2")
@pytest.mark.parametrize("kind", list(PLANTS))
@pytest.mark.parametrize("name", [*FILES, *FOLDERS, LOCK])
def test_a_run_folder_is_checked_before_anything_is_opened(tmp_path, victim, kind, name):
    before = content(victim)
    (tmp_path / "run").mkdir()
    PLANTS[kind](tmp_path / "run" / name, victim)
    for _ in range(2):  # the refusal holds no lock
        with pytest.raises(CannotCreateError, match=f"(run/|its ){name}:? is a") as raised:
            RunFolder(tmp_path / "run")
        assert "emove it" in str(raised.value)
    assert content(victim) == before


@pytest.mark.fault("F1")
def test_the_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    RunFolder(tmp_path / "run").close()
    assert os.listdir(tmp_path / "disk") == [LOCK]


def again(starter: Starter, made: Path, inside: str, kind: str, victim: Path) -> None:
    """Start a run again that has something else in the place of one file or folder."""
    before = content(victim)
    folder = Path(shutil.copytree(made, starter.folder / "again"))
    remove(folder / inside)
    PLANTS[kind](folder / inside, victim)
    done = starter.run("--run_dir", str(folder))
    assert content(victim) == before, (inside, kind)
    assert "Traceback" not in done.err, (inside, kind, done.err)
    assert done.code in (0, 65, 73), (inside, kind, done.err)
    if done.code:
        assert inside in done.err, (inside, kind, done.err)
    shutil.rmtree(folder)


@pytest.mark.fault("F1")
@pytest.mark.parametrize(
    ("state", "inside", "kind"),
    [
        ("half", "scalars.jsonl", "file"),
        ("half", "checkpoints", "folder"),
        ("half", "checkpoints/latest", "pipe"),
        ("done", "results.json", "dangling"),
    ],
)
def test_a_run_is_not_started_over_them(starter, runs, victim, state, inside, kind):
    again(starter, runs[state], inside, kind, victim)


@pytest.mark.fault("F1")
@pytest.mark.slow
@pytest.mark.parametrize("state", ["half", "done"])
@pytest.mark.parametrize("kind", list(PLANTS))
def test_nothing_that_a_run_has_is_followed(starter, runs, victim, state, kind):
    """All of a finished run, which trains no more; in the other each has two of the kinds."""
    names = [path.relative_to(runs[state]) for path in sorted(runs[state].rglob("*"))]
    assert len(names) > 15
    pairs = list(combinations(PLANTS, 2))
    for number, name in enumerate(names):
        if state == "done" or kind in pairs[number % len(pairs)]:
            again(starter, runs[state], str(name), kind, victim)


@pytest.mark.fault("F2")
@pytest.mark.parametrize("name", ["pipe.yaml", "ds.json", "masks.npz"])
def test_an_input_that_is_a_pipe_is_refused_at_once(starter, name):
    pipe = starter.folder / name
    os.mkfifo(pipe)
    words = starter.arguments("--run_dir", "run", config=starter.config())
    if name == "pipe.yaml":
        words[words.index("--config") + 1] = str(pipe)
    elif name == "ds.json":
        words[words.index("--ds_config") + 1] = str(pipe)
    else:
        words += ["--set", "topology.kind=from_file", f"topology.path={pipe}"]
    done = starter.start(words).wait()
    assert done.code == 66 and name in done.line
