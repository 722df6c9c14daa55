"""Probes in a report: an onset that was planted, its figure, and seeds that lack a probe."""

import csv

import numpy as np
import pytest

from sparsecl.experiments.findings.collect import collect
from sparsecl.experiments.findings.compare import compare
from sparsecl.experiments.findings.onset import probed_arms
from sparsecl.experiments.plots.onset import onset_figure
from sparsecl.experiments.report.onset import onset_table, probes_table
from sparsecl.experiments.report.publish import publish
from sparsecl.experiments.report.table import as_csv
from sparsecl.experiments.report.tables import measure_table
from sparsecl.experiments.study.study_plan import AnalysisConfig, ContrastConfig
from tests.experiments.fake_study import FakeArm, write_study

AFTER = (0, 1, 2, 5, 10)
LEVELS = {"dense": (3.0, 2.8, 2.8, 3.2, 3.3), "sparse": (3.1, 2.9, 2.9, 2.9, 3.0)}
ANALYSIS = AnalysisConfig(
    metrics=("first_loss",),
    contrasts=(ContrastConfig(arm="dense.probe.10", against="dense.probe.0"),),
    margins={"first_loss": 0.05},
)


def probe(arm, after, level):
    name = f"{arm}.probe.{after}"
    return FakeArm(name=name, role="probe", of=arm, after=after, level=level, noise=0.005)


ARMS = [
    FakeArm(name="dense", kind="dense", density=1.0),
    FakeArm(name="sparse", label="10 %"),
    *(probe(arm, *at) for arm in LEVELS for at in zip(AFTER, LEVELS[arm], strict=True)),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("study")
    # The probes are of domain `legal`, which the arms do not train.
    return write_study(
        place,
        ARMS,
        order=(0, 1),
        analysis=ANALYSIS,
        missing=[("sparse.probe.5", 0)],
        failed={("sparse.probe.5", 1): "killed"},
    )


def test_onsets_are_where_they_were_planted(folder):
    dense, sparse = probed_arms(collect(folder))
    assert (dense.fresh.after, dense.best.after) == (5, 5) and dense.domain == "legal"
    assert sparse.fresh.after is None and sparse.fresh.text() == "none within 10"
    assert sparse.best.after == 10 and sparse.best.before == 5
    assert sparse.loss.seeds == (2, 3, 4, 5, 6, 7) and sparse.planned == 8
    assert dense.loss.mean == pytest.approx(LEVELS["dense"], abs=0.1)
    change = np.subtract(LEVELS["dense"], LEVELS["dense"][0])
    assert dense.change.mean == pytest.approx(change, abs=0.1) and not dense.change.mean[0]


def test_what_is_kept_of_a_study_has_the_figure(tmp_path):
    study = collect(write_study(tmp_path / "s", ARMS, order=(0, 1), analysis=ANALYSIS))
    text = publish(study, tmp_path / "kept").read_text()
    assert "(figures/onset.png)" in text and (tmp_path / "kept" / "figures" / "onset.png").is_file()


def test_the_figure_has_a_line_for_each_arm_and_marks_its_onset(folder):
    probed = probed_arms(collect(folder))
    left, right = onset_figure(probed, 0.05).axes
    lines = [line for line in left.lines if line.get_label()[0] != "_"]
    assert [line.get_label() for line in lines] == ["dense", "10 %"]
    assert lines[0].get_ydata() == pytest.approx(probed[0].loss.mean)
    marks = [line for line in right.lines if len(line.get_xdata()) == 1]
    assert [line.get_xdata()[0] for line in marks] == [5, 5, 10]
    assert onset_figure([], 0.05) is None


def test_tables_tell_the_onset_and_every_point(folder):
    study = collect(folder)
    probed = tuple(probed_arms(study))
    rows = read(onset_table(study, probed))
    assert [row["above_fresh"] for row in rows] == ["5", ""]
    assert [row["above_best"] for row in rows] == ["5", "10"]
    assert rows[1]["fresh"] == "none within 10" and rows[0]["size"] == ""
    points = read(probes_table(study, probed))
    assert [int(row["after"]) for row in points] == [*AFTER, *AFTER]
    assert float(points[3]["change"]) == pytest.approx(probed[0].change.mean[3])
    assert float(points[3]["change_low"]) > 0.05 and float(points[0]["change"]) == 0


def test_probes_are_pairs_and_no_arms_beside_the_others(folder):
    study = collect(folder)
    comparison = compare(study)
    (contrast,) = comparison.contrasts
    assert contrast.test.paired and contrast.test.mean == pytest.approx(0.3, abs=0.1)
    rows = read(measure_table(study, comparison, "first_loss"))
    assert [row["arm"] for row in rows] == ["dense", "sparse"]


def read(table):
    return list(csv.DictReader(as_csv(table).splitlines()))
