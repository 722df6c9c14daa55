"""An entry is whole or absent, whatever happens to the process that builds it."""

import json
import multiprocessing
import os
import shutil
import signal

import pytest

from sparsecl.data import cache
from sparsecl.errors import CannotCreateError, DataError
from tests.events import HANG, wait_for

SPAWN = multiprocessing.get_context("spawn")


def slow_build(root, started, count, others):
    """Build, once `others` want to do the same."""

    def build(folder):
        with open(count, "a") as file:
            file.write("x")
        (folder / "data").write_text("whole")
        wait_for(lambda: started.value > others, "the others")
        return {"by": "slow"}

    with started.get_lock():
        started.value += 1
    open_here(root, build)


def open_here(root, build=None, key=1):
    """The manifest of the entry g/e-... for `key`."""
    return cache.open_entry(root, "g", "e", key, build or build_whole)[1]


def build_whole(folder):
    (folder / "data").write_text("whole")
    return {"by": "whole"}


def entry_of(root):
    (entry,) = root.glob("g/e-*")
    return entry


def test_the_key_decides_the_folder(tmp_path):
    def folder(group, name, key):
        return cache.open_entry(tmp_path, group, name, key, build_whole)[0]

    one = folder("text", "d", {"a": 1, "b": 2})
    assert one == folder("text", "d", {"b": 2, "a": 1})
    others = [("text", "d", {"a": 1, "b": 3}), ("text", "e", {"a": 1, "b": 2})]
    assert len({one, *(folder(*other) for other in others)}) == 3
    assert one.parent == tmp_path / "text" and one.name.startswith("d-")


def test_an_entry_is_built_once(tmp_path):
    calls = []
    for _ in range(2):
        assert open_here(tmp_path, lambda f: calls.append(f) or {"n": 1}) == {"n": 1}
    assert len(calls) == 1


def test_a_failed_build_leaves_nothing(tmp_path):
    def fail(folder):
        (folder / "data").write_text("half")
        raise RuntimeError("oops")

    with pytest.raises(RuntimeError):
        open_here(tmp_path, fail)
    (left,) = (tmp_path / "g").iterdir()
    assert left.name.endswith(".lock")
    assert open_here(tmp_path) == {"by": "whole"}


def test_a_killed_build_is_done_again(tmp_path):
    args = (tmp_path, SPAWN.Value("i"), tmp_path / "count", 1)  # nobody comes
    process = SPAWN.Process(target=slow_build, args=args)
    process.start()
    wait_for(lambda: list(tmp_path.glob("g/.e-*.tmp/data")), "the build", alive=process.is_alive)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert list(tmp_path.glob("g/.e-*.tmp")), "the killed build was not under way"
    assert open_here(tmp_path) == {"by": "whole"}
    assert not list(tmp_path.glob("g/.e-*.tmp"))
    assert (entry_of(tmp_path) / "data").read_text() == "whole"


def test_two_processes_at_once_build_once(tmp_path):
    args = (tmp_path, SPAWN.Value("i"), tmp_path / "count", 1)
    processes = [SPAWN.Process(target=slow_build, args=args) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(HANG)
        assert process.exitcode == 0
    assert (tmp_path / "count").read_text() == "x"
    assert open_here(tmp_path) == {"by": "slow"}


@pytest.mark.fault("H1")
def test_a_whole_entry_needs_no_write_access(tmp_path, monkeypatch):
    open_here(tmp_path)

    def no_lock(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cache, "FileLock", no_lock)
    assert open_here(tmp_path) == {"by": "whole"}
    with pytest.raises(
        CannotCreateError, match="data.cache_dir .*: cannot be written .Permission denied"
    ):
        open_here(tmp_path, key=2)


def test_a_cache_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        CannotCreateError, match="data.cache_dir .*/file.*: cannot be written .*is no folder"
    ):
        open_here(tmp_path / "file")


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_a_broken_manifest_is_named(tmp_path, content):
    open_here(tmp_path)
    (entry_of(tmp_path) / "manifest.json").write_text(content)
    with pytest.raises(DataError, match="manifest.json: not .*; delete"):
        open_here(tmp_path)


@pytest.mark.fault("H1")
def test_an_entry_of_another_key_is_refused(tmp_path):
    open_here(tmp_path, key=1)
    one = entry_of(tmp_path)
    other = tmp_path / "other"
    open_here(other, key=2)
    two = entry_of(other)
    two.rename(one.with_name(two.name))
    shutil.rmtree(one)
    one.with_name(two.name).rename(one)
    with pytest.raises(DataError, match=f"{one}: was made for another domain or config, and moved"):
        open_here(tmp_path, key=1)


@pytest.mark.fault("H1")
def test_an_entry_of_another_name_or_group_is_refused(tmp_path):
    found = [cache.open_entry(tmp_path, g, n, 1, build_whole)[0] for g in "ab" for n in "xy"]
    for source in found[1:]:
        shutil.rmtree(found[0])
        shutil.copytree(source, found[0])
        with pytest.raises(DataError, match="was made for another"):
            cache.open_entry(tmp_path, "a", "x", 1, build_whole)


@pytest.mark.fault("H2")
@pytest.mark.parametrize("key", ["by", "more", "made_for", "sha256"])
def test_a_changed_manifest_is_named(tmp_path, key):
    open_here(tmp_path)
    path = entry_of(tmp_path) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: "other"}))
    with pytest.raises(
        DataError, match="manifest.json: was changed, its sha256 is another; delete"
    ):
        open_here(tmp_path)


@pytest.mark.fault("H1")
@pytest.mark.parametrize("part", ["g", "entry", "manifest"])
def test_links_and_pipes_inside_a_cache_are_refused(tmp_path, part):
    open_here(tmp_path)
    entry = entry_of(tmp_path)
    path = {"g": entry.parent, "entry": entry, "manifest": entry / "manifest.json"}[part]
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="is a link, which is not followed"):
        open_here(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match=f"{path}: .*(is a pipe|is no folder)"):
        open_here(tmp_path)


def test_a_cache_that_is_itself_a_link_is_used(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert open_here(tmp_path / "link") == open_here(tmp_path / "real") == {"by": "whole"}
