"""Study files: laid-out arms, grids, seeds, and the mistakes a user can make in one."""

from pathlib import Path

import pytest

from sparsecl.engine.price import price
from sparsecl.errors import UserError
from sparsecl.experiments.study.build_plan import make_plan
from sparsecl.experiments.study.study_file import read_study
from sparsecl.methods.config import MethodsConfig
from sparsecl.metrics.significance import reach

FOLDER = Path(__file__).resolve().parents[3] / "launch" / "experiments"
STUDIES = sorted(path for path in FOLDER.glob("*.yaml") if path.stem != "template")

SMALL = """
name: small
base: {topology: {density: 0.1}, optimizer: {lr: 1.0e-3}}
scales:
  tiny: {seeds: 2, run: {phases: {steps: 5}}}
  large: {seeds: [3, 5], run: {phases: {steps: 500}}}
arms:
  dense: {topology: {kind: dense}}
  sparse: {}
"""


@pytest.fixture
def study_of(tmp_path):
    def make(text, **options):
        path = tmp_path / "study.yaml"
        path.write_text(text)
        return read_study(path, **options)

    return make


def test_later_pieces_are_laid_over_earlier_ones(study_of, tmp_path):
    other = tmp_path / "base.yaml"
    other.write_text("optimizer: {lr: 5.0e-4}\nbatch: {sequences: 4}\n")
    found = study_of(SMALL, scale="large", base=other, overrides=["batch.sequences=2"])
    dense, sparse = (setting.config for setting in found.settings)
    assert (dense.topology.kind, sparse.topology.kind) == ("dense", "er_fixed")
    assert dense.topology.density == sparse.topology.density == 0.1  # of the base
    assert dense.phases.steps == 500 and dense.optimizer.lr == 5.0e-4  # scale, then base file
    assert dense.batch.sequences == 2  # then the command line
    assert found.seeds == (3, 5)


def test_seeds_and_the_first_scale(study_of):
    found = study_of(SMALL)
    assert (found.scale, found.seeds) == ("tiny", (0, 1))
    assert study_of(SMALL, seeds=4).seeds == (0, 1, 2, 3)


GRIDS = """
name: grids
grids:
  - design: one_at_a_time
    axes:
      a: {low: {topology: {density: 0.1}}, high: {topology: {density: 0.3}}}
      b: {x: {optimizer: {lr: 1.0e-3}}, y: {optimizer: {lr: 2.0e-3}}, z: {optimizer: {lr: 3.0e-3}}}
  - design: factorial
    axes:
      a: {low: {topology: {density: 0.1}}, high: {topology: {density: 0.3}}}
      b: {x: {optimizer: {lr: 1.0e-3}}, y: {optimizer: {lr: 2.0e-3}}}
"""


def test_grids_share_equal_cells(study_of):
    settings = {s.name: s for s in study_of(GRIDS).settings}
    # One at a time: the centre, a high, b y, b z. The factorial adds only the fourth corner.
    assert list(settings) == ["centre", "a_high", "b_y", "b_z", "a_high-b_y"]
    corner = settings["a_high-b_y"]
    assert corner.levels == {"a": "high", "b": "y"}
    assert (corner.config.topology.density, corner.config.optimizer.lr) == (0.3, 2.0e-3)


def test_a_scale_changes_its_arms_last(study_of):
    text = (
        "name: x\narms: {a: {topology: {density: 0.1}}, b: {topology: {density: 0.2}}}\n"
        "scales: {one: {}, two: {arms: {a: {topology: {density: 0.3}}}}}"
    )
    for scale, density in (("one", 0.1), ("two", 0.3)):
        a, b = study_of(text, scale=scale).settings
        assert (a.config.topology.density, b.config.topology.density) == (density, 0.2)
    with pytest.raises(UserError, match="there is no arm c; there are a, b"):
        study_of(text.replace("two: {arms: {a", "two: {arms: {c"), scale="two")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("name: x\narms: {a: {topology: {densty: 0.1}}}", {}, r"study.yaml:2: arms.a.topology.den"),
        ("name: x\narms: {a: {seed: x}}", {}, "arms.a.seed: a study gives every run its"),
        ("name: x\narms: {a: {name: y}}", {}, "arms.a.name: a study names its runs"),
        ("name: x\nbase: {seed: 3}\narms: {a: {}}", {}, "base.seed: a study gives every run"),
        (SMALL, {"overrides": ["seed=3"]}, "--set seed=3: seed: a study gives every run its seed"),
        ("name: x\narms: {a: {}, b: {}}", {}, "arms.b: is the same as a"),
        ("name: x", {}, "arms is missing"),
        ("name: ../x\narms: {a: {}}", {}, "must be letters, digits"),
        ("name: x\narms: {'a/b': {}}", {}, "arms: 'a/b' must be letters"),
        (SMALL, {"scale": "huge"}, "--scale huge: .* has no such scale; it has tiny, large"),
        (SMALL, {"overrides": ["phases.stepz=1"]}, "phases.stepz"),
        ("name: x\nseeds: [1, 1]\narms: {a: {}}", {}, "seeds: must be"),
        ("name: x\narms: {a: {}}\nlabels: {b: text}", {}, "labels: there is no arm b"),
        ("name: x\narms: {a: !!python/object:os.system {}}", {}, "tag"),
        (
            "name: x\ngrids: [{design: factorial, axes: {q: {'a b': {}}}}]",
            {},
            "'a b' must be letters",
        ),
    ],
)
def test_mistakes_are_named(study_of, text, options, message):
    with pytest.raises(UserError, match=message) as error:
        study_of(text, **options)
    assert "\n" not in str(error.value)


