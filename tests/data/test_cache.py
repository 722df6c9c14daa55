"""An entry is whole or absent, whatever happens to the process that builds it."""

import multiprocessing
import os
import signal

import pytest

from sparsecl.data import cache
from sparsecl.errors import CannotCreateError, DataError
from tests.events import HANG, wait_for

SPAWN = multiprocessing.get_context("spawn")


def slow_build(entry, started, count, others):
    """Build, once `others` want to do the same."""

    def build(folder):
        with open(count, "a") as file:
            file.write("x")
        (folder / "data").write_text("whole")
        wait_for(lambda: started.value > others, "the others")
        return {"by": "slow"}

    with started.get_lock():
        started.value += 1
    cache.build_once(entry, build)


def build_whole(folder):
    (folder / "data").write_text("whole")
    return {"by": "whole"}


def test_the_key_decides_the_folder(tmp_path):
    one = cache.entry_path(tmp_path, "text", "d", {"a": 1, "b": 2})
    assert one == cache.entry_path(tmp_path, "text", "d", {"b": 2, "a": 1})
    assert one != cache.entry_path(tmp_path, "text", "d", {"a": 1, "b": 3})
    assert one.parent == tmp_path / "text" and one.name.startswith("d-")


def test_an_entry_is_built_once(tmp_path):
    calls = []
    for _ in range(2):
        manifest = cache.build_once(tmp_path / "e", lambda f: calls.append(f) or {"n": 1})
        assert manifest == {"n": 1}
    assert len(calls) == 1


def test_a_failed_build_leaves_nothing(tmp_path):
    def fail(folder):
        (folder / "data").write_text("half")
        raise RuntimeError("oops")

    with pytest.raises(RuntimeError):
        cache.build_once(tmp_path / "e", fail)
    assert [p.name for p in tmp_path.iterdir()] == [".e.lock"]
    assert cache.build_once(tmp_path / "e", build_whole) == {"by": "whole"}


def test_a_killed_build_is_done_again(tmp_path):
    args = (tmp_path / "e", SPAWN.Value("i"), tmp_path / "count", 1)  # nobody comes
    process = SPAWN.Process(target=slow_build, args=args)
    process.start()
    wait_for(lambda: list(tmp_path.glob(".e.*.tmp/data")), "the build", alive=process.is_alive)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert list(tmp_path.glob(".e.*.tmp")), "the killed build was not under way"
    assert cache.build_once(tmp_path / "e", build_whole) == {"by": "whole"}
    assert not list(tmp_path.glob(".e.*.tmp"))
    assert (tmp_path / "e" / "data").read_text() == "whole"


def test_two_processes_at_once_build_once(tmp_path):
    args = (tmp_path / "e", SPAWN.Value("i"), tmp_path / "count", 1)
    processes = [SPAWN.Process(target=slow_build, args=args) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(HANG)
        assert process.exitcode == 0
    assert (tmp_path / "count").read_text() == "x"
    assert cache.read_manifest(tmp_path / "e") == {"by": "slow"}


def test_a_whole_entry_needs_no_write_access(tmp_path, monkeypatch):
    cache.build_once(tmp_path / "e", build_whole)

    def no_lock(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cache, "FileLock", no_lock)
    assert cache.build_once(tmp_path / "e", build_whole) == {"by": "whole"}
    with pytest.raises(
        CannotCreateError, match="data.cache_dir: cannot write .*: Permission denied"
    ):
        cache.build_once(tmp_path / "other", build_whole)


def test_a_cache_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotCreateError, match="data.cache_dir: cannot write .*file/text"):
        cache.build_once(tmp_path / "file" / "text" / "e", build_whole)


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_a_broken_manifest_is_named(tmp_path, content):
    cache.build_once(tmp_path / "e", build_whole)
    (tmp_path / "e" / "manifest.json").write_text(content)
    with pytest.raises(DataError, match="manifest.json: not .*; delete"):
        cache.build_once(tmp_path / "e", build_whole)
