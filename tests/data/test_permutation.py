"""The order of an epoch is a bijection, and looks random."""

import numpy as np
import pytest

from sparsecl.data.permutation import Permutation
from sparsecl.seeding import stream


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 1000, 4096, 65537])
def test_every_element_comes_exactly_once(size):
    order = Permutation(size, stream(0, "p"))(np.arange(size))
    assert (np.sort(order) == np.arange(size)).all()


def test_a_position_does_not_depend_on_what_is_asked_with_it():
    order = Permutation(1000, stream(0, "p"))
    whole = order(np.arange(1000))
    assert [int(order(np.array([i]))[0]) for i in range(0, 1000, 97)] == whole[::97].tolist()


def test_a_large_range_needs_no_table():
    size = 10**12 + 39
    values = Permutation(size, stream(0, "p"))(np.arange(10**12, 10**12 + 5000))
    assert len(set(values.tolist())) == 5000 and 0 <= values.min() and values.max() < size


def test_streams_give_orders_of_their_own_and_of_no_pattern():
    orders = np.array([Permutation(1000, stream(s, "p"))(np.arange(1000)) for s in range(200)])
    # For random permutations: one fixed point on average, and a mean of 499.5 at each position
    # with standard error 288.7 / sqrt(200) = 20.4; six of them bound 1000 positions.
    assert 0.6 < (orders == np.arange(1000)).sum(axis=1).mean() < 1.4
    assert np.abs(orders.mean(axis=0) - 499.5).max() < 6 * 20.4
    neighbours = np.abs(np.diff(orders, axis=1)) == 1  # expected share 2 / 1000
    assert 0.001 < neighbours.mean() < 0.004


def test_an_empty_range_is_refused():
    with pytest.raises(ValueError, match="size must be >= 1"):
        Permutation(0, stream(0, "p"))
