"""What differs between two checkpoints is counted by hand."""

import math

import numpy as np
import torch
from pytest import approx, fixture, mark

from sparsecl.checkpoint.differences import compare_live, compare_tensors, total
from sparsecl.checkpoint.manifest import ParameterEntry, Piece
from sparsecl.checkpoint.publish import publish
from sparsecl.checkpoint.reader import Reader
from sparsecl.topology.layer import LayerTopology
from tests.checkpoint import made


@fixture(scope="module")
def folder(tmp_path_factory):
    return made.save(tmp_path_factory.mktemp("checkpoints"))


def one_matrix(root, values, live=None) -> Reader:
    """A checkpoint with one matrix `w` [2, 3]; `live` = flat indices."""
    value = torch.tensor(values)
    topologies = {}
    if live is not None:
        topologies["w"] = LayerTopology("w", 2, 3, np.array(live))
        value = value.reshape(-1)[live]
    piece = Piece(made.FILE, "master", "w", 0, 0, value.numel())
    entries = {"w": ParameterEntry((2, 3), 0, live is not None)}
    tensors = {piece.key: value.reshape(-1)}
    return Reader(publish(root, 1, tensors, [piece], entries, {}, keep=1, topologies=topologies))


NAN = math.nan


@mark.parametrize(
    ("other", "tolerance", "num", "max_abs", "relative"),
    [
        ([[3.0, 4.0, 0.0], [0.0, 0.0, NAN]], 0.0, 0, 0.0, 0.0),
        ([[3.0, 4.5, 0.0], [0.25, 0.0, NAN]], 0.0, 2, 0.5, None),
        ([[3.0, 4.5, 0.0], [0.25, 0.0, NAN]], 0.25, 1, 0.5, None),
        ([[3.0, 4.5, 0.0], [0.25, 0.0, NAN]], 0.5, 0, 0.5, None),
        ([[3.0, 4.0, NAN], [0.0, 0.0, NAN]], 9.0, 1, NAN, NAN),
    ],
)
def test_by_hand(tmp_path, other, tolerance, num, max_abs, relative):
    a = one_matrix(tmp_path / "a", [[3.0, 4.0, 0.0], [0.0, 0.0, NAN]])
    b = one_matrix(tmp_path / "b", other)
    (found,) = compare_tensors(a, b, tolerance=tolerance)
    assert (found.numel, found.num_differing) == (6, num)
    assert found.max_abs == approx(max_abs, nan_ok=True)
    assert found.equal == (num == 0)
    if relative is not None:
        assert found.relative_l2 == approx(relative, nan_ok=True)


def test_relative_l2(tmp_path):
    a = one_matrix(tmp_path / "a", [[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]])
    b = one_matrix(tmp_path / "b", [[3.0, 4.5, 0.0], [0.0, 0.0, 0.0]])
    zero = one_matrix(tmp_path / "zero", [[0.0] * 3] * 2)
    assert next(compare_tensors(a, b)).relative_l2 == approx(0.1)
    assert next(compare_tensors(zero, b)).relative_l2 == math.inf
    assert next(compare_tensors(zero, zero)).relative_l2 == 0.0


def test_live_sets(tmp_path):
    values = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    a = one_matrix(tmp_path / "a", values, live=[0, 1, 5])
    b = one_matrix(tmp_path / "b", values, live=[0, 2])
    dense = one_matrix(tmp_path / "dense", values)
    (found,) = compare_live(a, b)
    assert (found.live_a, found.live_b, found.only_a, found.only_b) == (3, 2, 2, 1)
    assert not found.equal and compare_live(a, a)[0].equal
    # A weight that is absent is 0: it differs where the other's is not.
    (tensor,) = compare_tensors(a, b)
    assert (tensor.num_differing, tensor.max_abs) == (3, 6.0)
    assert compare_live(a, dense)[0].problem == "only in A"
    assert compare_live(dense, dense) == []


def test_every_state_counts_once(folder, tmp_path):
    tensors = made.matrices()
    tensors["exp_avg", "norm.weight"] = tensors["exp_avg", "norm.weight"] + 1.0
    tensors["ewc.precision", "b.up.weight"][0, 0] += 0.5
    del tensors["ewc.precision", "embedding.weight"]
    parts = list(compare_tensors(Reader(folder), Reader(made.save(tmp_path, tensors))))
    assert len(parts) == 19
    changed = {(part.state, part.name): part for part in parts if not part.equal}
    assert set(changed) == {
        ("exp_avg", "norm.weight"),
        ("ewc.precision", "b.up.weight"),
        ("ewc.precision", "embedding.weight"),
    }
    assert changed["ewc.precision", "embedding.weight"].problem == "only in A"
    everything = total(parts, "exp_avg")
    assert everything.num_differing == 3 and everything.max_abs == approx(1.0)
    assert everything.numel == 32 + 3 + 32 + 32 + 16
    assert total(parts, "master").equal and not total(parts, "ewc.precision").equal


def test_one_tensor_of_each_is_held_at_a_time(folder):
    a, b, done = made.Counted(folder), made.Counted(folder), []
    parts = list(compare_tensors(a, b, advance=done.append))
    assert all(part.equal for part in parts)
    assert (a.num_read, a.most, b.num_read, b.most) == (19, 1, 19, 1)
    assert sum(done) == 4 * sum(part.numel for part in parts)
