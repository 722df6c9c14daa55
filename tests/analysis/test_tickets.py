"""Overlaps and distances of masks by hand, and on checkpoints of a tiny model."""

import json

import numpy as np
import pytest
import torch

from sparsecl.analysis.tickets import Shared, mask_distances, overlaps
from sparsecl.checkpoint.manifest import ParameterEntry, Piece
from sparsecl.checkpoint.publish import publish
from sparsecl.errors import UserError
from sparsecl.model.config import ModelConfig
from sparsecl.model.shapes import layer_shapes
from sparsecl.programs import tickets as tool

MODEL = {"preset": None, "layers": 1, "width": 4, "heads": 2, "context": 8}
SHAPES = layer_shapes(ModelConfig(**MODEL).resolved())


def save(root, step, weights):
    """A dense checkpoint of all masked matrices; `weights` by layer name, else zero."""
    entries, tensors, pieces = {}, {}, []
    for shape in SHAPES:
        name, size = f"{shape.name}.weight", (shape.out_features, shape.in_features)
        value = torch.from_numpy(weights.get(shape.name, np.zeros(size, np.float32)).copy())
        entries[name] = ParameterEntry(size, shape.split_dim)
        pieces.append(Piece("rank_0.safetensors", "master", name, 0, 0, value.numel()))
        tensors[pieces[-1].key] = value.reshape(-1)
    state = {"config": {"model": MODEL}}
    root.parent.mkdir(exist_ok=True)
    return publish(root, step, tensors, pieces, entries, state, keep=99)


def q(*cells):
    """Weights of the first matrix, 4 x 4, with ones at these cells."""
    found = np.zeros((4, 4), dtype=np.float32)
    for row, column in cells:
        found[row, column] = 1.0
    return {SHAPES[0].name: found}


def test_two_masks_by_hand():
    one = np.array([[1, 1, 0, 0], [1, 0, 0, 0]], bool)
    two = np.array([[1, 0, 0, 0], [1, 1, 0, 0]], bool)
    shared = Shared.of(one, two)
    assert (shared.first, shared.second, shared.both, shared.chance) == (3, 3, 2, 9 / 8)
    assert shared.ratio == pytest.approx(16 / 9) and Shared().ratio is None
    assert (shared + shared).chance == 9 / 4 and (shared + shared).ratio == shared.ratio


@pytest.fixture
def runs(tmp_path):
    start = save(tmp_path / "start" / "checkpoints", 1, q((3, 3)))
    moved = {
        "code": q((3, 3), (0, 0), (0, 1)),
        "math": q((3, 3), (0, 0), (1, 1)),
        "still": q((3, 3)),
    }
    for name, weights in moved.items():
        save(tmp_path / name / "checkpoints", 2, weights)
    return {name: tmp_path / name for name in moved}, {name: start for name in moved}


def test_runs_share_what_both_have_moved(runs):
    found = {pair.names: pair for pair in overlaps(*runs, above=0.5)}
    both = found["code", "math"]
    assert (both.weights.first, both.weights.second, both.weights.both) == (2, 2, 1)
    assert both.weights.chance == 4 / 16 and both.weights.cells == sum(s.num_cells for s in SHAPES)
    assert both.layers[SHAPES[0].name].ratio == 4.0 and both.layers[SHAPES[1].name].first == 0
    # A row that moved in one of four weights has moved by a half: not above it.
    assert both.rows.first == 1 and both.rows.second == 0
    still = found["code", "still"]
    assert (still.weights.second, still.weights.both, still.weights.ratio) == (0, 0, None)


def test_a_share_takes_the_furthest_of_all_matrices_and_dimensions_of_each(runs):
    share = 2 / sum(shape.num_cells for shape in SHAPES)
    (both, *_) = overlaps(*runs, share=share)
    assert (both.weights.first, both.weights.second, both.weights.both) == (2, 2, 1)
    assert both.rows.first == both.rows.second == len(SHAPES)  # one row of each matrix at least
    other = runs[0] | {"code": runs[0]["code"] / "none"}
    with pytest.raises(UserError, match="none"):
        overlaps(other, runs[1], share=share)


def test_a_mask_that_settles_gives_an_early_ticket(tmp_path):
    rng = np.random.default_rng(0)
    names = {s.name: (s.out_features, s.in_features) for s in SHAPES}
    end = {name: rng.standard_normal(size).astype(np.float32) for name, size in names.items()}
    paths = []
    for step in range(8):
        weights = end if step else {n: rng.standard_normal(v.shape).astype(np.float32)
                                    for n, v in end.items()}  # fmt: skip
        paths.append(save(tmp_path / "kept", step, weights))
    found = mask_distances(paths, density=0.5)
    assert [d.step for d in found] == list(range(1, 8))
    assert found[0].distance == pytest.approx(0.5, abs=0.15)
    assert [d.distance for d in found[1:]] == [0.0] * 6
    # The first distance is among the last five up to step 5.
    assert [d.early for d in found] == [False] * 5 + [True] * 2


def test_the_program_prints_and_writes(runs, tmp_path, capsys):
    paths, out = [str(path) for path in runs[0].values()], tmp_path / "out.json"
    since = ["--since", str(tmp_path / "start")]
    assert tool.main(["overlap", *paths, *since, "--above", "0", "--json", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == [*"code and math 2, 2 1 0.2 4.00 2.00 2.00".split()]
    pair = json.loads(out.read_text())["pairs"][0]
    assert pair["names"] == ["code", "math"] and pair["weights"]["ratio"] == 4.0
    assert tool.main(["overlap", *paths]) == 66
    assert "has no beginning. Give --since" in capsys.readouterr().err
    assert tool.main(["overlap", paths[0], str(tmp_path / "none")]) == 66
    assert "none: no such folder" in capsys.readouterr().err
    assert tool.main(["overlap", paths[0], *since]) == 64
    assert tool.main(["overlap", *paths, "--share", "5"]) == 64
    capsys.readouterr()

    assert tool.main(["early", paths[0], "--density", "0.1"]) == 66
    assert "has 1 checkpoints, and a distance needs two" in capsys.readouterr().err
    save(runs[0]["code"] / "kept", 1, q((0, 0)))
    assert tool.main(["early", paths[0], "--density", "0.02", "--json", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "no early-bird ticket yet"
    assert [d["step"] for d in json.loads(out.read_text())["distances"]] == [2]
