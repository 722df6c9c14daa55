"""Aligned text, by hand."""

import pytest

from sparsecl.metrics.columns import align, column_widths

ROWS = [("arm", "runs", "loss"), ("dense", "8/8", "1.250"), ("er", "7/8", "")]


def test_columns_are_as_wide_as_their_longest_cell():
    assert column_widths(ROWS) == [5, 4, 5]
    assert align(ROWS) == ["arm    runs   loss", "dense   8/8  1.250", "er      7/8"]


def test_given_widths_and_gap():
    assert align(ROWS[:2], widths=[6, 5, 6], gap="|") == [
        "arm   | runs|  loss",
        "dense |  8/8| 1.250",
    ]


def test_a_row_of_other_length_is_no_row_of_the_table():
    with pytest.raises(ValueError):
        align([("a", "b"), ("c",)])
