"""The logs of a run under disks that fail, readers that leave and clocks that jump."""

import errno
import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sparsecl import command
from sparsecl import log as logs
from sparsecl.errors import CannotCreateError, DataError, StorageError
from sparsecl.log import RecordFile, RunLog
from sparsecl.seal import EMPTY, Extent, sealed_lines
from tests.events import wait_for

WRITE = os.write
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def file(tmp_path) -> Iterator[RecordFile]:
    records = RecordFile(tmp_path / "scalars.jsonl", keep=None)
    yield records
    records.close()


@pytest.fixture
def log(tmp_path) -> Iterator[RunLog]:
    made = RunLog(tmp_path)
    yield made
    made._board.close()


def failing_write(monkeypatch, *taken: int) -> None:
    """os.write takes so many bytes of each next call, then the disk is full."""
    left = list(taken)

    def some(handle: int, data: bytes) -> int:
        if not left:
            raise FULL
        return WRITE(handle, data[: left.pop(0)])

    monkeypatch.setattr(logs.os, "write", some)


# ---- records -----------------------------------------------------------------------------------


def test_a_line_that_is_not_taken_waits_in_order(file, monkeypatch):
    file.append(b"1\n")
    with monkeypatch.context() as broken:
        failing_write(broken)
        file.append(b"2\n")
        file.append(b"3\n")
        assert file.path.read_bytes() == b"1\n"
        assert (file.num_waiting, file.problem) == (2, FULL)
        with pytest.raises(OSError, match="No space"):
            file.sync()
    file.append(b"4\n")
    assert file.path.read_bytes() == b"1\n2\n3\n4\n"
    assert (file.num_waiting, file.problem, file.sync().num_bytes) == (0, None, 8)


def test_half_a_line_never_stays(file, monkeypatch):
    file.append(b"first\n")
    with monkeypatch.context() as broken:
        failing_write(broken, 3)
        file.append(b"second\n")
        assert file.path.read_bytes() == b"first\n"
        failing_write(broken, 3, 4)  # the disk takes the line in two parts
        file.append(b"3\n")
        assert file.path.read_bytes() == b"first\nsecond\n"
    assert file.sync() == Extent.of(b"first\nsecond\n3\n")


def test_a_torn_line_that_cannot_be_cut_is_cut_before_the_next(file, monkeypatch):
    with monkeypatch.context() as broken:
        failing_write(broken, 3)
        broken.setattr(logs.os, "ftruncate", lambda *_: (_ for _ in ()).throw(FULL))
        file.append(b"first\n")
        assert file.path.read_bytes() == b"fir"
    file.append(b"second\n")
    assert file.path.read_bytes() == b"first\nsecond\n"


def test_lines_of_a_failed_fsync_are_written_again(file, monkeypatch):
    """After a failed fsync the kernel may have dropped them, and the next fsync succeeds."""
    file.append(b"safe\n")
    file.sync()
    file.append(b"lost\n")
    with monkeypatch.context() as broken:
        broken.setattr(logs.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(5, "EIO")))
        with pytest.raises(OSError, match="EIO"):
            file.sync()
    assert file.num_waiting == 1
    with open(file.path, "r+b") as other:  # what the kernel left of it
        other.seek(5)
        other.write(b"\0\0\0\0\0")
    file.append(b"next\n")
    assert file.path.read_bytes() == b"safe\nlost\nnext\n"


@pytest.mark.parametrize("change", [os.unlink, lambda path: path.write_bytes(b"other\n")])
def test_a_file_that_was_changed_under_the_run_is_noticed(file, change):
    file.append(b"line\n")
    change(file.path)
    with pytest.raises(OSError):
        file.sync()


@pytest.mark.fault("R1")
@pytest.mark.parametrize("before", [b"1\n3\n", b"1234\n5678\n", b"1235\n"])
def test_a_record_that_was_changed_is_not_continued(tmp_path, before):
    (tmp_path / "scalars.jsonl").write_bytes(b"1234\n")
    with pytest.raises(DataError, match="5 bytes|sha256 differs"):
        RecordFile(tmp_path / "scalars.jsonl", keep=Extent.of(before))
    assert (tmp_path / "scalars.jsonl").read_bytes() == b"1234\n"


def test_the_digest_goes_on_behind_what_was_kept(tmp_path):
    path = tmp_path / "scalars.jsonl"
    path.write_bytes(b"1\n2\n3\n")
    file = RecordFile(path, keep=Extent.of(b"1\n2\n"))
    file.append(b"4\n")
    assert file.extent == file.sync() == Extent.of(b"1\n2\n4\n") == Extent.of(path.read_bytes())
    file.close()


def test_a_waiting_line_is_in_the_digest_that_a_later_one_is_sealed_with(file, monkeypatch):
    with monkeypatch.context() as broken:
        failing_write(broken, 3)
        file.append(b'{"a": 1}\n')
        file.append(b'{"b": 2}\n', sealed=True)
    file.sync()
    lines = list(sealed_lines(file.path.read_bytes()))
    assert [(b'{"b": 2, ' in line, sealed) for line, sealed in lines] == [
        (False, False),
        (True, True),
    ]


def test_a_record_that_cannot_be_opened(tmp_path):
    with pytest.raises(CannotCreateError, match="scalars.jsonl"):
        RecordFile(tmp_path / "absent" / "scalars.jsonl", keep=None)


