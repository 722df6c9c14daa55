"""N:M groups and diagonal blocks: sums of groups, blocks by hand, messages."""

import numpy as np
import pytest

from sparsecl import seeding
from sparsecl.topology.structured import block_diag, divisors, nm


def mask_of(draw, shape, **options):
    mask = np.zeros(shape, dtype=bool)
    mask.reshape(-1)[draw(*shape, rng=seeding.stream(0), **options)] = True
    return mask


@pytest.mark.parametrize("n", [1, 2, 4])
def test_each_group_keeps_n(n):
    mask = mask_of(nm, (6, 12), rho=n / 4, m=4)
    assert (mask.reshape(6, 3, 4).sum(axis=2) == n).all()
    mask = mask_of(nm, (12, 6), rho=n / 4, m=4, axis="output")
    assert (mask.reshape(3, 4, 6).sum(axis=1) == n).all()


def test_a_group_of_the_whole_row_is_a_fixed_degree():
    assert set(mask_of(nm, (5, 12), rho=0.25, m=12).sum(axis=1)) == {3}


def test_diagonal_blocks_by_hand():
    rows = ["".join(".#"[int(c)] for c in row) for row in mask_of(block_diag, (4, 6), rho=0.5)]
    assert rows == ["###...", "###...", "...###", "...###"]


def test_a_third_is_written_with_a_few_digits():
    assert mask_of(block_diag, (6, 6), rho=0.3333).sum() == 12


@pytest.mark.parametrize(
    ("draw", "shape", "options", "words"),
    [
        (nm, (4, 16), {"rho": 0.1, "m": 16}, r"^density 0.1 .* nm.m=16 .*: 0.0625 or 0.125"),
        (nm, (4, 16), {"rho": 0.01, "m": 16}, r"nearest: 0.0625"),
        (nm, (4, 24), {"rho": 0.5, "m": 16}, r"^nm.m=16 .* input side, 24\. .*: 2, 3, 4, 6, 8"),
        (nm, (4, 16), {"rho": 0.5, "m": 16, "axis": "output"}, "output side, 4"),
        (block_diag, (8, 12), {"rho": 0.1}, r"^density 0.1: .*nearest: 0.25"),
        (block_diag, (8, 12), {"rho": 0.3}, r"nearest: 0.25 or 0.5"),
        (block_diag, (8, 12), {"rho": 1 / 3}, r"nearest: 0.25 or 0.5"),
    ],
)
def test_messages(draw, shape, options, words):
    with pytest.raises(ValueError, match=words):
        draw(*shape, rng=seeding.stream(0), **options)


def test_divisors():
    assert divisors(12) == [1, 2, 3, 4, 6, 12]
    assert divisors(1) == [1] and divisors(7) == [1, 7] and divisors(9) == [1, 3, 9]
