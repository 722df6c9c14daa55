"""A mixture reads exactly what its phases would read, in an order that depends on the seed."""

import numpy as np

from sparsecl.data.mixture import MixedStream


class Numbers:
    """A stream whose sequence i is [base + i, base + i]."""

    def __init__(self, base):
        self.base = base

    def rows(self, indices):
        return np.stack([indices + self.base] * 2, axis=1)


def mixture(seed=0):
    return MixedStream([Numbers(0), Numbers(1000), Numbers(2000)], [3, 5, 2], seed=seed)  # type: ignore[list-item]


def test_an_epoch_holds_every_sequence_of_every_phase_once():
    rows = mixture().rows(np.arange(10))
    assert sorted(rows[:, 0]) == [0, 1, 2, 1000, 1001, 1002, 1003, 1004, 2000, 2001]
    assert rows.shape == (10, 2) and rows[:, 0].tolist() != sorted(rows[:, 0])


def test_the_next_epoch_goes_on_in_each_phase():
    rows = mixture().rows(np.arange(10, 20))
    assert sorted(rows[:, 0]) == [3, 4, 5, 1005, 1006, 1007, 1008, 1009, 2002, 2003]


def test_rows_do_not_depend_on_who_asks_for_which():
    whole = mixture().rows(np.arange(20))
    some = np.array([17, 2, 9, 10])
    assert (mixture().rows(some) == whole[some]).all()
    assert (mixture(seed=1).rows(np.arange(20)) != whole).any()
