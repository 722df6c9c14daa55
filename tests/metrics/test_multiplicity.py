"""Corrected p-values: reference vectors, the steps of the papers, and SciPy."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sparsecl.metrics.multiplicity import benjamini_hochberg, holm


def test_corrections_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert benjamini_hochberg([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.04, 0.04])
    assert holm([0.5, 0.5, 0.9]) == [1.0, 1.0, 1.0]
    assert holm([]) == benjamini_hochberg([]) == []


@pytest.mark.parametrize("correct", [holm, benjamini_hochberg])
def test_what_was_not_tested_does_not_count(correct):
    with_gaps = correct([None, 0.01, float("nan"), 0.04, 0.03])
    assert [with_gaps[0], with_gaps[2]] == [None, None]
    assert [with_gaps[1], *with_gaps[3:]] == correct([0.01, 0.04, 0.03])
    assert correct([None]) == [None]
    with pytest.raises(ValueError, match=r"\[0, 1\], got 1.5"):
        correct([0.1, 1.5])


@given(st.lists(st.sampled_from([0.0, 0.001, 0.01, 0.02, 0.03, 0.3, 1.0]), min_size=1, max_size=9))
@settings(max_examples=80)
def test_laws_of_the_corrections(p):
    by_holm, by_bh = holm(p), benjamini_hochberg(p)
    assert by_bh == pytest.approx(stats.false_discovery_control(p).tolist())
    for raw, strict, lenient in zip(p, by_holm, by_bh, strict=True):
        assert raw <= lenient + 1e-15 and lenient <= strict + 1e-15
    # Holm's steps as the paper writes them: reject while p_(k) <= alpha / (m - k + 1).
    rejected, alpha = set(), 0.05
    for step, value in enumerate(sorted(p)):
        if value > alpha / (len(p) - step):
            break
        rejected.add(value)
    assert {raw for raw, value in zip(p, by_holm, strict=True) if value <= alpha} == rejected
    # The order of the input does not matter.
    assert holm(p[::-1]) == by_holm[::-1] and benjamini_hochberg(p[::-1]) == by_bh[::-1]
