"""Plans: runs seed by seed, what sets arms apart, and that a folder keeps its study."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sparsecl.data.prepare import prepare
from sparsecl.engine.loop.phase_data import phase_stream
from sparsecl.engine.price import price
from sparsecl.engine.schedule import make_schedule
from sparsecl.errors import UserError
from sparsecl.experiments.study.build_plan import make_plan, open_study, plan_text
from sparsecl.experiments.study.study_file import read_study
from sparsecl.experiments.study.study_plan import arm_config, read_plan
from sparsecl.model.build import build_gpt

ROOT = Path(__file__).resolve().parents[3]

STUDY = """
name: small
ds_config: {ds}
base:
  model: {{preset: null, layers: 2, width: 32, heads: 4, context: 16}}
  tokenizer: {{kind: bytes}}
  data:
    domains:
      - {{name: a, source: synthetic, synthetic: {{train_tokens: 4000, validation_tokens: 100}}}}
      - {{name: b, source: synthetic, synthetic: {{train_tokens: 4000, validation_tokens: 100}}}}
  phases: {{steps: 5}}
  eval: {{every: 2}}
seeds: [0, 7]
arms:
  dense: {{topology: {{kind: dense}}}}
  sparse: {{topology: {{density: 0.25}}}}
controls: {{stopped_early: [sparse], equal_parameters: [sparse]}}
"""


@pytest.fixture
def planned(tmp_path):
    def make(more="", threads=1, change=("", ""), **options):
        path = tmp_path / "study.yaml"
        text = STUDY.format(ds=ROOT / "ds_configs" / "zero2.json").replace(*change)
        path.write_text(text + more)
        study = read_study(path, **options)
        return make_plan(
            study, lambda c: price(c, study.ds_config), threads=threads, command=["sweep", "a b"]
        )

    return make


def test_runs_are_made_seed_by_seed(planned):
    plan, _ = planned()
    arms = ["dense", "sparse", "sparse.equal_parameters", "sparse.stopped_early"]
    assert [run.name for run in plan.runs] == [f"{a}/seed{s}" for s in (0, 7) for a in arms]
    assert plan.runs[3].needs == "sparse/seed0" and plan.runs[7].needs == "sparse/seed7"
    assert plan.runs[0].needs is None
    assert plan.command == "sweep 'a b'"
    assert [(c.arm, c.against) for c in plan.contrasts()] == [("sparse", "dense")]


def test_differences_name_all_that_sets_an_arm_apart(planned):
    plan, _ = planned()
    assert plan.arm("dense").differences == ()
    assert plan.arm("sparse").differences == (
        'topology.kind: "dense" -> "er_fixed"',
        "topology.density: 0.1 -> 0.25",
    )
    stopped = plan.arm("sparse.stopped_early").differences
    assert stopped == ("phases.until_loss: null -> the losses of sparse after each phase",)
    narrow = plan.arm("sparse.equal_parameters").differences
    assert {line.split(":")[0] for line in narrow} <= {"model.width", "model.heads", "model.mlp"}


def test_counts_stand_in_the_plan(planned):
    plan, _ = planned()
    dense, sparse = plan.arm("dense"), plan.arm("sparse")
    # Two layers of 4 * 32^2 + 8 * 32^2 cells, embedding 257 x 32, positions 16, five norms.
    assert dense.live == dense.total == 24 * 32**2 + (257 + 16 + 5) * 32
    assert sparse.live == dense.live - round(0.75 * 24 * 32**2) and sparse.density == 0.25
    assert (sparse.steps, sparse.tokens) == (10, 10 * 16 * 16)
    text = plan_text(plan)
    assert "4 arms x 2 seeds = 8 runs" in text and "sparse.stopped_early" in text
    line = next(line for line in text.splitlines() if line.startswith("sparse "))
    assert float(line.split()[-1]) == pytest.approx(2560 / sparse.live, rel=0.01)


def test_a_study_folder_keeps_its_study(planned, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    plan, arms = planned()
    assert open_study(folder, plan, arms) == plan == read_plan(folder)
    assert arm_config(folder, "sparse").read_text().startswith("name: sparse\n")
    assert open_study(folder, replace(plan, command="another"), arms).command == plan.command
    with pytest.raises(UserError, match="holds another study .*seeds \\(0, 7\\) -> \\(0, 1, 2\\)"):
        open_study(folder, *planned(seeds=3))
    with pytest.raises(UserError, match="the run configs differ"):
        open_study(folder, *planned(overrides=["optimizer.lr=1.0e-4"]))
    with pytest.raises(UserError, match="planned with another analysis .alpha: 0.05 -> 0.01"):
        open_study(folder, *planned("analysis: {alpha: 0.01}"))
    with pytest.raises(UserError, match="--threads 2: the study was begun with 1"):
        open_study(folder, *planned(threads=2))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("analysis: {metrics: [F_first]}", "there is no measure F_first"),
        ("analysis: {contrasts: [{arm: x, against: dense}]}", "contrasts: there is no arm x"),
        ("analysis: {reference: x}", "analysis.reference: there is no arm x"),
        ("analysis: {core: c}", "analysis.core: there is no domain c; there are a, b"),
    ],
)
def test_analysis_names_what_is_there(planned, more, message):
    with pytest.raises(UserError, match=message):
        planned(more)


def test_arms_that_cannot_be_paired_are_refused(planned):
    grid = "grids: [{design: factorial, axes: {n: {big: {batch: {sequences: 8}}}}}]"
    with pytest.raises(UserError, match=r"centre minus dense .* \(batch\.sequences: 16 -> 8\)"):
        planned(grid)


@pytest.mark.parametrize(
    "change", ["phases: {steps: 6}", "phases: {order: [b, a]}", "batch: {sequences: 8}"]
)
def test_a_contrast_of_arms_that_read_other_data_says_so_or_is_refused(planned, change):
    arm = f"grids: [{{design: factorial, axes: {{n: {{x: {{{change}}}}}}}}}]\n"
    contrast = "{arm: centre, against: dense%s}"
    for analysis in ("", f"analysis: {{contrasts: [{contrast % ''}]}}"):
        with pytest.raises(
            UserError, match="analysis.contrasts: centre minus dense .*unpaired: tr"
        ):
            planned(arm + analysis)
    plan, _ = planned(arm + f"analysis: {{contrasts: [{contrast % ', unpaired: true'}]}}")
    (planned_contrast,) = plan.contrasts()
    assert not plan.paired(planned_contrast)
    (line,) = [line for line in plan_text(plan).splitlines() if "centre minus dense" in line]
    assert line.endswith(" against 1.0000, unpaired")


@pytest.mark.parametrize(
    "change",
    [
        "tokenizer: {train_bytes: 5}",
        "model: {context: 8}",
        "eval: {tokens: 50}",
        "data: {domains: []}",
    ],
)
def test_arms_are_scored_on_the_same_text_in_the_same_pieces(planned, change):
    change = change.replace("[]", "[{name: a, source: installed}]").replace("name: a", "name: code")
    with pytest.raises(UserError, match=r"arms\.centre: changes .* scored on the same text"):
        planned(f"grids: [{{design: factorial, axes: {{n: {{x: {{{change}}}}}}}}}]")


def test_what_an_arm_does_with_its_data_breaks_no_pair(planned):
    """The rate, the methods and the size are what studies compare."""
    levels = (
        "a: {optimizer: {lr: 0.1}}, b: {model: {width: 16}}, c: {methods: {replay: {share: 0.5}}}"
    )
    plan, _ = planned(f"grids: [{{design: factorial, axes: {{n: {{{levels}}}}}}}]")
    assert len(plan.contrasts()) == 4 and all(map(plan.paired, plan.contrasts()))


def test_the_seeds_that_a_family_needs_stand_in_the_dry_run(planned):
    text = plan_text(planned()[0])
    assert "planned contrasts on F_last (Holm over 1):\n  sparse minus dense: density 0.25" in text
    assert "note: 2 seeds: the smallest reachable p is 0.5 > 0.05; 6 seeds are needed" in text


def test_an_early_stop_needs_the_data_of_the_reference(planned):
    with pytest.raises(UserError, match="controls.stopped_early: sparse reads other data"):
        planned(change=("density: 0.25}", "density: 0.25}, phases: {steps: 6}"))


def test_arms_of_a_seed_read_the_same_and_start_the_same(planned, tmp_path):
    """Same rows in the same order; live weights equal those of the dense model, but for the
    factor that keeps the scale of each row."""
    _, arms = planned(overrides=[f"data.cache_dir={tmp_path / 'cache'}"])
    rows, states = [], []
    for name in ("dense", "sparse"):
        config = arms[name]
        data = prepare(config.data, config.tokenizer, context=16, seed=config.seed)
        plan = make_schedule(config, world_size=1)
        rows.append([phase_stream(config, plan, data, p).rows(np.arange(40)) for p in (0, 1)])
        model = build_gpt(config.model, config.topology, vocab_size=257, seed=config.seed)
        states.append({key: value.numpy() for key, value in model.state_dict().items()})
    assert np.array_equal(rows[0], rows[1])
    dense, sparse = states
    for name, weight in sparse.items():
        if name not in dense:
            continue  # masks
        live = weight != 0
        ratio = np.divide(weight, dense[name], out=np.zeros_like(weight), where=live)
        if weight.ndim == 2 and not live.all() and "embedding" not in name:
            degrees = live.sum(axis=1)
            expected = np.sqrt(weight.shape[1] / np.maximum(degrees, 1))[:, None] * live
            assert np.allclose(ratio, expected, rtol=1e-5), name
        else:
            assert np.array_equal(weight, dense[name]), name
