"""What the whole pipeline says of each planted world, beside its truth."""

import html

import pytest

from sparsecl.experiments.findings.frontier import frontier_text
from sparsecl.experiments.findings.study_table import study_table
from sparsecl.experiments.report import answer, results
from tests.experiments.gallery.pipeline import rows, untuned
from tests.experiments.gallery.worlds import WORLDS, Crossing, Rate


def holds(test, truth):
    return test.t.low <= truth <= test.t.high


def found_lines(one):
    """Headline, sentences, cautions."""
    head = answer.headline(one.study, one.comparison)
    cautions = answer.cautions(one.study, one.comparison, one.trends)
    return head, answer.sentences(one.study, one.comparison), cautions


def test_without_an_effect_nothing_is_told(reading):
    one = reading("NoEffect")
    head, (sentence,), cautions = found_lines(one)
    assert one.taken == {"dense": 0.002, "sparse": 0.002}
    assert head == "No planned contrast on F_last reached p <= 0.05 after Holm's correction."
    assert sentence.endswith("within the margin of 0.05 (TOST): equivalent within 0.05.")
    assert cautions == []
    assert holds(one.equal_loss.test, 0.0)
    assert all(effect.interval.low < 0 < effect.interval.high for effect in one.trends.orders)


def test_under_noise_no_effect_is_not_shown_and_not_denied(reading):
    one = reading("Noisy")
    head, (sentence,), _ = found_lines(one)
    assert head.startswith("No planned contrast")
    assert "not within the margin of 0.05 (TOST): difference not shown. Such a study" in sentence
    assert "equivalent" not in sentence
    test = one.equal_loss.test
    assert test is None or holds(test, 0.0)


def test_an_effect_of_topology_is_found_at_the_tuned_rates_and_at_equal_learned_loss(reading):
    one = reading("Topology")
    head, (sentence,), _ = found_lines(one)
    assert head.endswith("after Holm's correction: sparse better than dense.")
    assert sentence.endswith(": better.")
    assert one.primary.significant and holds(one.primary.test, -0.3)
    # The best rate of the final loss is the same; the bias of a spline is below 0.002 nats.
    assert one.equal_loss.adjusted <= 0.05 and one.equal_loss.test.t.high < 0
    assert one.equal_loss.test.mean == pytest.approx(-0.3, abs=0.02)


def test_an_effect_of_the_rate_is_told_as_one(reading, tmp_path):
    one = reading("Rate")
    assert one.taken == {"dense": 0.002, "sparse": 0.008}
    assert not one.primary.significant and holds(one.primary.test, 0.0)
    assert holds(one.equal_loss.test, 0.0) and one.equal_loss.adjusted > 0.05
    at_one = one.over_rates("one rate")
    assert len(at_one) == 6
    for each in at_one:  # 2 octaves of 0.15 nats
        assert each.adjusted <= 0.05 and holds(each.test, -0.3) and each.test.t.high < 0
    (line,) = frontier_text(one.trends.family_contrasts)
    assert line.startswith("sparse minus dense, F_last at equal learned loss: ")
    assert line in " ".join(study_table(one.study).split())
    assert f"<li>{line}</li>" in one.page and "<td>at one rate</td>" in one.page
    # Without a tuning the study can only see the rate, and its report says that.
    blind = untuned(Rate(), tmp_path)
    assert blind.primary.significant and holds(blind.primary.test, -0.3)
    warning = "what is said of arms at one rate each may be an effect of the rate."
    assert warning in blind.page and warning not in one.page


def test_saturation_is_not_taken_for_sparsity(reading):
    """The frontiers differ as they do for topology: the control of as many weights decides."""
    one = reading("Saturation")
    live = {arm.name: arm.live for arm in one.study.plan.arms}
    assert live["sparse.equal_parameters"] == pytest.approx(live["sparse"], rel=0.01)
    assert live["dense"] == 4 * live["sparse"]
    _, _, cautions = found_lines(one)
    assert one.primary.significant and holds(one.primary.test, 0.3)
    assert one.equal_loss.test.t.low > 0
    assert not one.control.significant and holds(one.control.test, 0.0)
    (said,) = cautions
    assert said.startswith("Control (exploratory): sparse minus sparse.equal_parameters, F_last: ")
    assert said.endswith("equivalent within 0.05.")


def test_a_crossover_is_told_where_it_is(reading):
    one = reading("Crossing")
    (found,) = one.trends.crossovers
    assert found.result.round == Crossing.at
    low, high = found.result.interval
    assert low <= Crossing.at <= high <= low + 1
    (row,) = rows(results.crossover_table(one.study, one.trends))
    assert (row["round"], row["low"], row["high"]) == tuple(map(str, (Crossing.at, low, high)))


@pytest.mark.parametrize("name", [name for name in WORLDS if name != "Crossing"])
def test_no_crossover_is_told_where_there_is_none(reading, name):
    for found in reading(name).trends.crossovers:
        assert found.result.why is None and found.result.round is None


def test_an_effect_that_hangs_on_the_order_is_told_by_order(reading):
    one = reading("Orders")
    forth, back, whole = (e for e in one.trends.orders if e.measure == "F_last")
    assert (forth.order, back.order, whole.order) == ("forth", "back", "")
    assert forth.interval.high < 0 < back.interval.low
    assert forth.interval.low <= -0.2 <= forth.interval.high
    assert back.interval.low <= 0.2 <= back.interval.high
    assert whole.interval.low < -0.05 and whole.interval.high > 0.05  # orders are drawn too
    # The mean over the orders is near 0 and told as no difference, yet not without a warning.
    head, _, (said,) = found_lines(one)
    assert head.startswith("No planned contrast") and not one.primary.significant
    assert said.startswith("sparse minus dense, F_last, has opposite signs in the orders")
    assert said in one.page
    table = rows(results.orders_table(one.study, one.trends))
    ends = {r["order"]: (float(r["low"]), float(r["high"])) for r in table[:3]}
    assert ends["forth"][1] < 0 < ends["back"][0] and ends["all"][0] < 0 < ends["all"][1]


@pytest.mark.parametrize("name", [name for name in WORLDS if name != "Orders"])
def test_no_order_is_blamed_elsewhere(reading, name):
    assert not any("opposite signs" in line for line in found_lines(reading(name))[2])


@pytest.mark.parametrize("name", WORLDS)
def test_the_answer_stands_on_the_page(reading, name):
    one = reading(name)
    head, sentences, cautions = found_lines(one)
    for line in (head, *sentences, *cautions):
        assert line in html.unescape(one.page)
