"""Saving beside training: the same checkpoint, of the moment of the call, and the same errors."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsecl import dist, faults
from sparsecl.checkpoint import background, shards
from sparsecl.checkpoint.background import Saver
from sparsecl.checkpoint.publish import newest_valid
from sparsecl.checkpoint.published import PUBLISHED
from sparsecl.errors import StorageError
from tests.checkpoint.tiny import PARAMETERS, TOPOLOGY, check_law, parts, save, value_of
from tests.events import HANG

LIVE = {"up.weight": TOPOLOGY}


def start(saver: Saver, step: int, num_ranks: int = 1) -> dict[str, torch.Tensor]:
    """Begin a save whose tensors are made of the step; the tensors."""
    tensors, pieces = parts(step, dist.rank(), num_ranks)
    saver.save(step, tensors, pieces, PARAMETERS, {"value": step}, LIVE)
    return tensors


@pytest.fixture
def gate(monkeypatch):
    """Writers wait until it is set."""
    gate, real = threading.Event(), shards.write_shard

    def waiting(*args: Any) -> Any:
        assert gate.wait(HANG)
        return real(*args)

    monkeypatch.setattr("sparsecl.checkpoint.publish.write_shard", waiting)
    yield gate
    gate.set()


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_both_ways_write_the_same(tmp_path):
    for name in ("front", "back"):
        saver = Saver(tmp_path / name, keep=1, background=name == "back")
        start(saver, 3)
        saver.wait()
        last = saver.last
        assert last is not None and last.folder == tmp_path / name / "step_3"
        assert last.bytes == sum(map(len, files_of(last.folder).values()))
        assert last.step == 3 and last.stall_seconds > 0 and last.write_seconds > 0
        if name == "front":
            assert last.stall_seconds >= last.write_seconds
    direct = save(tmp_path / "direct", 3)
    same = [files_of(tmp_path / name / "step_3") for name in ("front", "back", "direct")]
    assert same[0] == same[1] == same[2] == files_of(direct)


def test_training_goes_on_and_does_not_change_what_is_saved(tmp_path, gate):
    saver = Saver(tmp_path, keep=1, background=True)
    tensors, pieces = parts(1, 0, 1)
    state: dict[str, Any] = {"value": 1, "list": [1]}
    live = dict(LIVE)
    saver.save(1, tensors, pieces, PARAMETERS, state, live)
    assert newest_valid(tmp_path) == (None, []) and saver.last is None  # it has not waited
    for tensor in tensors.values():
        tensor.zero_()
    state["value"], state["list"][0] = 7, 7
    pieces.clear()
    live.clear()
    gate.set()
    saver.wait()
    assert value_of(tmp_path / "step_1") == 1


def test_at_most_one_is_on_its_way(tmp_path, gate):
    saver = Saver(tmp_path, keep=9, background=True)
    start(saver, 1)
    opener = threading.Timer(0.05, gate.set)
    opener.start()
    start(saver, 2)  # waits for the first
    assert saver.last is not None and saver.last.step == 1
    saver.wait()
    saver.wait()
    assert saver.last.step == 2
    check_law(tmp_path, {2})


def test_an_error_comes_with_the_next_call_and_once(tmp_path):
    saver = Saver(tmp_path, keep=1, background=True)
    faults.arm(["full@save.shard"], seed=0, rank=0)
    try:
        start(saver, 1)
        with pytest.raises(StorageError, match="No space left"):
            start(saver, 2)
    finally:
        faults.disarm()
    saver.wait()
    assert saver.last is None
    start(saver, 3)
    saver.wait()
    check_law(tmp_path, {3})


def test_the_copy_is_given_back(tmp_path):
    saver = Saver(tmp_path, keep=1, background=True)
    start(saver, 1)
    writing = saver._running
    assert writing is not None
    writing.join(HANG)
    assert writing.arguments == ()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_copy_from_the_gpu_is_complete_and_pinned():
    tensors = {"a": torch.arange(1 << 20, device="cuda", dtype=torch.float32)}
    copies = background._to_cpu(tensors)
    tensors["a"].zero_()
    assert copies["a"].is_pinned() and copies["a"].sum() == torch.arange(1 << 20).sum()


def two_ranks(folder: str) -> list[Any]:
    """A save beside collectives of the main thread; then one whose disk is full on rank 1."""
    dist.init()
    root = Path(folder)
    saver = Saver(root, keep=2, background=True)
    sums = []
    for step in (1, 2):
        start(saver, step, num_ranks=2)
        sums += [int(dist.all_reduce(torch.tensor(k))) for k in range(20)]
    saver.wait()
    faults.arm(["full@save.shard/rank=1"], seed=0, rank=dist.rank())
    start(saver, 3, num_ranks=2)
    message = ""
    try:
        saver.wait()
    except StorageError as error:
        message = str(error)
    faults.disarm()
    start(saver, 4, num_ranks=2)
    saver.wait()
    assert saver.last is not None
    return [sums, message, saver.last.step, saver.last.bytes]


@pytest.mark.dist
def test_two_ranks(pool, tmp_path):
    first, second = pool.run(two_ranks, 2, str(tmp_path))
    assert first == second
    sums, message, step, _ = first
    assert sums == [2 * k for k in range(20)] * 2
    assert "rank_1.safetensors: cannot be written (No space left" in message and step == 4
    check_law(tmp_path, {4})
    assert {path.name for path in tmp_path.iterdir()} == {"latest", PUBLISHED, "step_2", "step_4"}
