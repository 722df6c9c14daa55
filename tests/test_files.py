"""Files that are whole or absent, opened without links, tidied up after kills."""

import ast
import errno
import multiprocessing
import os
import signal
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsecl import files
from sparsecl.errors import CannotCreateError, StorageError
from sparsecl.files import (
    atomic_open,
    cannot_write,
    check_entries,
    remove_leftovers,
    temporary_folder,
)
from sparsecl.opening import NotPlainError, make_folder, plain, plain_input

ROOT = Path(__file__).resolve().parents[1]

BY_NAME = {
    "benchmarks/gpu_check.py",  # in a folder that was just made
    "benchmarks/gpu_sections.py",  # the same
    "checkpoint/hf_tokenizer.py",  # in a folder that was just made
    "conversions/start.py",  # the same
    "experiments/report/publish.py",  # the same
    "experiments/report/write.py",  # the same
    "experiments/running/slurm.py",  # scripts of the project
    "place.py",  # what /proc says of processes
    "sparse/kernels.py",  # in a folder that was just made
}

CODES = {
    "EACCES": 73,
    "EROFS": 73,
    "EISDIR": 73,
    "ENOSPC": 74,
    "EDQUOT": 74,
    "EIO": 74,
    "EFBIG": 74,
}


def listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


# What may stand in the place of a file -> how it is made, what is said of it.
PLANTED: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "link": (lambda path, victim: path.symlink_to(victim), "a link"),
    "dangling": (lambda path, victim: path.symlink_to(victim.with_name("absent")), "a link"),
    "pipe": (lambda path, victim: os.mkfifo(path), "a pipe"),
    "folder": (lambda path, victim: path.mkdir(), "a folder"),
    "socket": (lambda path, victim: listen(path), "a socket"),
    "device": (lambda path, victim: path.symlink_to("/dev/zero"), "a link"),
}


@pytest.fixture
def victim(tmp_path) -> Path:
    path = tmp_path / "victim"
    path.write_text("precious")
    return path


# ---- opening -----------------------------------------------------------------------------------


@pytest.mark.fault("F1", "F2")
@pytest.mark.parametrize("kind", list(PLANTED))
@pytest.mark.parametrize("mode", ["rb", "ab", "wb", "r+b", "xb"])
def test_only_plain_files_are_opened(tmp_path, victim, monkeypatch, kind, mode):
    monkeypatch.chdir(tmp_path)  # a socket's name must be short
    plant, said = PLANTED[kind]
    path = Path("place")
    plant(path, victim)
    with pytest.raises(NotPlainError, match=said):
        open(path, mode, opener=plain)
    assert victim.read_text() == "precious" and not (tmp_path / "absent").exists()


def test_a_file_that_the_user_names_may_be_a_link(tmp_path, victim):
    (tmp_path / "link").symlink_to(victim)
    with open(tmp_path / "link", opener=plain_input) as file:
        assert file.read() == "precious"
    (tmp_path / "dev").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    for name, said in (("dev", "a device"), ("pipe", "a pipe")):
        with pytest.raises(NotPlainError, match=said):
            open(tmp_path / name, opener=plain_input)


@pytest.mark.fault("F1")
def test_a_second_name_is_not_written_to(tmp_path, victim):
    os.link(victim, tmp_path / "other")
    with open(tmp_path / "other", opener=plain) as file:
        assert file.read() == "precious"
    for mode in ("a", "w", "r+"):
        with pytest.raises(NotPlainError, match="a hard link"):
            open(tmp_path / "other", mode, opener=plain)
    assert victim.read_text() == "precious"


def test_folders_are_not_made_through_links(tmp_path):
    make_folder(tmp_path / "new")
    make_folder(tmp_path / "new")
    (tmp_path / "link").symlink_to(tmp_path / "new")
    (tmp_path / "dangling").symlink_to(tmp_path / "absent")
    for name in ("link", "dangling"):
        with pytest.raises(NotPlainError, match="a link"):
            make_folder(tmp_path / name)
    assert not (tmp_path / "absent").exists()


def test_entries_that_may_be_there(tmp_path, victim):
    check_entries(tmp_path, files=("victim", "absent", "absent/x"), folders=("nothing",))
    (tmp_path / "link").symlink_to(victim)
    for planted in ({"files": ("link",)}, {"folders": ("link",)}, {"folders": ("victim",)}):
        with pytest.raises(CannotCreateError) as raised:
            check_entries(tmp_path, **planted)
        assert str(tmp_path / [*planted.values()][0][0]) in str(raised.value)


@pytest.mark.fault("F1")
def test_every_file_is_opened_by_an_opener():
    """What is opened by name alone follows links and waits for pipes."""
    by_name = ("read_text", "read_bytes", "write_text", "write_bytes", "touch")
    found = []
    for path in sorted((ROOT / "sparsecl").rglob("*.py")):
        if path.relative_to(ROOT).parts[1] == "data":
            continue  # sources may be anything that is said to be readable; its readers check
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            function = ast.unparse(node.func)
            opened = function == "open" and all(word.arg != "opener" for word in node.keywords)
            named = isinstance(node.func, ast.Attribute) and node.func.attr in by_name
            if opened or (named and "/proc/" not in ast.unparse(node)):
                found.append(f"{path.relative_to(ROOT / 'sparsecl')}")
    assert set(found) == BY_NAME


