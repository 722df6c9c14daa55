"""Studies of several sizes of the model: how they are laid out, compared and reported."""

import csv
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from sparsecl.errors import UserError
from sparsecl.experiments.findings.collect import collect
from sparsecl.experiments.findings.compare import compare
from sparsecl.experiments.findings.optima import size_trends
from sparsecl.experiments.findings.trends import trends
from sparsecl.experiments.report import write_report
from sparsecl.experiments.study.build_plan import make_plan
from sparsecl.experiments.study.study_file import read_study
from sparsecl.experiments.study.study_plan import AnalysisConfig, read_plan, write_plan
from tests.experiments.fake_study import FakeArm, write_study

EXP4 = Path(__file__).resolve().parents[3] / "launch" / "experiments" / "exp4_scale.yaml"

SMALL = """
name: small
base: {phases: {steps: 5}}
scales:
  tiny:
    sizes:
      s: {model: {preset: null, layers: 1, width: 32, heads: 4, context: 16}, batch: {sequences: 8}}
      l: {model: {preset: null, layers: 2, width: 64, heads: 4, context: 16}, optimizer: {lr: 0.1}}
arms:
  dense: {topology: {kind: dense}}
  a: {topology: {density: 0.1}}
  b: {topology: {density: 0.3}}
labels: {a: 10 %}
controls: {equal_flops: [a], update_only: [all_sparse]}
analysis: {reference: dense, contrasts: [{arm: a, against: dense}]}
"""


def fake_price(config):
    """Counts that differ with the width and the density alone."""
    total = config.model.resolved().width * 100
    dense = config.topology.kind == "dense"
    density = 1.0 if dense else config.topology.density
    live = round(total * density)
    tokens = 5 * config.batch.sequences
    cost = {"live": live, "total": total, "density": density, "flops_per_token": 6 * live}
    work = {"gradient_flops": 0, "score_flops": 0, "flops": 6 * live * tokens}
    return SimpleNamespace(**cost, **work, steps=5, tokens=tokens)


@pytest.fixture
def small(tmp_path):
    def make(text=SMALL):
        path = tmp_path / "study.yaml"
        path.write_text(text)
        ds_config = EXP4.parents[2] / "ds_configs" / "zero2.json"
        study = replace(read_study(path), ds_config=ds_config)
        return make_plan(study, fake_price, threads=1, command=["sweep"])

    return make


def test_every_arm_and_control_at_every_size(small):
    plan, configs = small()
    arms = ["s-dense", "s-a", "s-b", "l-dense", "l-a", "l-b"]
    updates = [f"{name}.update_only" for name in arms if "dense" not in name]
    assert [arm.name for arm in plan.arms] == [
        *arms,
        *updates,
        "s-a.equal_flops",
        "l-a.equal_flops",
    ]
    assert plan.sizes() == ("s", "l")
    assert [arm.size for arm in plan.arms if arm.name.startswith("l-")] == ["l"] * 6
    assert configs["l-a"].model.width == 64 and configs["s-a"].model.width == 32
    assert (configs["l-a"].optimizer.lr, configs["s-a"].batch.sequences) == (0.1, 8)
    assert plan.arm("l-a").label == "l, 10 %"


def test_arms_are_compared_within_their_size(small):
    plan, _ = small()
    pairs = [(pair.arm, pair.against) for pair in plan.contrasts()]
    assert pairs == [("s-a", "s-dense"), ("l-a", "l-dense")]
    assert plan.reference_of(plan.arm("l-b.update_only")) == "l-dense"
    # Only what sets it apart from the dense model of its size: no width, no learning rate.
    assert plan.arm("l-b").differences == (
        'topology.kind: "dense" -> "er_fixed"',
        "topology.density: 0.1 -> 0.3",
    )
    unplanned, _ = small(SMALL.replace(", contrasts: [{arm: a, against: dense}]", ""))
    pairs = {(pair.arm, pair.against) for pair in unplanned.contrasts()}
    assert pairs == {(f"{s}-{a}", f"{s}-dense") for s in "sl" for a in "ab"}


def test_controls_use_the_reference_of_their_size(small):
    # The FLOPs of dense over those of density 0.1: ten times the steps, at each size.
    _, configs = small()
    assert configs["s-a.equal_flops"].phases.steps == configs["l-a.equal_flops"].phases.steps == 50
    assert configs["l-a.equal_flops"].model.width == 64


