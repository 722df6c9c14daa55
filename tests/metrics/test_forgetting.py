"""Forgetting and transfer: by hand, against plain loops, and the laws they obey."""

import numpy as np
import pytest

from sparsecl.metrics import forgetting, transfer

# Reference vector: three domains, one phase each; row 0 is before training.
REFERENCE = [[4, 4, 4], [2, 3.9, 4], [2.5, 2, 3.8], [3, 2.4, 2]]
ORDER = (0, 1, 2)


def test_reference_vector():
    assert forgetting.f_last(REFERENCE, ORDER) == pytest.approx(0.7, abs=1e-12)
    assert transfer.bwt(REFERENCE, ORDER) == pytest.approx(-0.7, abs=1e-12)
    assert forgetting.f_seed(REFERENCE, ORDER) == pytest.approx((1 + 0.4 + 0) / 3, abs=1e-12)
    assert transfer.fwt(REFERENCE, ORDER) == pytest.approx(0.15, abs=1e-12)
    assert forgetting.normalised(REFERENCE, ORDER) == pytest.approx([0.5, 0.4 / 1.9, 0], abs=1e-12)
    assert transfer.acc(REFERENCE, ORDER) == pytest.approx(7.4 / 3, abs=1e-12)
    # Rows 1..2 for domain 0 and row 2 for domain 1 hold the best earlier losses: 2 and 2.
    assert forgetting.f_std(REFERENCE, ORDER) == pytest.approx(0.7, abs=1e-12)
    assert forgetting.per_domain(REFERENCE, ORDER) == pytest.approx([1.0, 0.4, 0.0], abs=1e-12)
    assert forgetting.mean_normalised(REFERENCE, ORDER) == pytest.approx((0.5 + 0.4 / 1.9) / 2)


def test_two_domains_by_hand():
    # Domain 0 goes 5 -> 2 -> 3: one nat of three learned is lost. Domain 1 goes 5 -> 4 -> 1.
    loss = [[5, 5], [2, 4], [3, 1]]
    assert forgetting.f_last(loss, (0, 1)) == 1.0
    assert forgetting.f_std(loss, (0, 1)) == 1.0
    assert forgetting.f_seed(loss, (0, 1)) == 0.5
    assert transfer.bwt(loss, (0, 1)) == -1.0
    assert transfer.fwt(loss, (0, 1)) == 1.0
    assert forgetting.normalised(loss, (0, 1)) == [pytest.approx(1 / 3), 0.0]
    assert transfer.average_seen(loss, (0, 1)) == [None, 2.0, 2.0]
    assert transfer.average_all(loss, (0, 1)) == [5.0, 3.0, 2.0]


def test_the_definitions_part_where_they_should():
    # Domain 0 is best in row 2 (1.5), after its own training (2.0): F_std sees it, F_last not.
    # Domain 1 is best in row 1 (0.5), before its training: only F_seed counts that.
    loss = [[4, 4, 4], [2.0, 0.5, 4], [1.5, 1.0, 4], [2.5, 1.5, 3]]
    assert forgetting.f_last(loss, ORDER) == pytest.approx((0.5 + 0.5) / 2)
    assert forgetting.f_std(loss, ORDER) == pytest.approx((1.0 + 0.5) / 2)
    assert forgetting.f_seed(loss, ORDER) == pytest.approx((1.0 + 1.0 + 0.0) / 3)


def test_backward_improvement_is_negative_forgetting_except_in_f_seed():
    loss = [[4, 4], [3, 4], [2, 3]]
    assert forgetting.f_last(loss, (0, 1)) == -1.0
    assert forgetting.f_std(loss, (0, 1)) == -1.0
    assert forgetting.f_seed(loss, (0, 1)) == 0.0
    assert forgetting.normalised(loss, (0, 1))[0] == -1.0


def test_a_revisited_domain_counts_from_its_last_phase():
    # order 0, 1, 0: domain 0 is retaught at the end, so only domain 1 was exposed.
    loss = [[5, 5], [2, 4], [4, 1], [2.5, 3]]
    order = (0, 1, 0)
    assert forgetting.f_last(loss, order) == 2.0
    assert forgetting.per_domain(loss, order) == [0.0, 2.0]
    # All that was ever learned about domain 0: from 5 before its first phase to 2.5.
    assert forgetting.normalised(loss, order) == [0.0, pytest.approx(2 / 3)]
    # Forward transfer looks at first phases only: domain 1 had 4 instead of 5.
    assert transfer.fwt(loss, order) == 1.0
    assert transfer.average_seen(loss, order)[3] == pytest.approx(2.75)


def test_a_domain_that_is_never_trained_is_left_out():
    loss = [[5, 5, 9], [2, 4, 9], [3, 1, 1]]
    assert forgetting.f_last(loss, (0, 1)) == 1.0
    assert forgetting.f_seed(loss, (0, 1)) == 0.5
    assert forgetting.per_domain(loss, (0, 1))[2] is None
    assert forgetting.normalised(loss, (0, 1))[2] is None
    # A phase of a domain that has no column (-1) still separates the others.
    assert forgetting.f_last([[5.0], [2.0], [3.0]], (0, -1)) == 1.0


