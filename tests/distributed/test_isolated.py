"""Frozen graphs or columns: told which domain it is, nothing is forgotten, to the last bit."""

import pytest

from tests.distributed import cases
from tests.distributed.test_packnet import assert_nothing_is_forgotten, rolled_back_with, train

pytestmark = pytest.mark.dist

# The third phase takes domain a up again.
ORDER = (*cases.TWO_DOMAINS, "phases.order=[a, b, a]")
DST_CL = "methods.dst_cl={every: 3}"
AFAF = "methods.afaf={every: 3, links: 0.5}"
PROGRESSIVE = "methods.progressive={rank: 4}"
BF16 = "precision=bf16"


@pytest.mark.parametrize(
    ("method", "stage", "tp", "dp", "extra"),
    [
        (DST_CL, "zero2", 2, 1, (BF16,)),
        cases.slow(DST_CL, "zero0", 1, 1, ()),
        cases.slow(DST_CL, "zero3", 1, 2, (BF16,)),
        cases.slow(AFAF, "zero3", 1, 2, (BF16,)),
        cases.slow(PROGRESSIVE, "zero0", 1, 1, ("topology.kind=dense",)),
        (PROGRESSIVE, "zero2", 2, 1, (BF16,)),
        cases.slow(PROGRESSIVE, "zero3", 1, 2, (BF16, "topology.storage=packed")),
    ],
)
def test_nothing_is_forgotten_to_the_last_bit(
    pool, shared_cache, tmp_path, method, stage, tp, dp, extra
):
    layout = (f"parallel.tensor={tp}", f"batch.micro={8 // dp // 2}")
    overrides = (*ORDER, method, *extra, *layout)
    ranks = pool.run(train, tp * dp, str(shared_cache), stage, overrides, str(tmp_path))
    for found, nonzero, _ in ranks:
        assert nonzero == 0
        assert_nothing_is_forgotten(found, begins=-1 if method == PROGRESSIVE else 0)


@pytest.mark.slow
@pytest.mark.parametrize("method", [DST_CL])
def test_a_rollback_gives_back_what_a_phase_has_frozen(pool, shared_cache, tmp_path, method):
    """From the second phase to the border before it."""
    overrides = (*ORDER, method, "batch.micro=2", "checkpoint={every: 4, keep: 40}")
    run = rolled_back_with, 2, str(shared_cache), overrides, str(tmp_path), 11
    back, found, nonzero = pool.run(*run)[0]
    assert back == [10] and nonzero == 0
    assert_nothing_is_forgotten(found)