# ---- whole files -------------------------------------------------------------------------------


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "value"
    with atomic_open(path) as file:
        file.write("old")
    with pytest.raises(RuntimeError), atomic_open(path) as file:
        file.write("half of the n")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["value"]


@pytest.mark.fault("F2")
@pytest.mark.parametrize("kind", list(PLANTED))
def test_only_a_file_is_replaced(tmp_path, victim, monkeypatch, kind):
    """With root's rights `--out /dev/null` would take the device away from everybody."""
    monkeypatch.chdir(tmp_path)
    plant, said = PLANTED[kind]
    path = Path("place")
    plant(path, victim)
    before = os.lstat(path).st_ino
    with pytest.raises(CannotCreateError, match=f"place: cannot be written .is {said}"):
        with atomic_open(path) as file:
            file.write("new")
    assert os.lstat(path).st_ino == before and victim.read_text() == "precious"


@pytest.mark.fault("F3")
@pytest.mark.parametrize("name", list(CODES))
@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_every_failure_of_a_disk_is_one_line_with_a_code(tmp_path, monkeypatch, name, call):
    code = getattr(errno, name)

    def fail(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as broken:
        broken.setattr(files.os, call, fail)
        with pytest.raises((CannotCreateError, StorageError)) as raised:
            with atomic_open(tmp_path / "value") as file:
                file.write("new")
    assert raised.value.exit_code == CODES[name]
    assert str(tmp_path / "value") in str(raised.value) and "\n" not in str(raised.value)
    assert ("make room" in str(raised.value)) == (name in ("ENOSPC", "EDQUOT"))
    assert os.listdir(tmp_path) == []


@pytest.mark.fault("F4")
def test_a_folder_that_is_gone_is_named(tmp_path):
    for code in (errno.ENOENT, errno.ESTALE):
        error = cannot_write(tmp_path / "run" / "tb" / "x", OSError(code, os.strerror(code)))
        assert f"there is no folder {tmp_path / 'run'}: was it removed" in str(error)
        assert "room" not in str(error)


@pytest.mark.fault("F5")
@pytest.mark.parametrize(("umask", "rights"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_the_umask_says_who_may_read(tmp_path, umask, rights):
    before = os.umask(umask)
    try:
        with atomic_open(tmp_path / "value") as file:
            during = [os.stat(path).st_mode for path in tmp_path.iterdir()]
            file.write("x")
        os.close(plain(tmp_path / "log", os.O_WRONLY | os.O_CREAT))
        make_folder(tmp_path / "folder")
        with temporary_folder(tmp_path / "out") as made:
            assert stat.S_IMODE(made.stat().st_mode) == 0o777 & ~umask
    finally:
        os.umask(before)
    found = [*during, *(os.stat(tmp_path / name).st_mode for name in ("value", "log"))]
    assert [stat.S_IMODE(mode) for mode in found] == [rights] * 3
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~umask


# ---- what a kill leaves ------------------------------------------------------------------------


def _hold(what: str, path: str, said: Any) -> None:
    with temporary_folder(Path(path)) if what == "folder" else atomic_open(Path(path)) as made:
        (made / "part").write_text("x") if isinstance(made, Path) else made.write("x")
        said.send(b"begun")
        signal.pause()


@pytest.mark.fault("F6")
@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_a_killed_process_left_is_removed_and_what_a_live_one_holds_is_not(tmp_path, what):
    path = tmp_path / "report"
    others = [tmp_path / name for name in (".report.notes.tmp", ".report.tmp", ".other.tmp")]
    for other in others:
        other.write_text("mine")
    processes = []
    for _ in range(2):
        heard, said = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(
            target=_hold, args=(what, str(path), said)
        )
        process.start()
        assert heard.recv() == b"begun"
        processes.append(process)
    made = {p for p in tmp_path.iterdir()} - set(others)
    assert len(made) == 2
    processes[0].kill()
    processes[0].join()
    try:
        with temporary_folder(path) if what == "folder" else atomic_open(path):
            left = {p for p in tmp_path.iterdir()} & made
            assert len(left) == 1
            remove_leftovers(tmp_path)  # by any other name, too
            assert {p for p in tmp_path.iterdir()} & made == left
    finally:
        processes[1].kill()
        processes[1].join()
    remove_leftovers(tmp_path)
    assert set(tmp_path.iterdir()) - {path} == set(others)


@pytest.mark.fault("F6")
def test_leftovers_are_not_removed_through_links(tmp_path, victim):
    name = f".report.{'0' * 16}.tmp"
    (tmp_path / name).symlink_to(victim)
    remove_leftovers(tmp_path)
    assert victim.read_text() == "precious" and (tmp_path / name).is_symlink()
    (tmp_path / name).unlink()
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / ".held").write_text("")
    (tmp_path / name).symlink_to(folder)
    remove_leftovers(tmp_path)
    assert (folder / ".held").exists()
