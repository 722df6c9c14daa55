"""Orders of the domains as a factor of a study: what is planned, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from sparsecl.errors import UserError
from sparsecl.experiments.running.runner import run_options
from sparsecl.experiments.study.build_plan import make_plan
from sparsecl.experiments.study.study_file import read_study
from tests.experiments.study.test_sizes import fake_price

ROOT = Path(__file__).resolve().parents[3]

STUDY = """
name: small
base:
  phases: {steps: 5}
  data:
    domains:
      - {name: a, source: synthetic}
      - {name: b, source: synthetic}
      - {name: c, source: synthetic}
orders: {given: [a, b, c], turned: [c, b, a]}
seeds: 2
arms:
  dense: {topology: {kind: dense}}
  sparse: {topology: {density: 0.1}}
controls: {stopped_early: [sparse], alone: [sparse]}
"""


def planned(tmp_path, *changes, text=STUDY, **options):
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "study.yaml"
    path.write_text(text)
    study = replace(read_study(path, **options), ds_config=ROOT / "ds_configs" / "zero2.json")
    return make_plan(study, fake_price, threads=1, command=["sweep"])


def test_every_run_is_made_once_in_each_order(tmp_path):
    plan, configs = planned(tmp_path)
    assert [run.name for run in plan.runs_of("sparse")] == [
        f"sparse/{order}-seed{seed}" for seed in (0, 1) for order in ("given", "turned")
    ]
    assert configs["sparse"].phases.order == ("a", "b", "c")
    run = next(run for run in plan.runs if run.name == "sparse/turned-seed1")
    options = run_options(Path("S"), plan, run)
    assert options[-3:] == ["seed=1", "name=sparse-turned-seed1", "phases.order=[c, b, a]"]
    stopped = [run for run in plan.runs if run.arm == "sparse.stopped_early"]
    assert [run.needs for run in stopped[:2]] == ["sparse/given-seed0", "sparse/turned-seed0"]
    # A domain alone has no order: once for each seed.
    alone = [run.name for run in plan.runs if run.arm == "sparse.alone.a"]
    assert alone == ["sparse.alone.a/seed0", "sparse.alone.a/seed1"]


def test_other_orders_are_another_study(tmp_path):
    plan, _ = planned(tmp_path)
    other, _ = planned(tmp_path, ("turned: [c, b, a]", "turned: [c, a, b]"))
    assert plan.digest != other.digest


def test_a_scale_may_bring_orders_grids_and_a_file(tmp_path):
    data = tmp_path / "data.yaml"
    data.write_text("name: data\nbatch: {sequences: 4}\n")
    scale = f"scales: {{s: {{base: '{data}', orders: {{one: [b, a, c]}}}}}}\nseeds:"
    plan, configs = planned(tmp_path, ("seeds:", scale))
    assert plan.orders == {"one": ("b", "a", "c")}
    assert configs["dense"].batch.sequences == 4
    axes = "{design: one_at_a_time, axes: {rho: {r1: {topology: {density: 0.1}}, r3: {topology: "
    grid = f"scales: {{s: {{grids: [{axes}{{density: 0.3}}}}}}}}}}]}}}}\nseeds:"
    plan, _ = planned(tmp_path, ("seeds:", grid))
    assert [arm.name for arm in plan.arms if arm.role == "arm"] == ["dense", "sparse", "rho_r3"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("turned: [c, b, a]", "turned: [a, b, c]", "orders.turned: is the same as given"),
        ("turned: [c, b, a]", "turned: [c, b, x]", "orders.turned: there is no domain x"),
        ("turned:", "t/u:", "orders: 't/u' must be letters"),
        ("{steps: 5}", "{steps: 5, order: [b, a]}", "dense has phases.order"),
        (
            "seeds: 2",
            "seeds: 2\ntune: {keys: {optimizer.lr: [0.1, 0.2]}, on: {seeds: [9], order: reversed}}",
            "tune.on.order: is an order in which dense is tested",
        ),
    ],
)
def test_what_cannot_be_run_is_refused(tmp_path, old, new, message):
    with pytest.raises(UserError, match=message):
        planned(tmp_path, (old, new))


def test_words_fit_any_data(tmp_path):
    words = "orders: {one: given, two: reversed, three: interleaved}"
    plan, _ = planned(tmp_path, ("orders: {given: [a, b, c], turned: [c, b, a]}", words))
    assert list(plan.orders.values()) == [("a", "b", "c"), ("c", "b", "a"), ("b", "a", "c")]
