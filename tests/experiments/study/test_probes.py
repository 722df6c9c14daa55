"""Probes: which runs they make, what these begin with, and what cannot be probed."""

from pathlib import Path

import pytest

from sparsecl.engine.price import price
from sparsecl.errors import UserError
from sparsecl.experiments.running.runner import run_options
from sparsecl.experiments.study.build_plan import make_plan
from sparsecl.experiments.study.study_file import read_study
from tests.experiments.study.test_build_plan import ROOT, STUDY

BASE = STUDY.partition("controls:")[0].replace(
    "phases: {{steps: 5}}", "phases: {{steps: 5, order: [a, b, a, b]}}"
)
NEW = "      - {{name: c, source: synthetic, synthetic: {{train_tokens: 4000}}}}\n"
BASE = BASE.replace("  phases:", NEW + "  phases:")
PROBES = "probes: {domain: c, after: [1, 4, 3], length: 2}\n"


@pytest.fixture
def planned(tmp_path):
    def make(more=PROBES, change=("", "")):
        path = tmp_path / "study.yaml"
        text = BASE.replace(*change).format(ds=ROOT / "ds_configs" / "zero2.json")
        path.write_text(text + more)
        study = read_study(path)
        return make_plan(study, lambda c: price(c, study.ds_config), threads=1, command=["sweep"])

    return make


def test_probes_differ_in_their_first_weights_alone(planned):
    plan, configs = planned()
    probes = [arm for arm in plan.arms if arm.role == "probe"]
    assert [(arm.name, arm.of, arm.after) for arm in probes] == [
        (f"{of}.probe.{k}", of, k) for of in ("dense", "sparse") for k in (0, 1, 3, 4)
    ]
    mine = [configs[f"sparse.probe.{k}"] for k in (0, 1, 3, 4)]
    assert mine == mine[:1] * 4
    assert mine[0].phases.order == ("c",) and mine[0].phases.steps == 10
    assert mine[0].topology == configs["sparse"].topology
    assert {plan.arm(arm.name).stream for arm in probes} == {probes[0].stream}
    assert probes[0].steps == 10 and probes[0].label == "dense: probe 0"
    # Arms of the study are compared, and no probe is a control of one.
    assert [(c.arm, c.against) for c in plan.contrasts()] == [("sparse", "dense")]


def test_each_begins_after_its_phase_of_the_run_of_its_seed(planned):
    plan, configs = planned()
    for arm in ("dense", "sparse"):  # phases end at steps 5, 10, 15 and 20, the last
        assert configs[arm].checkpoint.keep_steps == (5, 15)
        assert not configs[arm].checkpoint.initial
        assert not any("checkpoint" in line for line in plan.arm(arm).differences)
    runs = {run.name: run for run in plan.runs}
    assert runs["sparse.probe.0/seed7"].waits_for == ()
    assert runs["sparse.probe.1/seed7"].waits_for == ("sparse/seed7",)
    base = Path("study").resolve() / "runs" / "sparse" / "seed7"
    began = [
        run_options(Path("study"), plan, runs[f"sparse.probe.{k}/seed7"])[-1] for k in (0, 1, 3, 4)
    ]
    assert began[1:] == [
        f'init_from="{base / place}"' for place in ("kept/step_5", "kept/step_15", "")
    ]
    assert began[0] == "name=sparse.probe.0-seed7"
    assert plan.arm("sparse.probe.3").differences[-1] == "init_from: null -> sparse at step 15"


def test_tokens_are_rounded_as_the_run_rounds_them(planned):
    tokens = "phases: {{tokens: 1000, order: [a, b, a, b]}}"  # 256 a step: 4 steps
    _, configs = planned(change=("phases: {{steps: 5, order: [a, b, a, b]}}", tokens))
    assert configs["dense"].checkpoint.keep_steps == (4, 12)
    assert configs["dense.probe.0"].phases.tokens == 2000


def test_another_number_of_probes_is_another_study(planned):
    digests = [planned(more)[0].digest for more in (PROBES, PROBES.replace("[1, 4", "[2, 4"), "")]
    assert len(set(digests)) == 3


def test_probes_have_the_tuned_values_of_their_arm(planned):
    tune = "tune: {keys: {optimizer.lr: [1.0e-3, 2.0e-3]}, on: {seeds: [100], order: [b, a]}}\n"
    plan, _ = planned(PROBES + tune)
    assert plan.tuning is not None and plan.arm("dense.probe.4").after == 4
    other, _ = planned(PROBES.replace("[1, 4", "[2, 4") + tune)
    assert plan.digest != other.digest


ORDER = "steps: 5, order: [a, b, a, b]"
MISTAKES = {
    "no domain x; there are a, b, c": ("domain: c", "domain: x"),
    "dense trains c in its stream": (ORDER, "steps: 5"),
    "5 phases, and the stream of dense has 4": ("after: [1", "after: [5"),
    "after must be distinct counts of phases >= 0, got \\[1, 1\\]": ("[1, 4, 3]", "[1, 1]"),
    "after needs a count of phases >= 1": ("[1, 4, 3]", "[0]"),
    "length.*must be >= 1": ("length: 2", "length: 0"),
    "phases of dense may end early": (ORDER, ORDER + ", patience: 2"),
    "dense has phases of unequal length": ("steps: 5", "steps: [5, 6, 5, 5]"),
    "needs phases.steps or phases.tokens": ("steps: 5, ", ""),
    "one order of domains": ("probes:", "orders: {{ab: [a, b]}}\nprobes:"),
    "a method of sparse moves its graph": ("0.25}}", "0.25}}, methods: {{set: {{every: 2}}}}"),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_what_cannot_be_probed(planned, message):
    old, new = MISTAKES[message]
    change = (old, new) if old in BASE else ("", "")
    more = PROBES.replace(old, new.replace("{{", "{").replace("}}", "}"))
    if "orders" in new:
        change = (ORDER, "steps: 5")
    with pytest.raises(UserError, match=message):
        planned(more if old in PROBES else PROBES, change)
