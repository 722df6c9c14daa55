"""Reach: by hand, against matrix powers, against published numbers."""

import numpy as np
import pytest

from sparsecl.topology import reach
from sparsecl.topology.er import er_fixed
from sparsecl.topology.layer import LayerShape, LayerTopology
from sparsecl.topology.reach import (
    ReachCurve,
    block_reach,
    choose_sources,
    reach_table,
    stacked_reach,
)


def random_mask(out_features, in_features, rho, rng):
    edges = er_fixed(out_features, in_features, rho=rho, rng=rng)
    return LayerTopology("er", out_features, in_features, edges).mask()


def model(masks, width, hidden):
    """(topologies, shapes) of blocks given as dicts kind -> mask; a kind left out is dense."""
    topologies, shapes = {}, []
    for index, block in enumerate(masks):
        for kind in ("q", "k", "v", "o", "up", "down"):
            rows = hidden if kind == "up" else width
            columns = hidden if kind == "down" else width
            name = f"layers.{index}.{kind}"
            shapes.append(LayerShape(name, kind, rows, columns))
            if kind in block:
                edges = np.flatnonzero(block[kind])
                topologies[name] = LayerTopology(name, rows, columns, edges)
    return topologies, shapes


def test_stacked_by_hand():
    # Unit 0 feeds 1, 1 feeds 2, 2 and 3 feed 3: four live weights of 16.
    step = np.zeros((4, 4), dtype=bool)
    step[[1, 2, 3, 3], [0, 1, 2, 3]] = True
    curve = stacked_reach([step, step, step], sources=[0, 3])
    assert (curve.num_sources, curve.num_units, curve.sampled) == (2, 4, True)
    assert curve.mean == (0.25, 0.25, 0.25)
    fork = step | np.eye(4, dtype=bool)
    curve = stacked_reach([fork, fork], sources=[0, 3])
    assert curve.maximum == (0.5, 0.75)  # unit 0: {0, 1}, then {0, 1, 2}
    assert curve.minimum == (0.25, 0.25)  # unit 3: itself


def test_a_block_by_hand():
    # Width 4, hidden 4. Attention moves unit u to u + 1; the feed-forward part moves it one more,
    # and feeds nothing into unit 3.
    turn = np.roll(np.eye(4, dtype=bool), 1, axis=0)
    same = np.eye(4, dtype=bool)
    stop = same.copy()
    stop[3] = False
    block = {"v": same, "o": turn, "up": turn, "down": stop}
    both = block_reach(*model([block, block], 4, 4))
    # Without residual paths u goes to u + 2, except 1 -> 3, which is cut.
    assert both.without_residual.maximum == (0.25, 0.25)
    assert both.without_residual.mean == (3 / 16, 2 / 16)  # then 0 -> 2 -> 0, 2 -> 0 -> 2, 3 -> 1
    # With them u reaches {u, u + 1}, then {u, u + 1, u + 2}, but nothing enters 3 from the last:
    # 1 -> {1, 2}, 2 -> {2, 3, 0}, and so on.
    assert both.with_residual.mean[0] == np.mean([3, 2, 3, 3]) / 4
    assert both.with_residual.minimum[0] == 0.5


def test_q_and_k_do_not_matter():
    rng = np.random.default_rng(0)
    block = {kind: random_mask(8, 8, 0.2, rng) for kind in ("v", "o", "up", "down")}
    nothing = {kind: np.zeros((8, 8), dtype=bool) for kind in ("q", "k")}
    assert block_reach(*model([block], 8, 8)) == block_reach(*model([{**block, **nothing}], 8, 8))


def test_a_dense_layer_reaches_everything():
    dense = block_reach({}, model([{}, {}], 4, 8)[1])
    assert dense.without_residual.minimum == dense.with_residual.minimum == (1.0, 1.0)
    # Dense but for `down`, which feeds unit 0 alone.
    down = np.zeros((4, 8), dtype=bool)
    down[0, 3] = True
    topologies, shapes = model([{"down": down}], 4, 8)
    both = block_reach(topologies, shapes, sources=[2])
    assert both.without_residual.mean == (0.25,)
    assert both.with_residual.mean == (1.0,)


