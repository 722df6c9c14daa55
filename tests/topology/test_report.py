"""The tables of a set of topologies, by hand."""

import numpy as np
import pytest

from sparsecl.topology.layer import LayerTopology
from sparsecl.topology.report import degree_table, group, kind_of, summarize, table


def layer(name, rows):
    mask = np.array(rows, dtype=bool)
    return LayerTopology(name, *mask.shape, np.flatnonzero(mask))


# Row degrees 2, 0 and 1, 4; column degrees 0, 1, 0, 1 and 2, 1, 1, 1: 7 live weights of 16.
FIRST = layer("layers.0.attention.q", [[0, 1, 0, 1], [0, 0, 0, 0]])
SECOND = layer("layers.1.attention.q", [[1, 0, 0, 0], [1, 1, 1, 1]])
UP = layer("layers.1.mlp.up", [[1, 0], [0, 1], [1, 1]])
MODEL = {t.name: t for t in (FIRST, SECOND, UP)}


def test_mean_and_spread_of_degrees():
    first, second, _ = summarize(MODEL)
    assert (first.row_degree_mean, first.row_degree_std) == (1.0, 1.0)
    assert (first.column_degree_mean, first.column_degree_std) == (0.5, 0.5)
    assert (second.row_degree_mean, second.row_degree_std) == (2.5, 1.5)
    assert second.column_degree_std == pytest.approx(np.std([2, 1, 1, 1]))


def test_layers_of_a_kind_are_joined():
    q, up = group(summarize(MODEL))
    assert (q.label, q.num_layers, q.shape, q.density) == ("q", 2, "2 x 4", 7 / 16)
    assert (q.row_degree_min, q.row_degree_mean, q.row_degree_max) == (0, 7 / 4, 4)
    assert (q.column_degree_min, q.column_degree_mean, q.column_degree_max) == (0, 7 / 8, 2)
    assert (q.num_isolated_rows, q.num_isolated_columns) == (1, 2)
    assert (up.label, up.num_layers, up.shape) == ("up", 1, "3 x 2")
    assert [row.label for row in group(summarize(MODEL), str)] == list(MODEL)
    (both,) = group(summarize(MODEL), lambda name: "all")
    assert (both.shape, both.density) == ("mixed", 11 / 22)


def test_a_kind_is_the_last_part_of_a_name():
    assert [kind_of(name) for name in ("layers.3.mlp.down", "head")] == ["down", "head"]


@pytest.mark.fault("N7")
def test_the_table_has_one_line_per_kind():
    lines = table(MODEL).splitlines()
    assert lines[2].split() == "q 2 2 x 4 0.43750 0 1.8 4 0 0.9 2 1 2".split()
    assert lines[3].split() == "up 1 3 x 2 0.66667 1 1.3 2 2 2.0 2 0 0".split()
    assert len(lines) == 4


def test_a_dense_model_has_no_table():
    assert table({}) == "dense: every weight is live"


def test_columns_stay_aligned_and_narrow():
    wide = layer("layers.123.attention.wide", np.ones((2, 12000)))
    lines = degree_table(group(summarize({**MODEL, "x": wide}), str)).splitlines()
    assert max(map(len, lines)) <= 100
    assert len({len(line) for line in lines[1:]}) == 1
