"""The law: absent weights, their gradients and moments are exactly zero, however it is trained.

A model is trained dense, pruned in the middle, and goes on with the same optimizer: its moments are
what brings pruned weights back to life.
"""

import pytest

from tests.distributed.cases import slow
from tests.distributed.pool import Pool
from tests.library import cases

TWO_RANKS = ("ddp", "fsdp2", "zero0", "zero1", "zero2", "zero3", "zero2-bf16", "zero3-bf16")
ZERO = dict.fromkeys(cases.COPIES, 0)


def test_plain_with_the_guard() -> None:
    found, audits, num_absent = cases.train("plain")
    assert num_absent > 50 and found == ZERO and audits == [0] * cases.NUM_STEPS


def test_plain_without_the_guard_weights_come_back() -> None:
    found, _, num_absent = cases.train("plain", guarded=False)
    assert found["gradient"] == 0  # the masks alone do that
    assert found["weight"] >= num_absent and found["exp_avg"] >= num_absent


@pytest.mark.dist
@pytest.mark.parametrize("how", TWO_RANKS)
def test_two_ranks_with_the_guard(how: str, pool: Pool) -> None:
    for found, audits, _ in pool.run(cases.train, 2, how):
        assert found == ZERO and audits == [0] * cases.NUM_STEPS


@pytest.mark.dist
@pytest.mark.parametrize("how", [slow(how) for how in TWO_RANKS])
def test_two_ranks_masked_before_they_are_wrapped(how: str, pool: Pool) -> None:
    for found, audits, _ in pool.run(cases.train, 2, how, True):
        assert found == ZERO and audits == [0] * cases.NUM_STEPS


@pytest.mark.dist
@pytest.mark.parametrize("how", ["ddp", "fsdp2", "zero2", "zero3"])
def test_two_ranks_without_the_guard_weights_come_back(how: str, pool: Pool) -> None:
    for found, _, num_absent in pool.run(cases.train, 2, how, False, False):
        assert found["weight"] >= num_absent and found["exp_avg"] >= num_absent
