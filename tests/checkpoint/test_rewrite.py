"""A checkpoint cut for another tp size is the same checkpoint."""

import pytest
import torch
from pytest import fixture, mark, raises

from sparsecl.checkpoint import rewrite
from sparsecl.checkpoint.canonical import keys, num_bytes
from sparsecl.checkpoint.find import all_checkpoints, find_checkpoint
from sparsecl.checkpoint.laws import check_laws
from sparsecl.checkpoint.manifest import MANIFEST, verify
from sparsecl.checkpoint.reader import Reader
from sparsecl.checkpoint.rewrite import reshard
from sparsecl.errors import CannotCreateError, DataError, MissingInputError, StorageError, UserError
from tests.checkpoint import made


@fixture(scope="module")
def folder(tmp_path_factory):
    return made.save(tmp_path_factory.mktemp("checkpoints"))


def bits(tensor: torch.Tensor) -> list[int]:
    return tensor.reshape(-1).view(torch.int32).tolist()


def check_equal(folder, other):
    """Bit for bit, with everything beside the tensors."""
    first, second = Reader(folder), Reader(other)
    assert keys(first) == keys(second) and len(keys(first)) == 19
    for state, name in keys(first):
        assert bits(first.read(state, name)) == bits(second.read(state, name)), (state, name)
    for part in ("step", "parameters", "state"):
        assert getattr(first.manifest, part) == getattr(second.manifest, part)
    digests = [{n: t.digest for n, t in r.topologies.items()} for r in (first, second)]
    assert digests[0] == digests[1] and len(digests[0]) == 2


@pytest.mark.fault("C10")
@mark.parametrize("tp_size", [1, 2, 4])
def test_there_and_back_is_the_identity(folder, tmp_path, tp_size):
    reshard(Reader(folder), tmp_path / "there", tp_size=tp_size)
    reshard(Reader(tmp_path / "there"), tmp_path / "back", tp_size=1)
    check_equal(folder, tmp_path / "there")
    check_equal(folder, tmp_path / "back")
    assert verify(tmp_path / "there").tp_size == tp_size
    assert check_laws(tmp_path / "there").problems == ()
    shards = sorted(path.name for path in (tmp_path / "there").glob("rank_*"))
    assert shards == [f"rank_{rank}.safetensors" for rank in range(tp_size)]


def test_slices_hold_what_a_rank_holds(folder, tmp_path):
    """By hand: two ranks; rows of `a.up`, columns of `a.down`, the norm on rank 0 only."""
    manifest = reshard(Reader(folder), tmp_path / "two", tp_size=2)
    matrix = made.matrices()
    live = {name: torch.from_numpy(t.mask()) for name, t in made.topologies().items()}
    up, down = live["a.up.weight"], live["a.down.weight"]
    counts = {(p.name, p.tp_rank): p.numel for p in manifest.pieces if p.state == "master"}
    assert counts["a.up.weight", 1] == int(up[4:].sum())
    assert counts["a.down.weight", 0] == int(down[:, :4].sum())
    assert ("norm.weight", 1) not in counts
    reader = Reader(tmp_path / "two")
    local = reader.read_local("exp_avg", "a.down.weight", tp_rank=1, tp_size=2)
    assert torch.equal(local, matrix["exp_avg", "a.down.weight"][:, 4:])


def test_one_tensor_is_held_at_a_time(folder, tmp_path):
    source, done = made.Counted(folder), []
    reshard(source, tmp_path / "out", tp_size=4, advance=done.append)
    assert (source.num_read, source.most, len(source.alive)) == (19, 1, 0)
    assert sum(done) == num_bytes(source, keys(source)) > 0
    held = [source.read("master", name) for name in made.ENTRIES]
    assert source.most == len(held) == 5  # it can tell


@pytest.mark.fault("C11")
@mark.parametrize(
    ("tp_size", "message"),
    [
        (3, "tensor-parallel size 3 does not divide 4, the attention heads. Use 1, 2, 4."),
        (8, "size 8 does not divide 4, the attention heads"),
        (0, "size 0 does not divide"),
    ],
)
def test_what_does_not_divide_is_refused(folder, tmp_path, tp_size, message):
    with raises(UserError, match=message):
        reshard(Reader(folder), tmp_path / "out", tp_size=tp_size)
    assert list(tmp_path.iterdir()) == []


def test_without_a_config_the_shapes_decide(tmp_path):
    folder = made.save(tmp_path, state={})
    with raises(UserError, match=r"8 does not divide 4, the size of dim 0 of b.up.weight. Use 1,"):
        reshard(Reader(folder), tmp_path / "out", tp_size=8)


def test_what_is_there_stays(folder, tmp_path):
    (tmp_path / "out").mkdir()  # a rename would replace an empty folder
    with raises(CannotCreateError, match="is there already"):
        reshard(Reader(folder), tmp_path / "out", tp_size=2)
    (tmp_path / "file").write_text("")
    with raises(CannotCreateError, match="file is no folder"):
        reshard(Reader(folder), tmp_path / "file" / "out", tp_size=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]


@mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_nothing_is_left_of_one_that_failed(folder, tmp_path, monkeypatch, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(rewrite, "write_manifest", fail)
    expected = StorageError if isinstance(error, OSError) else KeyboardInterrupt
    with raises(expected, match="out: cannot be written" if expected is StorageError else None):
        reshard(Reader(folder), tmp_path / "out", tp_size=2)
    assert list(tmp_path.iterdir()) == []


def test_a_path_stands_for_a_checkpoint(tmp_path):
    run = tmp_path / "run"
    root = run / "checkpoints"
    root.mkdir(parents=True)
    with raises(MissingInputError, match="holds no checkpoint"):
        find_checkpoint(run)
    with raises(MissingInputError, match="no such"):
        find_checkpoint(tmp_path / "nowhere")
    older, newer = made.save(root, step=5), made.save(root, step=6)
    (run / "config.yaml").write_text("")
    for path in (run, root):
        found = find_checkpoint(path)
        assert (found.folder, found.run) == (newer, run)
        assert found.notes == (f"{path}: its newest valid checkpoint is step_6",)
    assert all_checkpoints(run) == [older, newer]
    (newer / MANIFEST).unlink()
    found = find_checkpoint(run)
    assert found.folder == older and "passed over" in found.notes[0]
    for path in (newer, older):
        (path / made.FILE).write_bytes(b"")
        with raises(DataError):  # its name says what it should be
            find_checkpoint(path)
    with raises(DataError, match="no checkpoint is valid"):
        find_checkpoint(run)