@pytest.mark.parametrize(
    ("before", "after", "share"),
    [
        (4.0, 3.9901, None),  # learned 0.0099 nats: below the guard
        (4.0, 4.5, None),  # training made it worse
        (float("nan"), 2.0, None),  # row 0 was not measured
        (4.0, 3.0, 0.5),
    ],
)
def test_nf_guards(before, after, share):
    loss = [[before, 4], [after, 4], [after + 0.5, 3]]
    assert forgetting.normalised(loss, (0, 1))[0] == share
    assert forgetting.mean_normalised(loss, (0, 1)) == share


def test_undefined_is_none_never_nan():
    one_phase = [[4.0], [2.0]]
    for figure in (forgetting.f_last, forgetting.f_std, transfer.bwt, transfer.fwt):
        assert figure(one_phase, (0,)) is None
    assert forgetting.f_seed(one_phase, (0,)) == 0.0
    untrained = [[4.0, 4.0]]
    for figure in (forgetting.f_last, forgetting.f_seed, transfer.acc):
        assert figure(untrained, ()) is None
    diverged = [[4, 4], [2, 4], [float("nan"), 3]]
    assert forgetting.f_last(diverged, (0, 1)) is None
    assert forgetting.per_domain(diverged, (0, 1)) == [None, 0.0]


def test_no_negative_zero():
    assert str(transfer.bwt([[4, 4], [2, 4], [2, 2]], (0, 1))) == "0.0"


def test_a_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="one row more"):
        forgetting.f_last([[4, 4], [2, 4]], (0, 1))
    with pytest.raises(ValueError, match="names column 2 of 2"):
        forgetting.f_last([[4, 4], [2, 4]], (2,))


def loops(loss, num_domains):
    """The formulas for one phase per domain, in order, written as plain loops."""
    T = num_domains
    f_last = sum(loss[T][i] - loss[i + 1][i] for i in range(T - 1)) / (T - 1)
    f_std = sum(max(loss[T][i] - loss[j][i] for j in range(i + 1, T)) for i in range(T - 1)) / (
        T - 1
    )
    f_seed = sum(max(loss[T][i] - loss[j][i] for j in range(1, T + 1)) for i in range(T)) / T
    fwt = sum(loss[0][i] - loss[i][i] for i in range(1, T)) / (T - 1)
    acc = sum(loss[T][i] for i in range(T)) / T
    return f_last, f_std, f_seed, fwt, acc


@pytest.mark.parametrize("seed", range(30))
def test_random_matrices_against_loops(seed):
    rng = np.random.default_rng(seed)
    num_domains = int(rng.integers(2, 9))
    loss = rng.uniform(0, 9, (num_domains + 1, num_domains))
    order = tuple(range(num_domains))
    figures = (
        forgetting.f_last(loss, order),
        forgetting.f_std(loss, order),
        forgetting.f_seed(loss, order),
        transfer.fwt(loss, order),
        transfer.acc(loss, order),
    )
    assert figures == pytest.approx(loops(loss.tolist(), num_domains), rel=1e-12)


@pytest.mark.parametrize("seed", range(30))
def test_laws_on_random_streams(seed):
    rng = np.random.default_rng(seed)
    num_domains, num_phases = int(rng.integers(2, 6)), int(rng.integers(2, 9))
    order = tuple(rng.integers(0, num_domains, num_phases).tolist())
    loss = rng.uniform(0, 9, (num_phases + 1, num_domains))
    last = forgetting.f_last(loss, order)
    seed_figure = forgetting.f_seed(loss, order)
    assert seed_figure is not None and seed_figure >= 0
    if last is None:
        assert len(set(order)) == 1
        return
    assert transfer.bwt(loss, order) == -last
    standard = forgetting.f_std(loss, order)
    assert standard is not None and standard >= last - 1e-12
    # The names of the columns do not matter: permuting them permutes results and nothing else.
    permutation = rng.permutation(num_domains)
    place = np.argsort(permutation)
    moved, moved_order = loss[:, permutation], tuple(int(place[i]) for i in order)
    for figure in (forgetting.f_last, forgetting.f_std, forgetting.f_seed, transfer.fwt):
        assert figure(moved, moved_order) == pytest.approx(figure(loss, order), rel=1e-12)
    for listed in (forgetting.per_domain, forgetting.normalised):
        values = listed(loss, order)
        assert listed(moved, moved_order) == [values[i] for i in permutation]
    # A constant shift of a column (a harder text) changes no difference.
    shifted = loss + rng.uniform(0, 5, num_domains)
    assert forgetting.f_last(shifted, order) == pytest.approx(last, abs=1e-9)