def test_a_run_config_laid_over_the_base_may_have_a_name_and_no_seed(study_of, tmp_path):
    other = tmp_path / "base.yaml"
    other.write_text("name: mine\nbatch: {sequences: 4}\n")
    assert study_of(SMALL, base=other).settings[0].config.batch.sequences == 4
    assert study_of(SMALL, base=other).ds_config.name == "zero1.json"
    other.write_text("seed: 5\n")
    with pytest.raises(UserError, match=r"base.yaml:1: seed: a study gives every run its seed"):
        study_of(SMALL, base=other)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_studies_of_the_project_can_be_read(path):
    scales = list(read_study(path).config.scales)
    assert scales[0] == "demo" and scales[-1].startswith(("100m", "5m"))
    assert {scale.partition("_")[0] for scale in scales[1:-1]} <= {"laptop"}
    for scale in scales:
        found = read_study(path, scale=scale)
        assert found.config.question and len(found.seeds) >= 6
        names = [setting.name for setting in found.settings]
        assert found.config.analysis.reference in names
    # ZeRO 2 costs the host half as much again in every micro-batch: not where a GPU waits for it.
    assert read_study(path, scale=scales[-1]).ds_config.name in ("zero0.json", "zero1.json")


@pytest.mark.parametrize("name", ["exp1_density", "exp2_topology", "exp3_crossover"])
@pytest.mark.parametrize("scale", ["demo", "laptop", "100m"])
def test_the_primary_setting_uses_no_mechanism_but_the_topology(name, scale):
    path = next(path for path in STUDIES if path.stem == name)
    for setting in read_study(path, scale=scale).settings:
        config = setting.config
        assert config.methods == MethodsConfig()  # no replay, penalty or rewiring
        assert config.topology.role == "topology" and config.topology.overrides == ()
        assert config.phases.optimizer_state == "keep" and config.phases.stages[0].lr_scale == 1.0
        assert not config.phases.joint and config.phases.until_loss is None


@pytest.mark.parametrize("name", ["exp1_density", "exp2_topology", "sensitivity"])
def test_planned_contrasts_of_topologies_are_of_one_density_and_can_reach_alpha(name):
    path = next(path for path in STUDIES if path.stem == name)
    study = read_study(path, scale="demo")
    ds = path.parents[2] / "ds_configs" / "zero2.json"
    plan, _ = make_plan(study, lambda config: price(config, ds), threads=1, command=[])
    for contrast in plan.contrasts():
        first, second = plan.arm(contrast.arm), plan.arm(contrast.against)
        if "dense" not in (first.kind, second.kind) and first.kind != second.kind:
            assert first.density == pytest.approx(second.density, rel=2e-3), contrast
    assert reach(len(plan.seeds), num_contrasts=len(plan.contrasts())) is None


@pytest.mark.parametrize(("scale", "switches"), [("demo", 20), ("laptop", 50), ("100m", 50)])
def test_exp3_switches_around_its_core_domain(scale, switches):
    path = next(path for path in STUDIES if path.stem == "exp3_crossover")
    found = read_study(path, scale=scale)
    order = found.settings[0].config.phases.order
    assert sum(a != b for a, b in zip(order, order[1:], strict=False)) == switches
    assert order[::2] == (found.config.analysis.core,) * (switches // 2 + 1)
