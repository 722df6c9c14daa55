"""Planted effects are found, planted nulls are not, and losing runs never helps."""

import itertools
from dataclasses import replace
from math import log10

import numpy as np
import pytest

from sparsecl.experiments.findings.collect import collect
from sparsecl.experiments.findings.compare import compare
from sparsecl.experiments.findings.curves import (
    domain_curve,
    mean_matrix,
    plasticity_curve,
    round_curve,
)
from sparsecl.experiments.findings.trends import trends
from sparsecl.experiments.report import answer
from sparsecl.experiments.study.study_plan import AnalysisConfig, ContrastConfig
from sparsecl.metrics.bootstrap import t_interval
from sparsecl.metrics.significance import permutation
from tests.experiments.fake_study import DOMAINS, FakeArm, last_forgetting, scores, write_study

DENSE = FakeArm(name="dense", kind="dense", density=1.0)
BETTER, SAME = FakeArm(name="better", forgets=0.2), FakeArm(name="same", forgets=0.5)


def made(tmp_path, arms, **changes):
    return collect(write_study(tmp_path / "study", arms, **changes))


def sign_flip_by_hand(differences):
    """Share of all patterns of signs whose mean is at least as far from 0."""
    signs = np.array(list(itertools.product((1, -1), repeat=len(differences))))
    means = np.abs(signs @ differences)
    return float(np.mean(means >= means[0] * (1 - 1e-9)))


def test_a_planted_effect_is_found_and_a_planted_null_is_not(tmp_path):
    study = made(tmp_path, [DENSE, BETTER, SAME])
    found = {c.arm: c for c in compare(study).family("primary")}
    assert list(found) == ["better", "same"]
    raw = {}
    for arm in found:
        rows = [[last_forgetting(r.folder) for r in study.of(a)] for a in (arm, "dense")]
        differences = np.subtract(*rows)
        raw[arm] = sign_flip_by_hand(differences)
        assert found[arm].test.mean == pytest.approx(differences.mean())
        assert found[arm].test.p == pytest.approx(raw[arm])
        assert found[arm].test.d_z == pytest.approx(differences.mean() / differences.std(ddof=1))
    # Holm by hand: the smaller p times 2, the larger one as it is.
    assert found["better"].adjusted == pytest.approx(2 * raw["better"]) == 2 * 2 / 256
    assert found["same"].adjusted == pytest.approx(max(2 * raw["better"], raw["same"]))
    assert found["better"].significant and found["better"].improves
    assert not found["same"].significant
    assert found["same"].test.equivalence is not None and found["same"].test.equivalence.inside
    assert not found["better"].test.equivalence.inside


def test_figures_carry_their_seeds_and_leave_failed_runs_out(tmp_path):
    study = made(tmp_path, [DENSE, BETTER], seeds=range(8), failed={("better", 3): "diverged"})
    figure = compare(study).figures["better", "F_last"]
    values = [last_forgetting(r.folder) for r in study.of("better") if r.status == "done"]
    assert (figure.seeds, figure.planned) == ((0, 1, 2, 4, 5, 6, 7), 8)
    assert figure.values == pytest.approx(values)
    assert figure.estimate.mean == pytest.approx(np.mean(values))
    assert figure.estimate.sd == pytest.approx(np.std(values, ddof=1))
    (contrast,) = compare(study).family("primary")
    assert (contrast.test.num_seeds, contrast.planned) == (7, 8)
    assert contrast.pairs.left_out == (3,)


def test_a_contrast_without_runs_keeps_its_place_in_the_family(tmp_path):
    lost = {("same", seed): "diverged" for seed in range(8)}
    whole = compare(made(tmp_path / "a", [DENSE, BETTER, SAME])).family("primary")
    less = compare(made(tmp_path / "b", [DENSE, BETTER, SAME], failed=lost)).family("primary")
    assert [c.family_size for c in less] == [2, 2]
    assert less[0].adjusted == whole[0].adjusted
    assert less[1].test.mean is None and less[1].adjusted is None


