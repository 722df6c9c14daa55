"""Families over the learning rate: what a study with a grid over it is read as, end to end."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from sparsecl.experiments.findings.collect import collect
from sparsecl.experiments.findings.frontier import families, family_contrasts, place
from sparsecl.experiments.findings.study_table import study_table
from sparsecl.experiments.plots import style
from sparsecl.experiments.plots.frontier import movement_figure
from sparsecl.experiments.report import write_report
from sparsecl.experiments.study.study_plan import AnalysisConfig
from sparsecl.metrics.bootstrap import t_interval
from tests.experiments.fake_study import FakeArm, last_forgetting, scores, write_study

RATES = (0.001, 0.002, 0.004, 0.008, 0.016)
CENTRE = 0.004


def grid(density, *, shift=0.0, effect=0.0, rates=RATES, levels=True, less=None):
    """Arms of one density over the rates, on the frontier of all or off it by `effect`."""
    arms = []
    for rate in rates:
        v = np.log2(rate / RATES[0]) - shift
        moved = [f"density_{density}"] if density != "dense" else []
        moved += [f"lr_{rate}"] if rate != CENTRE else []
        lines = [] if density == "dense" else [f"topology.density: 1.0 -> {density}"]
        lines += [f"optimizer.lr: {CENTRE} -> {rate}"] if rate != CENTRE else []
        arms.append(
            FakeArm(
                name="-".join(moved) or "centre",
                levels={"density": density, "lr": f"{rate}"} if levels else {},
                differences=tuple(lines),
                kind="dense" if density == "dense" else "er_fixed",
                density=1.0 if density == "dense" else float(density),
                level=3.85 + 0.12 * (v - 2.7) ** 2,
                # Three domains: F_last is 1.5 times the rise of one phase.
                forgets=(1.0 + 0.5 * v + effect) / 1.5,
                moves=None if less is None else less * 0.05 * 2.0**v,
            )
        )
    return arms


def study_of(folder, *groups, **changes):
    arms = [arm for group in groups for arm in group]
    analysis = AnalysisConfig(reference="centre")
    return collect(write_study(folder, arms, analysis=analysis, **changes))


@pytest.fixture(scope="module")
def trap(tmp_path_factory):
    """Equal frontiers; the sparse arm needs 2.8 times the rate."""
    folder = tmp_path_factory.mktemp("trap") / "study"
    return study_of(folder, grid("dense"), grid("0.1", shift=1.5))


def only(contrasts, at, measure="F_last"):
    (found,) = (one for one in contrasts if (one.at, one.measure) == (at, measure))
    return found


def test_a_grid_over_the_rate_is_read_as_families(trap):
    dense, sparse = families(trap)
    assert (dense.name, sparse.name) == ("density dense", "density 0.1")
    assert (dense.reference, sparse.reference) == (True, False)
    assert dense.rates == sparse.rates == RATES
    assert dense.arm(CENTRE) == "centre" and sparse.arm(0.016) == "density_0.1-lr_0.016"
    assert list(dense.frontiers) == list(range(8)) and len(dense.points) == 40
    # The points are those of the run folders.
    for point in dense.points[:3]:
        (run,) = (r for r in trap.of(dense.arm(point.rate)) if r.run.seed == point.seed)
        order, loss = scores(run.folder)
        learned = np.mean([loss[phase + 1, i] for phase, i in enumerate(order)])
        assert point.learned == pytest.approx(learned)
        assert point.forgotten == pytest.approx(last_forgetting(run.folder))


def test_the_best_rate_is_that_of_the_lowest_mean_final_loss(trap):
    for family in families(trap):
        final = {
            rate: np.mean([scores(r.folder)[1][-1].mean() for r in trap.of(family.arm(rate))])
            for rate in RATES
        }
        assert family.best == min(final, key=final.get)
        assert family.at_edge == (family.best in (RATES[0], RATES[-1]))


def test_equal_frontiers_are_equal_at_equal_loss_and_different_at_one_rate(trap):
    found = family_contrasts(trap, families(trap))
    equal = only(found, "equal loss")
    assert equal.test.paired and equal.test.num_seeds == 8
    assert equal.test.t.contains(0.0) and abs(equal.test.mean) < 0.03
    assert equal.adjusted > 0.05
    at_one = [one for one in found if one.at == "one rate"]
    assert [one.rates for one in at_one] == [(rate, rate) for rate in RATES]
    assert all(one.test.mean == pytest.approx(-0.75, abs=0.05) for one in at_one)
    assert all(one.adjusted <= 0.05 and one.family_size == 5 for one in at_one)


def test_both_at_their_best_rates_by_hand(trap):
    dense, sparse = families(trap)
    found = only(family_contrasts(trap, [dense, sparse]), "best rates", "final_loss")
    assert found.rates == (sparse.best, dense.best)
    runs = [trap.of(family.arm(family.best)) for family in (sparse, dense)]
    last = [[scores(run.folder)[1][-1].mean() for run in group] for group in runs]
    assert found.test.mean == pytest.approx(np.subtract(*last).mean())
    assert found.test.t == t_interval(np.subtract(*last))


def test_a_planted_effect_is_found_at_equal_loss(tmp_path):
    study = study_of(tmp_path / "s", grid("dense"), grid("0.1", shift=1.5, effect=-0.2))
    equal = only(family_contrasts(study, families(study)), "equal loss")
    assert equal.test.t.contains(-0.2) and equal.adjusted <= 0.05


def test_several_families_are_corrected_together(tmp_path):
    study = study_of(tmp_path / "s", grid("dense"), grid("0.1", effect=-0.2), grid("0.3"))
    found = family_contrasts(study, families(study))
    first, second = (one for one in found if one.at == "equal loss")
    assert (first.family, second.family) == ("density 0.1", "density 0.3")
    assert first.family_size == 2 and first.adjusted == pytest.approx(2 * first.test.p)
    assert second.adjusted == pytest.approx(max(2 * first.test.p, second.test.p))


def test_no_common_learned_loss_is_said(tmp_path):
    far = [replace(arm, level=arm.level + 3) for arm in grid("0.1")]
    study = study_of(tmp_path / "s", grid("dense"), far)
    equal = only(family_contrasts(study, families(study)), "equal loss")
    assert equal.test is None and "no learned loss that every seed of both arms" in equal.why
    assert "no learned loss that every seed" in " ".join(study_table(study).split())


def test_failed_runs_are_no_points_and_their_rate_is_not_the_best(tmp_path):
    sparse = grid("0.1")
    best = min(sparse, key=lambda arm: arm.level + arm.forgets).name
    study = study_of(tmp_path / "s", grid("dense"), sparse, failed={(best, 2): "diverged"})
    _, family = families(study)
    assert len(family.points) == 39 and len(family.frontiers) == 8
    assert family.arm(family.best) != best


def test_arms_that_read_other_data_are_not_paired(tmp_path):
    study = study_of(tmp_path / "s", grid("dense"), grid("0.1"))
    arms = tuple(
        replace(arm, stream="other") if arm.name.startswith("density") else arm
        for arm in study.plan.arms
    )
    study = replace(study, plan=replace(study.plan, arms=arms))
    found = family_contrasts(study, families(study))
    assert not only(found, "equal loss").test.paired
    assert not only(found, "best rates").test.paired


def test_arms_that_are_written_out_are_named_by_what_they_share(tmp_path):
    def written(name, arms):
        return [replace(arm, name=f"{name}_lr{k}") for k, arm in enumerate(arms)]

    first, second = grid("dense", levels=False), grid("0.1", levels=False)
    first, second = written("dense", first), written("rho_10", second)
    analysis = AnalysisConfig(reference="dense_lr2")
    folder = write_study(tmp_path / "s", [*first, *second], seeds=range(2), analysis=analysis)
    assert [family.name for family in families(collect(folder))] == ["dense_lr", "rho_10_lr"]


def test_a_study_without_a_grid_over_the_rate_has_none(tmp_path):
    arms = [FakeArm(name="dense", kind="dense"), FakeArm(name="er")]
    study = collect(write_study(tmp_path / "s", arms, seeds=range(2)))
    assert families(study) == [] and family_contrasts(study, []) == []
    assert "over learning rates" not in study_table(study)


def test_an_arm_that_only_moves_less_is_equal_at_equal_movement(tmp_path):
    study = study_of(tmp_path / "s", grid("dense", less=1.0), grid("0.1", shift=1.5, less=1.0))
    found = family_contrasts(study, families(study))
    equal = only(found, "equal KL")
    assert equal.test.paired and equal.test.num_seeds == 8
    assert equal.test.t.contains(0.0) and abs(equal.test.mean) < 0.03
    assert equal.reach[0] == pytest.approx(0.05, rel=0.1) and "KL 0.05" in place(equal)
    assert equal.adjusted == equal.test.p and equal.family_size == 1
    assert len(found) == 1 + 1 + 3 + 5
    text = " ".join(study_table(study).split())
    assert "density 0.1 minus density dense, F_last at equal movement: " in text


def test_an_arm_that_forgets_less_at_equal_movement_is_found(tmp_path):
    # It moves half as far for what it forgets.
    study = study_of(tmp_path / "s", grid("dense", less=1.0), grid("0.1", less=2.0))
    equal = only(family_contrasts(study, families(study)), "equal KL")
    assert equal.test.t.contains(-0.5) and equal.adjusted <= 0.05


def test_no_common_movement_is_said(tmp_path):
    study = study_of(tmp_path / "s", grid("dense", less=1.0), grid("0.1", less=1000.0))
    equal = only(family_contrasts(study, families(study)), "equal KL")
    assert equal.test is None and "no KL that every seed of both arms reaches" in equal.why
    assert "no KL that every seed" in " ".join(study_table(study).split())


def test_runs_without_movement_are_no_points(tmp_path):
    sparse = grid("0.1", less=1.0)
    sparse[0] = replace(sparse[0], moves=-0.01)  # an estimate can be below 0
    study = study_of(tmp_path / "s", grid("dense"), sparse)
    equal = only(family_contrasts(study, families(study)), "equal KL")
    assert equal.why == "no seed has both paths"
    assert movement_figure(families(study)) is not None
    assert movement_figure(families(study)[:1]) is None
    assert all(len(one.along) == 4 for one in families(study)[1].paths().values())


def test_the_report_has_the_figure_and_the_numbers(trap, tmp_path, monkeypatch):
    monkeypatch.setattr(style, "DPI", 30)
    monkeypatch.setattr(style, "PDF_FONT", 3)  # subsets of TrueType fonts take half of the time
    page = write_report(trap, tmp_path / "report")
    text = page.read_text()
    assert 'id="figure-frontier"' in text and "At equal learned loss" in text
    assert (page.parent / "figures" / "frontier.png").is_file()
    with (page.parent / "tables" / "frontier.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = family_contrasts(trap, families(trap))
    assert len(rows) == len(found) == 1 + 3 + 5
    for row, one in zip(rows, found, strict=True):
        assert (row["family"], row["against"], row["metric"]) == (
            one.family,
            one.against,
            one.measure,
        )
        assert float(row["difference"]) == pytest.approx(one.test.mean)
        assert float(row["low"]) == pytest.approx(one.test.t.low)
        assert float(row["p_corrected"]) == pytest.approx(one.adjusted)
    assert "density 0.1 minus density dense, F_last at equal learned loss" in " ".join(
        study_table(trap).split()
    )
