"""Studies of streams: how arms are laid out and planned, and the mistakes a user can make."""

from pathlib import Path

import pytest

from sparsecl.errors import UserError
from sparsecl.experiments.study.stream_plan import make_stream_plan, stream_plan_text
from sparsecl.experiments.study.stream_study import is_of_streams, read_stream_study
from sparsecl.metrics.significance import reach
from sparsecl.streams.config import StreamRunConfig
from sparsecl.streams.size import network_size

ROOT = Path(__file__).resolve().parents[3] / "launch"
STUDIES = sorted((ROOT / "streams" / "studies").glob("*.yaml"))

SMALL = """
name: small
base:
  stream: {tasks: 4, samples_per_task: 20}
  learner: {width: 6, layers: 2}
  panel: {samples: 10}
scales:
  tiny: {seeds: 2, run: {optimizer: {lr: 0.1}}, arms: {fast: {optimizer: {lr: 0.5}}}}
  large: {run: {stream: {tasks: 40}}}
seeds: [3, 4, 5]
arms:
  dense: {}
  fast: {optimizer: {lr: 0.01}}
  sparse: {topology: {kind: er_fixed, density: 0.5}}
"""


def size(config):
    """A network on 10 pixels and 3 classes."""
    return network_size(config, 10, 3)


@pytest.fixture
def read(tmp_path):
    def make(text=SMALL, **options):
        path = tmp_path / "study.yaml"
        path.write_text(text)
        return read_stream_study(path, **options)

    return make


def plan_of(study):
    return make_stream_plan(study, size, threads=1, command=["sweep"])


def test_later_pieces_are_laid_over_earlier_ones(read, tmp_path):
    other = tmp_path / "base.yaml"
    other.write_text("name: x\nseeds: 9\noptimizer: {momentum: 0.5}\nlearner: {width: 7}\n")
    arms = read(base=other, overrides=["learner.width=8"]).arms
    assert [arm.optimizer.lr for arm in arms.values()] == [0.1, 0.5, 0.1]
    assert {(arm.optimizer.momentum, arm.learner.width) for arm in arms.values()} == {(0.5, 8)}
    assert {(arm.seed, arm.seeds) for arm in arms.values()} == {(0, 2)}  # of the scale
    large = read(scale="large").arms["dense"]
    assert (large.name, large.seed, large.seeds, large.stream.tasks) == ("dense", 3, 3, 40)


def test_an_arm_is_one_run_of_all_its_seeds(read):
    plan, configs = plan_of(read(scale="large"))
    assert [run.name for run in plan.runs] == ["dense/seeds", "fast/seeds", "sparse/seeds"]
    assert plan.seeds_of("fast") == [3, 4, 5] and list(configs) == ["dense", "fast", "sparse"]
    dense, _, sparse = plan.arms
    # 10 x 6 + 6 x 6 of the hidden layers, 6 x 3 behind them; 6 + 6 + 3 biases.
    assert (dense.live, dense.total, dense.density) == (129, 129, 1.0)
    assert (sparse.live, sparse.total, sparse.density) == (48 + 18 + 15, 129, 0.5)
    assert (dense.steps, dense.tokens) == (800, 800)
    assert sparse.differences[0] == 'topology.kind: "dense" -> "er_fixed"'
    assert "3 arms, 3 seeds each" in stream_plan_text(plan)