@pytest.mark.parametrize("measure", ["F_last", "final_accuracy"])
def test_a_failed_run_counted_as_the_worst(tmp_path, measure):
    analysis = AnalysisConfig(metrics=(measure,))
    lost = {("better", 0): "x", ("better", 5): "x", ("dense", 1): "x"}
    study = made(tmp_path, [DENSE, BETTER], seeds=range(10), failed=lost, analysis=analysis)
    (contrast,) = compare(study).family("primary")
    gaps = np.array(contrast.pairs.differences)
    better = np.sign(gaps[0])  # all differences have this sign
    worst = np.abs(gaps).max()
    by_hand = sign_flip_by_hand(np.array([*gaps, *(-better * worst * np.array([1, 1, -1]))]))
    assert len(gaps) == 7 and (np.sign(gaps) == better).all()
    assert contrast.failed_as_worst == pytest.approx(by_hand)
    assert by_hand > contrast.test.p
    # Missing is not failed: such a run may still come.
    later = made(tmp_path / "b", [DENSE, BETTER], seeds=range(7), missing=[("better", 0)])
    assert compare(later).family("primary")[0].failed_as_worst is None


def test_five_seeds_give_no_p_and_the_reason(tmp_path):
    (contrast,) = compare(made(tmp_path, [DENSE, BETTER], seeds=range(5))).family("primary")
    assert contrast.adjusted is None and not contrast.significant
    assert "5 seeds" in contrast.test.why
    assert contrast.test.mean < 0 and contrast.test.sd > 0
    assert (contrast.test.t, contrast.test.percentile, contrast.test.d_z) == (None, None, None)


def test_secondary_metrics_and_planned_contrasts(tmp_path):
    analysis = AnalysisConfig(
        metrics=("final_loss", "final_accuracy"),
        contrasts=(ContrastConfig(arm="dense", against="better"),),
    )
    comparison = compare(made(tmp_path, [DENSE, BETTER, SAME], analysis=analysis))
    assert [(c.measure, c.arm, c.against) for c in comparison.contrasts] == [
        ("final_loss", "dense", "better"),
        ("final_accuracy", "dense", "better"),
    ]
    loss, accuracy = comparison.contrasts
    assert loss.family == "primary" and accuracy.family == "secondary"
    # Worse both times: a higher loss, a lower accuracy.
    assert loss.test.mean > 0 > accuracy.test.mean
    assert loss.improves is accuracy.improves is False


@pytest.mark.parametrize("lost", [{}, {("better", 0): "x"}])
def test_arms_that_are_no_pairs_are_compared_as_groups(tmp_path, lost):
    contrast = ContrastConfig(arm="better", against="dense", unpaired=True)
    analysis = AnalysisConfig(contrasts=(contrast,))
    study = made(tmp_path, [DENSE, BETTER], analysis=analysis, failed=lost)
    (found,) = compare(study).family("primary")
    groups = [[last_forgetting(r.folder) for r in study.done(a)] for a in ("better", "dense")]
    assert not found.test.paired and found.test.d_z is None
    assert found.test.p == pytest.approx(permutation(*groups))
    assert found.test.mean == pytest.approx(np.mean(groups[0]) - np.mean(groups[1]))
    if lost:  # the run that failed counts as the worst that was seen
        worst = [*groups[0], max(groups[0] + groups[1])]
        assert found.failed_as_worst == pytest.approx(permutation(worst, groups[1]))
        assert found.failed_as_worst > found.test.p


def test_arms_of_other_streams_are_never_pairs(tmp_path):
    study = made(tmp_path, [DENSE, BETTER, SAME])
    arms = [replace(a, stream="other") if a.name == "same" else a for a in study.plan.arms]
    study = replace(study, plan=replace(study.plan, arms=tuple(arms)))
    assert [c.test.paired for c in compare(study).family("primary")] == [True, False]


