"""Chains: which arms they make, what these take from whom, and a study stopped at every link."""

import json
from pathlib import Path

import pytest

from sparsecl.engine.price import price
from sparsecl.errors import UserError
from sparsecl.experiments.running.local import LocalPlace
from sparsecl.experiments.running.runner import Runner, python_script, run_options
from sparsecl.experiments.study.build_plan import make_plan
from sparsecl.experiments.study.study_file import read_study
from sparsecl.experiments.study.study_plan import run_folder, write_plan
from sparsecl.planning.subjects import Counter
from tests.experiments.study.test_build_plan import ROOT, STUDY

CHAIN = """
chains:
  imp: {of: dense, rounds: 3, rewind: 2, controls: [one_shot, random, reinit], at: [1, 3]}
"""
FAKE = ROOT / "tests" / "experiments" / "fake_train.py"


@pytest.fixture
def planned(tmp_path):
    def make(more=CHAIN, change=("", "")):
        path = tmp_path / "study.yaml"
        text = STUDY.partition("controls:")[0].replace(*change)
        path.write_text(text.format(ds=ROOT / "ds_configs" / "zero2.json") + more)
        study = read_study(path)
        return make_plan(study, lambda c: price(c, study.ds_config), threads=1, command=["sweep"])

    return make


def by_arm(plan, seed=0):
    return {run.arm: run for run in plan.runs if run.seed == seed}


def test_rounds_prune_each_other_and_controls_differ_in_one_thing(planned):
    plan, configs = planned()
    made = [arm.name for arm in plan.arms if arm.kind == "ticket"]
    assert made == [
        *("imp.1", "imp.1.random", "imp.1.reinit", "imp.2"),  # one round is one shot
        *("imp.3", "imp.3.one_shot", "imp.3.random", "imp.3.reinit"),
    ]
    assert [round(plan.arm(f"imp.{n}").density, 3) for n in (1, 2, 3)] == [0.8, 0.64, 0.512]
    runs = by_arm(plan)
    third = runs["imp.3"]
    assert (third.mask_of, third.weights_of, third.weights_step) == (
        "imp.2/seed0", "dense/seed0", 2
    )  # fmt: skip
    assert third.waits_for == ("imp.2/seed0", "dense/seed0") and third.since_of is None
    assert runs["imp.3.one_shot"].mask_of == "dense/seed0"
    assert runs["imp.3.random"].mask_of == "imp.2/seed0"
    reinit = runs["imp.3.reinit"]
    assert (reinit.mask_of, reinit.weights_of, reinit.weights_step) == (
        "imp.2/seed0", "dense/seed7", 0
    )  # fmt: skip
    assert by_arm(plan, 7)["imp.3.reinit"].weights_of == "dense/seed0"
    tickets = {name: configs[name].topology.ticket for name in made}
    assert (tickets["imp.3.one_shot"].prune, tickets["imp.3.one_shot"].times) == (0.2, 3)
    assert tickets["imp.3.random"].positions == "random"
    assert tickets["imp.3"] == tickets["imp.3.reinit"] == tickets["imp.1"]
    # The first arm keeps what the others take, and no other does.
    kept = configs["dense"].checkpoint
    assert kept.keep_steps == (2,) and kept.initial
    assert configs["imp.1"].checkpoint == configs["sparse"].checkpoint
    assert plan.arm("imp.3").differences[-2:] == (
        "topology.path: null -> the end of imp.2",
        "init_from: null -> dense at step 2",
    )
    assert not any("checkpoint" in line for line in plan.arm("imp.3").differences)
    assert plan.arm("imp.3.random").label == "imp.3: random"
    planned_pairs = {(c.arm, c.against) for c in plan.contrasts()}
    assert ("imp.3", "dense") in planned_pairs and ("imp.3.random", "dense") not in planned_pairs


def test_a_mask_found_on_one_domain_is_trained_on_all(planned):
    more = """
chains:
  imp: {of: dense, rounds: 2, prune: 0.5, scope: layer, find: {phases: {order: [a]}}}
analysis: {contrasts: [{arm: imp.2, against: dense}]}
"""
    plan, configs = planned(more)
    runs = by_arm(plan)
    assert [a.name for a in plan.arms if a.role == "link"] == ["imp.find0", "imp.find1"]
    assert runs["imp.find0"].waits_for == ()
    assert runs["imp.find1"].mask_of == runs["imp.1"].mask_of == "imp.find0/seed0"
    assert runs["imp.2"].mask_of == "imp.find1/seed0"
    assert runs["imp.2"].weights_of == "imp.find0/seed0"
    assert configs["imp.find1"].phases.order == ("a",) and configs["imp.2"].phases.order == ()
    assert configs["imp.2"].topology.ticket.scope == "layer"
    assert configs["imp.find0"].checkpoint.initial and not configs["dense"].checkpoint.initial
    assert plan.with_needed(["imp.2"]) == tuple(
        run for run in plan.runs if run.arm in ("imp.find0", "imp.find1", "imp.2")
    )
    assert [plan.rank(runs[f"imp.{n}"]) for n in (1, 2)] == [1, 2]


def test_links_of_written_arms(planned):
    more = """
links:
  moved: {mask: dense, weights: dense, step: 3}
  again: {weights: sparse}
"""
    arms = """arms:
  moved:
    topology: {{kind: ticket, role: update, density: 0.05, ticket: {{score: movement}}}}
  again: {{}}
"""
    plan, configs = planned(more, change=("arms:\n", arms))
    runs = by_arm(plan)
    assert runs["moved"].since_of == "dense/seed0" and configs["dense"].checkpoint.initial
    assert configs["dense"].checkpoint.keep_steps == (3,)
    options = run_options(Path("study"), plan, runs["moved"])
    base = Path("study").resolve() / "runs" / "dense" / "seed0"
    assert options[-3:] == [
        f'topology.path="{base}"',
        f'topology.ticket.since="{base / "initial" / "step_0"}"',
        f'init_from="{base / "kept" / "step_3"}"',
    ]
    sparse = base.parents[1] / "sparse" / "seed0"
    assert run_options(Path("study"), plan, runs["again"])[-1] == f'init_from="{sparse}"'
    assert [round(plan.arm(arm).density, 3) for arm in ("again", "moved")] == [0.1, 0.05]