@pytest.mark.parametrize(("width", "hidden"), [(5, 7), (67, 130)])
def test_equals_boolean_matrix_products(monkeypatch, width, hidden):
    monkeypatch.setattr(reach, "CHUNK_CELLS", 3 * width)  # a few rows at once, the last part short
    rng = np.random.default_rng(width)
    sizes = {"v": (width, width), "o": (width, width)}
    sizes |= {"up": (hidden, width), "down": (width, hidden)}
    blocks = [{k: random_mask(*size, 0.06, rng) for k, size in sizes.items()} for _ in range(3)]
    both = block_reach(*model(blocks, width, hidden))
    for curve, keep in ((both.without_residual, 0), (both.with_residual, 1)):
        product = np.eye(width, dtype=int)
        for step, b in enumerate(blocks):
            for inner, outer in (("v", "o"), ("up", "down")):
                moved = b[outer].astype(int) @ b[inner].astype(int) @ product
                product = ((moved + keep * product) > 0).astype(int)
            shares = product.mean(axis=0)
            found = (curve.mean[step], curve.minimum[step], curve.maximum[step])
            assert found == pytest.approx((shares.mean(), shares.min(), shares.max()))


def test_residual_paths_only_add():
    rng = np.random.default_rng(3)
    blocks = [{kind: random_mask(40, 40, 0.05, rng) for kind in ("v", "o", "up", "down")}] * 4
    both = block_reach(*model(blocks, 40, 40))
    assert np.all(np.diff(both.with_residual.mean) >= 0)
    assert np.all(np.array(both.with_residual.mean) >= both.without_residual.mean)


def test_a_wide_stream_is_sampled():
    sample = choose_sources(1000, seed=0)
    assert len(set(sample.tolist())) == sample.size == reach.MAX_SOURCES
    assert (sample == choose_sources(1000, seed=0)).all()
    assert (sample != choose_sources(1000, seed=1)).any()
    assert (choose_sources(256, seed=0) == np.arange(256)).all()
    curve = stacked_reach([np.eye(1000, dtype=bool)])
    assert curve.sampled and curve.mean == curve.maximum == (0.001,)


def test_the_table_ends_where_nothing_changes():
    def curve(*shares):
        return ReachCurve(shares, shares, shares, num_sources=1, num_units=4)

    lines = reach_table({"a": curve(0.25, 0.5, 1.0, 1.0, 1.0), "b": curve(0.5, 0.5)}).splitlines()
    assert lines[0].split() == ["steps", "a", "b"]
    cells = [line.split() for line in lines[2:5]]
    assert cells[0] == ["1", "0.2500", "0.250", "0.250", "0.5000", "0.500", "0.500"]
    assert cells[2] == ["3", "1.0000", "1.000", "1.000"]  # b has two steps only
    assert lines[5:] == ["and the same up to 5"]
    assert len(reach_table({"a": curve(0.25, 0.5)}).splitlines()) == 4


# A published draw follows one unit, whose own number of edges is the first entry; so do we, and
# average over the units that have that many.
@pytest.mark.parametrize(
    ("rho", "shares"),
    [(0.01, (0.012, 0.076, 0.478, 0.982, 1.0, 1.0)), (0.05, (0.055, 0.868, 1.0))],
)
def test_reference_values_of_random_masks(rho, shares):
    rng = np.random.default_rng(0)
    masks = [random_mask(768, 768, rho, rng) for _ in shares]
    alike = np.flatnonzero(masks[0].sum(axis=0) == round(768 * shares[0]))
    curve = stacked_reach(masks, sources=alike.tolist())
    assert curve.mean == pytest.approx(shares, abs=0.03)


def test_a_gated_form_with_grouped_heads_by_hand():
    # Width 4, two heads of 2 for queries, one for values; three hidden units.
    shapes = [
        LayerShape("0.q", "q", 4, 4, head_width=2),
        LayerShape("0.k", "k", 2, 4, head_width=2),
        LayerShape("0.v", "v", 2, 4, head_width=2),
        LayerShape("0.o", "o", 4, 4),
        LayerShape("0.gate", "gate", 3, 4),
        LayerShape("0.up", "up", 3, 4),
        LayerShape("0.down", "down", 4, 3),
    ]
    value = np.zeros((2, 4), dtype=bool)
    value[0, 0] = True  # unit 0 is the first value, which both heads read: columns 0 and 2 of o
    out = np.zeros((4, 4), dtype=bool)
    out[1, 2] = True
    gate, up = np.zeros((2, 3, 4), dtype=bool)
    gate[0, 1], up[1, 1] = True, True
    down = np.zeros((4, 3), dtype=bool)
    down[2, 0], down[3, 1] = True, True
    masks = {"v": value, "o": out, "gate": gate, "up": up, "down": down}
    topologies = {
        f"0.{kind}": LayerTopology.from_mask(f"0.{kind}", mask) for kind, mask in masks.items()
    }
    found = block_reach(topologies, shapes, sources=[0, 3])
    # 0 -> o 1 -> hidden 0 by the gate and 1 by `up` -> 2 and 3; unit 3 goes nowhere.
    assert found.without_residual.maximum == (0.5,)
    assert found.without_residual.minimum == (0.0,)
    assert found.with_residual.maximum == (1.0,)