def test_controls_are_exploratory_and_undefined_ones_left_out(tmp_path):
    arms = [
        DENSE,
        BETTER,
        FakeArm(name="narrow", role="equal_parameters", of="better", forgets=0.4),
        FakeArm(name="short", role="stopped_early", of="better", forgets=0.45, stopped=60),
        FakeArm(name="long", role="equal_flops", of="better", forgets=0.3),
        FakeArm(name="joint", role="joint", of="dense"),
    ]
    comparison = compare(made(tmp_path, arms))
    found = comparison.family("exploratory")
    assert [(c.arm, c.against) for c in found if c.measure == "F_last"] == [
        ("better", "narrow"),
        ("better", "short"),
        ("long", "dense"),
    ]
    assert ("dense", "joint") in [(c.arm, c.against) for c in found if c.measure == "final_loss"]
    assert {c.correction for c in found} == {"Benjamini-Hochberg"}
    # The arms stated in the study are the planned family, and no control is in it.
    assert [c.arm for c in comparison.family("primary")] == ["better"]


def test_the_same_folder_gives_the_same_numbers(tmp_path):
    study = made(tmp_path, [DENSE, BETTER], seeds=range(6))
    assert compare(study) == compare(collect(study.folder))


def test_planted_crossovers_are_located(tmp_path):
    order = tuple(range(3)) * 4
    # On the mean over three domains a drift of the level reaches the mean two phases later.
    arms = [
        FakeArm(name="dense", kind="dense", density=1.0, drift=0.1, forgets=0.0),
        FakeArm(name="later", level=3.55, forgets=0.0),
        FakeArm(name="never", level=4.5, forgets=0.0),
    ]
    study = made(tmp_path, arms, order=order, analysis=AnalysisConfig(core="code"))
    found = {(item.arm, item.curve): item.result for item in trends(study).crossovers}
    assert list(found) == [(arm, c) for c in (None, "code") for arm in ("later", "never")]
    rows = {a: np.array([scores(r.folder)[1] for r in study.of(a)]) for a in ("dense", "later")}
    gap = (rows["later"] - rows["dense"])[:, 1:].mean(axis=(0, 2))
    by_hand = int(np.argmax(np.cumsum(gap))) + 2  # the round after which the gap adds up no more
    assert found["later", None].round == by_hand and 3 < by_hand < 12
    low, high = found["later", None].interval
    assert low <= by_hand <= high and found["later", None].p <= 0.05
    assert found["never", None].round is None and found["never", "code"].round is None
    assert "not shown within 12 rounds" in found["never", None].text()


def test_density_relation_finds_a_planted_slope_and_only_within_one_setting(tmp_path):
    def er(name, density, kind="er_fixed"):
        return FakeArm(name=name, density=density, kind=kind, forgets=0.5 + 0.2 * log10(density))

    arms = [DENSE, er("a", 0.1), er("b", 0.3), er("c", 0.05), er("d", 0.2, "brf")]
    study = made(tmp_path, arms, failed={("a", 0): "x"})
    (trend,) = trends(study).densities
    assert trend.arms == ("c", "a", "b") and trend.kind == "er_fixed"
    # A domain that k phases follow rises by k * forgets: on average 1.5 of 3 domains.
    assert trend.relation.slope == pytest.approx(1.5 * 0.2, abs=0.02)
    assert (trend.relation.num_points, trend.relation.num_missing) == (23, 1)
    assert trend.relation.slope_interval.contains(1.5 * 0.2)


def test_the_front_by_hand_and_a_failed_arm_is_not_on_it(tmp_path):
    arms = [
        FakeArm(name="dense", kind="dense", density=1.0, level=3.0, forgets=0.5),
        FakeArm(name="trades", level=3.5, forgets=0.2),
        FakeArm(name="beaten", level=3.6, forgets=0.6),
        FakeArm(name="failed", level=2.0, forgets=0.1),
    ]
    study = made(tmp_path, arms, seeds=range(4), failed={("failed", 2): "x"})
    for front in trends(study).fronts:
        assert [p.name for p in front.points if p.on_front] == ["dense", "trades"]
        assert front.seeds == (0, 1, 2, 3)
        means = [np.mean(list(study.values("trades", m).values())) for m in front.measures]
        assert front.points[1].values == pytest.approx(means)