def test_mistakes_in_sizes(small):
    with pytest.raises(UserError, match="scales.tiny.sizes: 'l/x' must be letters"):
        small(SMALL.replace("      l: ", "      l/x: "))
    with pytest.raises(UserError, match=r"sizes\.l\.optimizer\.rate"):
        small(SMALL.replace("lr: 0.1", "rate: 0.1"))
    with pytest.raises(UserError, match="no arm s-absent"):
        small(SMALL.replace("reference: dense", "reference: absent"))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Best density by final loss: 0.1 at the small size, 0.3 at the large one; seed 3 lost."""
    levels = {"s": {0.01: 3.4, 0.1: 3.0, 0.3: 3.3, 1.0: 3.5}, "l": {0.01: 3.4, 0.1: 3.1, 0.3: 2.7}}
    levels["l"][1.0] = 3.0
    fakes, sizes = [], {}
    for size, arms in levels.items():
        for density, level in arms.items():
            name = f"{size}-{'dense' if density == 1 else f'rho_{density:g}'}"
            kind = "dense" if density == 1 else "er_fixed"
            fakes.append(FakeArm(name=name, kind=kind, density=density, level=level, noise=0.02))
            sizes[name] = size
    analysis = AnalysisConfig(reference="s-dense", metrics=("final_loss", "F_last"))
    folder = write_study(
        tmp_path_factory.mktemp("sizes") / "study",
        fakes,
        seeds=range(7),
        analysis=analysis,
        missing=[("l-rho_0.1", 3)],
    )
    plan = read_plan(folder)
    totals = {"s": 1_000_000, "l": 10_000_000}
    arms = tuple(
        replace(
            arm,
            size=sizes[arm.name],
            total=totals[sizes[arm.name]],
            differences=() if "dense" in arm.name else (f"topology.density: 0.5 -> {arm.density}",),
        )
        for arm in plan.arms
    )
    write_plan(folder, replace(plan, arms=arms))
    return collect(folder)


def test_the_optimum_of_every_size(study):
    loss, forgetting = size_trends(study)
    assert (loss.measure, loss.kind, forgetting.measure) == ("final_loss", "er_fixed", "F_last")
    small, large = loss.optima
    assert small.arms == ("s-rho_0.01", "s-rho_0.1", "s-rho_0.3", "s-dense")
    assert (small.optimum.density, large.optimum.density) == (0.1, 0.3)
    assert (small.optimum.num_seeds, large.optimum.num_seeds) == (7, 6)
    # From 0.1 to 0.3 over ten times the parameters.
    assert loss.slope.slope == pytest.approx(0.4771, abs=1e-4)
    assert loss.slope.num_seeds == 6
    # The other densities are reliably worse at either size, so the slope is known without doubt.
    assert (loss.slope.interval.low, loss.slope.interval.high) == pytest.approx(
        (0.4771,) * 2, abs=1e-4
    )


def test_the_report_shows_it(study, tmp_path):
    page = write_report(study, tmp_path / "report").read_text()
    assert 'id="optima"' in page and "Best density against the size" in page
    assert (tmp_path / "report/figures/optima.png").stat().st_size > 10_000
    with open(tmp_path / "report/tables/optima.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "final_loss"]
    best = [(row["size"], float(row["density"]), int(row["seeds"])) for row in rows]
    assert best == [("s", 0.1, 7), ("l", 0.3, 6)]
    found = trends(study)
    assert [trend.kind for trend in found.densities] == ["er_fixed, s", "er_fixed, l"]
    # A crossover is one with the dense model of the same size.
    assert {item.arm for item in found.crossovers}.isdisjoint({"s-dense", "l-dense"})
    pairs = {(c.arm, c.against) for c in compare(study).family("primary")}
    assert ("l-rho_0.1", "l-dense") in pairs and ("l-dense", "s-dense") not in pairs


@pytest.mark.parametrize("scale, sizes", [("demo", 3), ("100m_to_1b", 3)])
def test_experiment_4_is_laid_out(scale, sizes):
    study = read_study(EXP4, scale=scale)
    assert len(study.settings) == 4 * sizes
    shapes = {setting.size: setting.config.model.resolved() for setting in study.settings}
    assert len({shape.width for shape in shapes.values()}) == sizes
    # What must be equal for losses to be comparable across sizes.
    for key in ("batch", "phases", "tokenizer", "data", "precision"):
        assert len({repr(getattr(s.config, key)) for s in study.settings}) == 1, key
    assert len({shape.context for shape in shapes.values()}) == 1