def test_a_dense_control_has_as_many_parameters(read):
    text = SMALL.replace("width: 6", "width: 60") + "controls: {equal_parameters: [all_sparse]}\n"
    plan, configs = plan_of(read(text))
    control, sparse = plan.arm("sparse.equal_parameters"), plan.arm("sparse")
    assert (control.of, control.role, control.kind) == ("sparse", "equal_parameters", "dense")
    assert abs(control.live - sparse.live) <= 0.02 * sparse.live
    first, second = configs["sparse.equal_parameters"].learner.widths
    assert control.live == 10 * first + first * second + second * 3 + first + second + 3
    assert [c.arm for c in plan.contrasts()] == ["fast", "sparse"]  # planned: no controls


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("sparse: {topology", "sparse: {seed: 3, topology", "arms.sparse.seed: a study gives"),
        ("sparse: {topology", "sparse: {seeds: 3, topology", "arms.sparse.seeds: a study gives"),
        ("lr: 0.01}", "lr: 0.01}, learner: {wdth: 3}", "did you mean width"),
        ("seeds: [3, 4, 5]", "seeds: [3, 5]\nds_config: x", "ds_config: is for studies of text"),
        ("seeds: 2, ", "seeds: [3, 5], ", "seeds: the networks of a stream have seeds one after"),
        ("{optimizer: {lr: 0.01}}", "{optimizer: {lr: 0.1}}", None),
        ("arms: {fast: {", "arms: {fats: {", "there is no arm fats; there are dense, fast, sparse"),
        ("fast: {optimizer: {lr: 0.01}}", "fast: {optimizer: {lr: 0.003}}\n  slow: {}",
         "arms.slow: is the same as dense"),
        ("tasks: 4,", "tasks: 4, kind: class_incremental,",
         "stream.kind=class_incremental has other figures"),
        ("arms:\n  dense", "analysis: {core: a}\narms:\n  dense", "core is about text"),
        ("arms:\n  dense", "analysis: {reference: x}\narms:\n  dense", "reference: there is no"),
        ("arms:\n  dense", "analysis: {metrics: [F_last]}\narms:\n  dense",
         "there is no measure F_last; there are best_window, last_third, lost"),
        ("arms:\n  dense", "analysis: {contrasts: [{arm: x, against: dense}]}\narms:\n  dense",
         "contrasts: there is no arm x"),
        ("arms:\n  dense", "controls: {equal_parameters: [x]}\narms:\n  dense",
         "equal_parameters: there is no arm x"),
        ("lr: 0.01}}", "lr: 0.01}, stream: {tasks: 5}}", "fast minus dense is no contrast of"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(read, old, new, text):
    changed = SMALL.replace(old, new)
    assert changed != SMALL
    if text is None:  # the scale gives it another rate, so it is no twin
        plan_of(read(changed))
        return
    with pytest.raises(UserError) as caught:
        plan_of(read(changed))
    assert text in str(caught.value) and "\n" not in str(caught.value)


def test_arms_on_other_tasks_are_compared_if_the_study_says_so(read):
    text = SMALL.replace("lr: 0.01}}", "lr: 0.01}, stream: {tasks: 5}}")
    text += "analysis: {contrasts: [{arm: fast, against: dense, unpaired: true}]}\n"
    plan, _ = plan_of(read(text))
    assert not plan.paired(plan.contrasts()[0])


def test_a_scale_that_is_not_there(read):
    with pytest.raises(UserError, match="--scale huge: .* it has tiny, large"):
        read(scale="huge")


def test_which_studies_are_of_streams(tmp_path):
    assert STUDIES and all(is_of_streams(path) for path in STUDIES)
    assert not any(is_of_streams(path) for path in (ROOT / "experiments").glob("*.yaml"))
    assert not is_of_streams(ROOT / "streams" / "small.yaml")


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_studies_that_come_with_it_can_be_planned_at_every_scale(path):
    for scale, (inputs, large) in {
        "small": (64, False), "laptop": (784, False), "paper": (784, True)
    }.items():  # fmt: skip
        study = read_stream_study(path, scale=scale)
        plan, _ = make_stream_plan(
            study, lambda c, inputs=inputs: network_size(c, inputs, 10), threads=1, command=[]
        )
        assert len({arm.tokens for arm in plan.arms}) == 1
        assert not large or plan.arms[0].tokens == 1_500_000
        assert reach(len(plan.seeds), alpha=0.05, num_contrasts=len(plan.contrasts())) is None


def test_no_stream_is_planned_that_a_default_config_is_not(read):
    """What a study lays over the default reaches every arm's config whole."""
    arm = read(scale="large").arms["sparse"]
    assert isinstance(arm, StreamRunConfig) and arm.optimizer == StreamRunConfig().optimizer