def test_stops_alone_gaps_and_interference(tmp_path):
    arms = [
        DENSE,
        FakeArm(name="er", level=3.2, interference=True, forgets=0.25),
        FakeArm(name="short", role="stopped_early", of="er", level=3.2, stopped=60),
        FakeArm(name="alone", role="alone", of="er", level=2.9),
    ]
    study = made(tmp_path, arms, seeds=range(4), missing=[("short", 1)])
    found = trends(study)
    assert [(stop.phase, stop.domain) for stop in found.stops] == list(enumerate(DOMAINS))
    for stop in found.stops:
        at = stop.phase + 1, stop.phase  # the domains come in the order of the phases
        losses = [
            np.array([scores(r.folder)[1][at] for r in study.done(a)]) for a in ("er", "short")
        ]
        losses[0] = losses[0][[0, 2, 3]]
        assert stop.target == pytest.approx(losses[0].mean())
        assert stop.reached == pytest.approx(losses[1].mean())
        assert stop.missed == np.count_nonzero(losses[1] > losses[0])
        assert (stop.seeds, stop.planned) == ((0, 2, 3), 4)
    assert 0 < sum(stop.missed for stop in found.stops) < 9  # noise: some get there, some do not
    said = [text for text in answer.cautions(study, compare(study), found) if "did not get" in text]
    few = [f"{s.phase} {s.domain} ({s.missed} of 3 seeds)" for s in found.stops if s.missed]
    head = "short did not get to the loss of er in phases"
    assert said == [f"{head} {', '.join(few)}: there it has learned less."]
    losses = [[scores(r.folder)[1][1, 0] for r in study.done("er")]]
    gap = found.alone[0]
    assert (gap.domain, gap.seeds) == ("code", (0, 1, 2, 3))
    assert gap.in_sequence == pytest.approx(np.mean(losses[0]))
    assert gap.in_sequence - gap.by_itself == pytest.approx(0.3, abs=0.05)
    figures = {(f.arm, f.name): f for f in found.interference}
    assert figures["er", "cosine"].values == (0.25,) * 4  # forgets, off the diagonal
    assert ("dense", "cosine") not in figures
    (study.folder / "runs/er/seed2/interference.json").write_text("{}")
    again = trends(collect(study.folder))
    assert [f.seeds for f in again.interference if f.name == "kl"] == [(0, 1, 3)]
    assert len(again.interference_problems) == 1


def test_curves_hold_the_scores(tmp_path):
    short = FakeArm(name="short", stopped=60, plasticity=True, density=0.5)
    study = made(tmp_path, [DENSE, short], seeds=range(6))
    loss = np.array([scores(r.folder)[1] for r in study.of("short")])
    curve = domain_curve(study, "short", "math")
    # Phases, not tokens: the short first phase ends at 1 all the same.
    assert curve.x.tolist() == [0, 1, 2, 3]
    assert np.allclose(curve.values, loss[:, :, 1])
    assert np.allclose(round_curve(study, "short").values, loss[:, 1:].mean(axis=2))
    low, high = curve.band
    ends = t_interval(curve.values[:, 2])
    assert (low[2], high[2]) == pytest.approx((ends.low, ends.high))
    few = made(tmp_path / "few", [DENSE, short], seeds=range(5))
    assert domain_curve(few, "short", "math").band is None
    matrix, seeds = mean_matrix(study, "short")
    assert np.allclose(matrix, loss.mean(axis=0)) and seeds == tuple(range(6))
    assert plasticity_curve(study, "short", "erank").mean.tolist() == [51, 50, 49, 48]
    assert plasticity_curve(study, "short", "p") is None
    assert plasticity_curve(study, "dense", "erank") is None
