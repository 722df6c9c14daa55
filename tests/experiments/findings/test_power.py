"""Power of the planned contrasts of a study folder, and --power."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from sparsecl.experiments.findings.collect import collect
from sparsecl.experiments.findings.compare import compare
from sparsecl.experiments.findings.power import could_have_seen, power_text, study_power
from sparsecl.experiments.study.study_plan import AnalysisConfig, ContrastConfig
from sparsecl.programs import sweep
from tests.experiments.fake_study import FakeArm, last_forgetting, write_study

DENSE = FakeArm(name="dense", kind="dense", density=1.0, noise=0.05)
ARMS = (DENSE, FakeArm(name="er", noise=0.05), FakeArm(name="brf", noise=0.1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("power") / "study", ARMS)


def powers_of(study, **options):
    return study_power(study, compare(study).contrasts, **options)


def test_every_planned_contrast_by_hand(folder):
    study = collect(folder)
    found = powers_of(study, effect=0.1)
    assert [(p.arm, p.measure) for p in found] == [
        (arm, measure) for measure in ("F_last", "NF", "final_loss") for arm in ("er", "brf")
    ]
    for power in found[:2]:
        rows = [[last_forgetting(r.folder) for r in study.of(a)] for a in (power.arm, "dense")]
        sd = np.subtract(*rows).std(ddof=1)
        assert (power.num_seeds, power.alpha, power.fewest) == (8, 0.025, 7)
        assert power.sd == pytest.approx(sd)
        # At that difference, a noncentral t test of 8 pairs rejects four times in five.
        hurdle, shift = stats.t.ppf(1 - 0.0125, 7), power.detectable / (sd / 8**0.5)
        assert stats.nct.sf(hurdle, 7, shift) == pytest.approx(0.8, abs=1e-3)
        assert power.effect == 0.1 and power.seeds_if_wider >= power.seeds >= 7
    assert found[0].detectable < found[1].detectable  # brf has more noise


def test_the_effect_is_the_margin_where_none_is_given(folder):
    found = powers_of(collect(folder))
    assert [p.effect for p in found] == [0.05, 0.05, None, None, 0.05, 0.05]
    assert [p.seeds is None for p in found] == [False, False, True, True, False, False]
    given = powers_of(collect(folder), effect=0.2)
    assert [p.effect for p in given] == [0.2, 0.2, None, None, 0.05, 0.05]
    assert given[1].seeds <= found[1].seeds


def test_arms_that_are_not_paired(tmp_path):
    contrast = ContrastConfig(arm="er", against="dense", unpaired=True)
    analysis = AnalysisConfig(metrics=("F_last",), contrasts=(contrast,))
    study = collect(write_study(tmp_path / "s", ARMS[:2], analysis=analysis))
    (power,) = powers_of(study)
    rows = [[last_forgetting(r.folder) for r in study.of(arm)] for arm in ("er", "dense")]
    assert not power.paired and power.num_seeds == 8
    assert power.sd == pytest.approx(np.mean([np.var(row, ddof=1) for row in rows]) ** 0.5)
    assert "er minus dense (unpaired)" in power_text(study, [power])


def test_few_or_no_runs_are_said(tmp_path):
    analysis = AnalysisConfig(metrics=("F_last",))
    study = collect(write_study(tmp_path / "s", ARMS[:2], seeds=range(3), analysis=analysis))
    (power,) = powers_of(study)
    assert power.sd is not None and power.detectable is None and power.seeds >= 6
    assert could_have_seen(power) == "It could have shown nothing: 6 seeds are needed."
    lost = replace(study, results=tuple(replace(r, status="missing") for r in study.results))
    (power,) = powers_of(lost)
    assert (power.num_seeds, power.sd, power.detectable, power.seeds) == (0, None, None, None)
    assert "er minus dense      0   -      -      -         -" in power_text(lost, [power])


def test_runs_that_are_all_equal_have_no_spread_to_count_from(tmp_path):
    analysis = AnalysisConfig(metrics=("F_last",))
    study = collect(write_study(tmp_path / "s", ARMS[:2], analysis=analysis))
    (contrast,) = compare(study).contrasts
    (power,) = study_power(
        study, [replace(contrast, test=replace(contrast.test, sd=0.0))], effect=0.1
    )
    assert (power.sd, power.detectable, power.seeds) == (0.0, None, None)
    assert could_have_seen(power).startswith("All seeds differ by the same")


def test_sweep_prints_it_and_runs_nothing(folder, capsys):
    before = sorted(folder.rglob("*"))
    assert sweep.main([str(folder), "--power", "--effect", "0.1"]) == 0
    out = capsys.readouterr().out
    study = collect(folder)
    assert out.rstrip("\n") == power_text(study, powers_of(study, effect=0.1))
    assert "fake: 24 of 24 runs done" in out and "F_last, nats per token; effect 0.1" in out
    assert "NF, share; no effect stated" in out and "alpha 0.05 / 2 (Holm)" in out
    assert max(map(len, out.splitlines())) <= 100
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["STUDY", "--power", "--effect", "0"], 64, "--effect 0: must be a difference > 0"),
        (["STUDY", "--power", "--effect", "nan"], 64, "--effect nan: must be"),
        (["STUDY", "--effect", "0.1"], 64, "--effect says what to count seeds for"),
        (["EMPTY", "--power"], 66, "this is not the folder of a study"),
    ],
)
def test_mistakes(folder, tmp_path, capsys, arguments, code, message):
    places = {"STUDY": str(folder), "EMPTY": str(tmp_path)}
    assert sweep.main([places.get(word, word) for word in arguments]) == code
    assert message in capsys.readouterr().err