def test_a_checkpoint_may_not_claim_waiting_records(log, monkeypatch, capsys):
    log.record("run", name="x")
    with monkeypatch.context() as broken:
        failing_write(broken)
        log.record("train", step=1)
        log.record("train", step=2)
        with pytest.raises(StorageError, match="make room.; 2 records wait") as caught:
            log.sync()
        assert caught.value.exit_code == 74 and "\n" not in str(caught.value)
    (line,) = capsys.readouterr().err.splitlines()  # one warning for all of them
    assert "records wait in memory" in line
    assert log.num_waiting == 2
    log.record("train", step=3)
    assert log.sync() == Extent.of(log.path.read_bytes())
    steps = [json.loads(row).get("step") for row in log.path.read_text().splitlines()]
    assert steps == [None, 1, 2, 3]


def in_child(body: Callable[[], Any]) -> str:
    """Run `body` in a forked process and return what it wrote to stderr; it must end by itself."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(writer, 2)
            command.take_streams()
            body()
            code = 0
        except BaseException as error:
            os.write(2, repr(error).encode())
        finally:
            os._exit(code)
    os.close(writer)
    with open(reader) as pipe:
        said = pipe.read()
    assert os.waitpid(child, 0)[1] == 0, said
    return said


@pytest.mark.fault("D1")
def test_a_disk_that_fills_up_and_is_emptied(tmp_path):
    """RLIMIT_FSIZE: every file of the run stops growing at 2000 bytes, TensorBoard's too."""

    def body() -> None:
        log = RunLog(tmp_path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
        for step in range(100):
            log.record("train", step=step, text="x" * 50)
            log.scalars({"train/loss": 1.0}, tokens=step)
            log.say("y" * 50)
        assert log.num_waiting > 0 and log.path.read_bytes().endswith(b"\n")
        log._board.flush()
        assert not log._board.is_on
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        log.close()

    said = in_child(body)
    steps = [json.loads(line)["step"] for line in open(tmp_path / "scalars.jsonl")]
    assert steps == list(range(100))
    for name in ("scalars.jsonl", "log.txt", "TensorBoard is off"):
        assert said.count(name) == 1 + (name == "scalars.jsonl"), said  # once as TensorBoard's heir
    assert "Traceback" not in said


# ---- text --------------------------------------------------------------------------------------


def test_text_that_cannot_be_written_is_said_once(log, tmp_path, capsys):
    (tmp_path / "log.txt").mkdir()
    log.say("one")
    log.say("two")
    found = capsys.readouterr()
    assert found.out == "one\ntwo\n"
    assert found.err.count("log.txt: cannot be written (is a folder)") == 1


# ---- TensorBoard -------------------------------------------------------------------------------


@pytest.mark.fault("D1")
def test_tensorboard_that_cannot_start(tmp_path, capsys):
    (tmp_path / "tb").write_text("a file in its place")
    log = RunLog(tmp_path)
    log.scalars({"a/b": 1.0}, tokens=1)
    log.record("run")
    log.close()
    assert capsys.readouterr().err.count("TensorBoard is off") == 1
    assert json.loads(log.path.read_text()) == {"kind": "run"}


def test_an_error_in_the_thread_of_a_writer_turns_it_off(log, monkeypatch, capsys):
    from tensorboard.summary.writer.record_writer import RecordWriter

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "the disk is gone")

    monkeypatch.setattr(RecordWriter, "write", fail)

    def is_off() -> bool:
        log.scalars({"a/b": 1.0}, tokens=1)
        log._board.flush()
        return not log._board.is_on

    wait_for(is_off, "the error")
    log.scalars({"a/b": 2.0}, tokens=2)
    log.hparams({"lr": 0.1}, ["a/b"])
    log.close()
    said = capsys.readouterr().err
    assert said.count("TensorBoard is off from here on (the disk is gone)") == 1
    assert "Traceback" not in said


def test_any_exception_of_a_picture_is_caught(log, capsys):
    import numpy as np

    log.image("masks/a", np.zeros((2, 2, 2)), tokens=0)
    assert "TensorBoard is off" in capsys.readouterr().err
    log.image("masks/a", np.zeros((2, 2)), tokens=0)
    assert log.sync() == EMPTY


# ---- clocks ------------------------------------------------------------------------------------


def events(folder: Path) -> list[tuple[int, float, float]]:
    """(step, value, wall time) of train/loss as TensorBoard reads them."""
    found = EventAccumulator(str(folder)).Reload().Scalars("train/loss")
    return [(event.step, event.value, event.wall_time) for event in found]


@pytest.mark.fault("J4")
@pytest.mark.parametrize("jump", [-86400.0, -1e-9, 3600.0])
def test_a_clock_that_jumps_between_two_starts(tmp_path, monkeypatch, jump):
    """Set back, it gives the new event file the older name: the one that is read first."""
    log = RunLog(tmp_path)
    for step in (10, 20, 30):
        log.scalars({"train/loss": 1.0}, tokens=step)
    log.close()
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + jump)
    log = RunLog(tmp_path, resume_at=EMPTY, purge_tokens=20)
    for step in (30, 40):
        log.scalars({"train/loss": 2.0}, tokens=step)
    log.close()
    found = events(tmp_path / "tb")
    assert [event[:2] for event in found] == [(10, 1.0), (20, 1.0), (30, 2.0), (40, 2.0)]
    walls = [event[2] for event in found]
    assert walls == sorted(walls)


@pytest.mark.fault("J4")
def test_a_clock_that_is_set_back_in_a_run(log, tmp_path, monkeypatch):
    log.scalars({"train/loss": 1.0}, tokens=1)
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() - 86400.0)
    log.scalars({"train/loss": 2.0}, tokens=2)
    log.close()
    first, second = events(tmp_path / "tb")
    assert 0.0 <= second[2] - first[2] < 60.0
