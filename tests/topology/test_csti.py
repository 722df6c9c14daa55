"""CSTI by hand: which features are linked."""

import numpy as np
import pytest
import torch

import sparsecl
from sparsecl.errors import UserError

# Features 0 and 1 rise together (r = 1), 2 falls with them (r = -0.6), 3 never changes.
ROWS = np.array([[0.0, 1.0, 3.0, 7.0], [1.0, 3.0, 1.0, 7.0], [2.0, 5.0, 2.0, 7.0]])
FEATURES = np.concatenate([ROWS, ROWS[::-1]])


def test_by_hand():
    """r(0, 2) = r(1, 2) = -0.5: of 6 equal cells the first."""
    found = sparsecl.draw_csti(FEATURES, 4, density=4 / 16).mask()
    r = np.nan_to_num(np.corrcoef(FEATURES[:, :3].T)) - np.eye(3)
    assert np.abs(r[0]).tolist() == pytest.approx([0.0, 1.0, 0.5])
    assert np.argwhere(found).tolist() == [[0, 1], [0, 2], [1, 0], [1, 2]]


def test_no_feature_is_linked_to_itself_and_no_constant_at_all():
    found = sparsecl.draw_csti(FEATURES, 4, density=6 / 16).mask()
    assert found.sum() == 6 and not found.diagonal().any()
    assert not found[3].any() and not found[:, 3].any()


def test_twice_as_many_units_are_the_same_graph_twice():
    one = sparsecl.draw_csti(FEATURES, 4, density=2 / 16).mask()
    two = sparsecl.draw_csti(FEATURES, 8, density=2 / 16).mask()
    assert (two == np.concatenate([one, one])).all() and two.sum() == 4


def test_it_is_a_mask_for_a_linear_layer():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(500, 4)) @ rng.normal(size=(4, 20))
    topology = sparsecl.draw_csti(torch.from_numpy(hidden).float(), 40, density=0.1)
    layer = torch.nn.Linear(20, 40)
    sparsecl.mask_linear(layer, topology.mask())
    assert int((layer.weight != 0).sum()) == topology.num_live == 80
    size = np.abs(np.corrcoef(hidden.T)) - np.eye(20)
    assert size[topology.mask()[:20]].min() >= size[~topology.mask()[:20]].max() - 1e-6


@pytest.mark.parametrize(
    ("features", "outputs", "density", "words"),
    [
        (FEATURES, 6, 0.1, "out_features=6 is no multiple of the 4 features"),
        (FEATURES, 4, 0.5, "8 weights are to live, and only 6 cells"),
        (FEATURES[:1], 4, 0.1, "2 samples"),
        (FEATURES[0], 4, 0.1, r"features \[N, I\]"),
        (FEATURES, 4, 0.0, "density"),
        (np.array([[np.nan], [1.0]]), 1, 0.1, "not finite"),
        ("text", 4, 0.1, "numbers"),
    ],
)
def test_what_has_no_such_graph(features, outputs, density, words):
    with pytest.raises(UserError, match=words):
        sparsecl.draw_csti(features, outputs, density=density)
