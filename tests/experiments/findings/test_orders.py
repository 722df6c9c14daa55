"""Several orders of the domains: each seed counts once, with the mean over its orders."""

from dataclasses import replace

import numpy as np
import pytest

from sparsecl.experiments.findings.collect import collect
from sparsecl.experiments.findings.compare import compare
from sparsecl.experiments.findings.orders import order_effects
from sparsecl.experiments.report import write_report
from sparsecl.experiments.study.study_plan import AnalysisConfig, run_folder
from tests.experiments.fake_study import FakeArm, last_forgetting, write_study

ORDERS = {"given": ("code", "math", "legal"), "turned": ("legal", "math", "code")}
ARMS = (FakeArm(name="dense", kind="dense", density=1.0), FakeArm(name="er", forgets=0.3))
ANALYSIS = AnalysisConfig(metrics=("F_last", "NF"))


def by_hand(folder, study, arm, order, seed):
    (run,) = (
        run for run in study.plan.runs if (run.arm, run.order, run.seed) == (arm, order, seed)
    )
    return last_forgetting(run_folder(folder, run))


def test_the_value_of_a_seed_is_the_mean_over_the_orders(tmp_path):
    folder = write_study(tmp_path / "s", ARMS, analysis=ANALYSIS, orders=ORDERS)
    study = collect(folder)
    assert len(study.results) == 2 * 8 * 2
    assert (folder / "runs" / "er" / "turned-seed3").is_dir()
    for seed in range(8):
        both = [by_hand(folder, study, "er", order, seed) for order in ORDERS]
        assert both[0] != both[1]
        assert study.values("er", "F_last")[seed] == pytest.approx(np.mean(both), abs=1e-12)
        assert study.values("er", "F_last", "turned")[seed] == pytest.approx(both[1], abs=1e-12)
    contrast = next(c for c in compare(study).contrasts if c.measure == "F_last")
    assert contrast.planned == contrast.test.num_seeds == 8
    # NF goes over the domains that count in both arms, of each order by itself.
    shares = study.shares("er")[0]
    assert len(shares) == 4 and {name.split()[0] for name in shares} == set(ORDERS)
    nf = np.mean([result.values["NF"] for result in study.of("er") if result.run.seed == 0])
    assert np.mean(list(shares.values())) == pytest.approx(nf)


def test_a_seed_that_lacks_an_order_has_no_value(tmp_path):
    folder = write_study(tmp_path / "s", ARMS, analysis=ANALYSIS, orders=ORDERS)
    study = collect(folder)
    lost = [
        replace(r, status="missing", values=None, records=None, summary=None, shares=None)
        if r.run.name == "er/turned-seed5"
        else r
        for r in study.results
    ]
    study = replace(study, results=tuple(lost))
    assert 5 not in study.values("er", "F_last") and 5 in study.values("er", "F_last", "given")
    assert study.statuses("er")[5] == "begun" and study.statuses("er")[4] == "done"
    assert 5 not in study.shares("er")
    failed = [replace(r, status="failed") if r.status == "missing" else r for r in lost]
    assert replace(study, results=tuple(failed)).statuses("er")[5] == "failed"


def test_the_table_of_orders_from_the_files(tmp_path):
    folder = write_study(tmp_path / "s", ARMS, analysis=ANALYSIS, orders=ORDERS)
    study = collect(folder)
    effects = {(e.measure, e.order): e for e in order_effects(study)}
    assert set(effects) == {(m, o) for m in ("F_last", "NF") for o in ("given", "turned", "")}
    for order in ORDERS:
        found = effects["F_last", order]
        differences = [
            by_hand(folder, study, "er", order, seed) - by_hand(folder, study, "dense", order, seed)
            for seed in range(8)
        ]
        assert found.differences == pytest.approx(differences)
        half = 2.3646 * np.std(differences, ddof=1) / np.sqrt(8)
        assert found.interval is not None and found.interval.method == "t"
        assert found.interval.low == pytest.approx(np.mean(differences) - half, abs=1e-5)
    whole = effects["F_last", ""]
    assert whole.mean == pytest.approx(np.mean([effects["F_last", order].mean for order in ORDERS]))
    assert whole.interval is not None and whole.interval.method == "hierarchical"
    assert whole.interval.low < whole.mean < whole.interval.high
    page = write_report(study, tmp_path / "report").read_text()
    assert "By order of the domains" in page and "turned: legal, math, code" in page


def test_a_study_of_one_order_has_no_such_table(tmp_path):
    folder = write_study(tmp_path / "s", ARMS, analysis=ANALYSIS)
    study = collect(folder)
    assert order_effects(study) == []
    assert "By order of the domains" not in write_report(study, tmp_path / "report").read_text()
