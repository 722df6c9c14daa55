"""Loss against density: one line for a chain and each of its controls, dense as a level."""

from dataclasses import replace

import numpy as np
import pytest

from sparsecl.experiments.findings.collect import collect
from sparsecl.experiments.findings.compare import compare
from sparsecl.experiments.plots.tickets import tickets_figure
from sparsecl.experiments.study.study_plan import AnalysisConfig
from tests.experiments.fake_study import FakeArm, write_study

ANALYSIS = AnalysisConfig(metrics=("first_loss",))


def arm(name, density, level, role="arm", of=None):
    return FakeArm(name=name, kind="ticket", density=density, level=level, role=role, of=of)


ARMS = [
    FakeArm(name="dense", kind="dense", density=1.0, level=2.9),
    arm("imp.1", 0.5, 3.0),
    arm("imp.2", 0.25, 3.1),
    arm("imp.2.random", 0.25, 3.6, "random", "imp.2"),
    arm("imp.2.one_shot", 0.25, 3.3, "one_shot", "imp.2"),
    arm("layer.1", 0.5, 3.05),
]


def test_lines_go_through_the_means_of_a_chain(tmp_path):
    study = collect(write_study(tmp_path, ARMS, seeds=range(6), analysis=ANALYSIS))
    figure = tickets_figure(study, compare(study))
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines if line.get_label()[0] != "_"}
    assert list(lines) == ["imp", "imp: random mask", "imp: one shot", "layer", "dense"]
    assert lines["imp"].get_xdata().tolist() == [0.25, 0.5]
    means = [np.mean([*study.values(name, "first_loss").values()]) for name in ("imp.2", "imp.1")]
    assert lines["imp"].get_ydata().tolist() == pytest.approx(means)
    assert axes.get_xscale() == "log" and "first_loss" in axes.get_ylabel()


def test_nothing_is_drawn_without_two_densities_of_a_chain(tmp_path):
    few = [ARMS[0], ARMS[1], replace(ARMS[5], density=0.4)]
    study = collect(write_study(tmp_path, few, seeds=range(2), analysis=ANALYSIS))
    assert tickets_figure(study, compare(study)) is None