def test_controls_of_a_ticket_take_what_it_takes(planned):
    more = CHAIN + "controls: {update_only: [imp.1], stopped_early: [imp.1], joint: [all_sparse]}\n"
    runs = by_arm(planned(more)[0])
    assert runs["imp.1.update_only"].mask_of == "dense/seed0"
    assert runs["imp.1.stopped_early"].waits_for == ("imp.1/seed0",)
    assert "imp.1.random.joint" not in runs and runs["imp.2.joint"].mask_of == "imp.1/seed0"


def test_every_order_takes_from_its_own(planned):
    more = CHAIN + "orders: {ab: [a, b], ba: [b, a]}\ncontrols: {alone: [imp.1]}\n"
    plan, _ = planned(more)
    assert {run.name: run.mask_of for run in plan.runs if run.arm == "imp.1" and not run.seed} == {
        "imp.1/ab-seed0": "dense/ab-seed0",
        "imp.1/ba-seed0": "dense/ba-seed0",
    }
    alone = next(run for run in plan.runs if run.arm == "imp.1.alone.a")
    assert alone.mask_of == "dense/ab-seed0"


def test_the_plan_of_another_chain_is_another_study(planned):
    digests = [
        planned(more)[0].digest for more in (CHAIN, CHAIN.replace("rewind: 2", "rewind: 3"), "")
    ]
    assert len(set(digests)) == 3


def test_planning_counts_a_ticket_before_it_is_there(planned):
    _, configs = planned()
    found = Counter().counts(configs["imp.3"])
    assert found.density_masked == pytest.approx(0.512, abs=1e-3)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("chains: {c: {of: nobody, rounds: 1}}", "chains.c.of: there is no arm nobody"),
        ("chains: {c: {of: dense, rounds: 1, at: [2]}}", "at: there is no round 2; there are 1"),
        ("chains: {c: {of: dense, rounds: 1, rewind: 11}}", r"keep_steps=\[11\]: the run has 10"),
        ("chains: {c: {of: dense, rounds: 0}}", "rounds must be >= 1"),
        ("links: {nobody: {mask: dense}}", "links: there is no arm nobody; there are"),
        ("links: {sparse: {weights: nobody}}", "links.sparse: there is no arm nobody"),
        ("links: {sparse: {mask: dense}}", "links.sparse.mask: needs topology.kind ticket"),
        ("links: {sparse: {step: 3}}", "step and other_seed say which weights"),
        ("links: {sparse: {weights: sparse}}", "sparse would wait for itself"),
        (
            "links: {sparse: {weights: dense}, dense: {weights: sparse}}",
            "would wait for itself; take from another arm",
        ),
        (
            "links: {sparse: {weights: dense, other_seed: true}}\nseeds: 1",
            "links.sparse.other_seed: the study has one seed",
        ),
        (
            "tune: {keys: {optimizer.lr: [0.1, 0.2]}, on: {seeds: [9], order: [b, a]}}\n" + CHAIN,
            "tune: imp.1 begins with what a run of imp|tune: imp.1 begins with what a run of dense",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_any_work(planned, more, words):
    change = ("seeds: [0, 7]\n", "") if "seeds: 1" in more else ("name: small", "name: small")
    with pytest.raises(UserError, match=words):
        planned(more + "\n", change=change)


def test_a_ticket_of_nobody_is_refused(planned):
    with pytest.raises(UserError, match="odd has topology.kind ticket; say of which arm"):
        planned("", change=("arms:\n", "arms:\n  odd: {{topology: {{kind: ticket}}}}\n"))


class _Stop(Exception):
    pass


def make_runner(folder, plan, stop_at):
    """A runner that is stopped as soon as a run of an arm is at work."""

    def watch(runner):
        if any(active.run.arm == stop_at for active in runner.active):
            raise _Stop

    place = LocalPlace(slots=2, threads=1)
    return Runner(folder, plan, place, train=python_script(FAKE), watch=watch)


def tickets(folder, plan):
    return {
        run.name: json.loads((run_folder(folder, run) / "ticket.json").read_text())
        for run in plan.runs
    }


def test_a_study_that_is_stopped_at_every_link_ends_with_the_same_tickets(planned, tmp_path):
    chain = "chains: {imp: {of: dense, rounds: 2, rewind: 2, controls: [reinit], at: [2]}}\n"
    plan, _ = planned(chain)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
        write_plan(folder, plan)
    assert make_runner(whole, plan, None).run()
    for arm in ("dense", "imp.1", "imp.2", "imp.2.reinit"):
        with pytest.raises(_Stop):
            make_runner(cut, plan, arm).run()
    assert make_runner(cut, plan, None).run()
    found = tickets(whole, plan)
    assert found == tickets(cut, plan)
    # dense -> imp.1 -> imp.2, with the early weights of dense in each
    second = found["imp.2/seed0"]
    assert second["topology.path"][1]["topology.path"][1] == {"run": "dense/0"}
    assert second["init_from"] == ["step_2", {"run": "dense/0"}]
    assert found["imp.2.reinit/seed0"]["init_from"] == ["step_0", {"run": "dense/7"}]
