"""Files that change while they are read."""

import hashlib
import os

import numpy as np
import pytest

from sparsecl.data import held_file
from sparsecl.data.held_file import HeldFile
from sparsecl.errors import DataError, StorageError

CONTENT = bytes(range(256)) * 20  # 5120 bytes


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def num_hashes(monkeypatch):
    """How often a content was hashed, in a list of one number."""
    calls, digest = [0], HeldFile._digest

    def counted(self):
        calls[0] += 1
        return digest(self)

    monkeypatch.setattr(HeldFile, "_digest", counted)
    return calls


@pytest.fixture
def old(monkeypatch):
    """Every file counts as older than a tick of the clock."""
    monkeypatch.setattr(held_file, "GRANULARITY", 0.0)


def hold(path):
    return HeldFile(path, size=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest())


def read(file, count=5120, offset=0):
    array = np.empty(count, dtype=np.uint8)
    file.read_into(array, offset)
    return array.tobytes()


def test_any_part_is_read(path):
    file = hold(path)
    assert read(file) == CONTENT and read(file, 7, 300) == CONTENT[300:307] and read(file, 0) == b""


def test_a_file_that_nobody_touched_is_hashed_once(path, num_hashes, old):
    file = hold(path)
    for _ in range(3):
        file.check()
    assert num_hashes == [1]


def test_a_young_file_is_hashed_again(path, num_hashes):
    """Its next change may get the same ctime."""
    file = hold(path)
    for _ in range(2):
        os.utime(path)  # so that its ctime is now, however slow the machine is
        file.check()
        assert file.sound is None
    assert num_hashes == [2]


def write_in_place(path):
    with open(path, "r+b") as file:
        file.write(b"other")


def write_and_reset_the_time(path):
    before = path.stat()
    write_in_place(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def write_through_a_map(path):
    with open(path, "r+b") as file:
        array = np.memmap(file, dtype=np.uint8, mode="r+")
        array[:5] = 7
        array.flush()


def write_through_a_second_name(path):
    other = path.with_name("other")
    os.link(path, other)
    write_and_reset_the_time(other)
    other.unlink()


CHANGES = [
    write_in_place,
    write_and_reset_the_time,
    write_through_a_map,
    write_through_a_second_name,
    lambda path: os.truncate(path, 100),
    lambda path: os.truncate(path, 10**7),
]


@pytest.mark.fault("H3")
@pytest.mark.parametrize("change", CHANGES)
def test_whoever_writes_is_found(path, change, old):
    file = hold(path)
    file.check()
    change(path)
    with pytest.raises(DataError, match=f"{path}: its sha256 is not the manifest's; delete"):
        file.check()


@pytest.mark.fault("H3")
def test_a_change_in_the_tick_of_the_last_one_is_found(path):
    file = hold(path)
    file.check()
    write_and_reset_the_time(path)
    with pytest.raises(DataError, match="sha256"):
        file.check()


@pytest.mark.fault("H3")
def test_a_file_that_is_cut_is_no_signal(path):
    file = hold(path)
    os.truncate(path, 4096)
    assert read(file, 4096) == CONTENT[:4096]
    with pytest.raises(DataError, match=f"{path}: it was cut while it was read; delete"):
        read(file)


@pytest.mark.fault("H3")
def test_another_file_under_its_name_changes_nothing(path, num_hashes, old):
    file = hold(path)
    file.check()
    other = path.with_name("other")
    other.write_bytes(b"other")
    other.replace(path)
    file.check()
    assert read(file) == CONTENT
    path.unlink()
    file.check()
    file.check()
    assert num_hashes == [2]  # the first change of the name changed a ctime


def test_rights_and_names_may_change(path, num_hashes, old):
    file = hold(path)
    file.check()
    path.chmod(0o400)
    file.check()
    file.check()
    assert num_hashes == [2]


def test_what_another_process_found_whole_is_believed(path, num_hashes, old):
    first, second = hold(path), hold(path)
    first.check()
    second.check({first.sound})
    assert num_hashes == [1] and second.sound == first.sound
    write_in_place(path)
    with pytest.raises(DataError):
        hold(path).check({first.sound})


def test_a_disk_that_fails_is_named(path, monkeypatch):
    file = hold(path)

    def fail(*_):
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(StorageError, match=f"{path}: cannot be read .Input/output error"):
        read(file)
