"""Controls: what each takes away, and that nothing else changes."""

from dataclasses import replace
from pathlib import Path

import pytest

from sparsecl import config as configs
from sparsecl.engine.price import price
from sparsecl.engine.run_config import RunConfig
from sparsecl.errors import UserError
from sparsecl.experiments.study.controls import controls, each_alone, equal_parameters, longer
from sparsecl.experiments.study.study_file import ControlsConfig, Setting

DS = Path(__file__).resolve().parents[3] / "ds_configs" / "zero2.json"
BASE = configs.load(
    RunConfig,
    None,
    [
        "model={preset: null, layers: 2, width: 96, heads: 4, context: 64}",
        "tokenizer.vocab_size=1024",
        "phases.steps=[10, 20, 30]",
        "phases.order=[code, math, code]",
        "eval.every=5",
    ],
)
DENSE = replace(BASE, topology=replace(BASE.topology, kind="dense"))


def sparse(density):
    return replace(BASE, topology=replace(BASE.topology, density=density))


def cost(config):
    return price(config, DS)


def made(**asked):
    settings = [Setting("dense", DENSE), Setting("five", sparse(0.05))]
    return {c.setting.name: c for c in controls(ControlsConfig(**asked), settings, "dense", cost)}


@pytest.mark.parametrize("density", [0.01, 0.05, 0.1, 0.2, 0.3])
@pytest.mark.parametrize("heads", [4, 12])
def test_narrow_models_have_the_live_parameters_within_one_percent(density, heads):
    def with_heads(config):
        return replace(config, model=replace(config.model, heads=heads))

    arm = with_heads(sparse(density))
    narrow = equal_parameters("arm", arm, with_heads(DENSE), cost)
    assert cost(narrow).live == pytest.approx(cost(arm).live, rel=0.01)
    assert narrow.topology.kind == "dense" and cost(narrow).density == 1.0
    shape = narrow.model.resolved()
    assert shape.width < 96 and 1.0 < shape.mlp / shape.width < 16.0
    # Nothing but the size and the topology is changed.
    assert replace(narrow, model=DENSE.model, topology=DENSE.topology) == with_heads(DENSE) or (
        replace(narrow, model=with_heads(DENSE).model) == with_heads(DENSE)
    )


def test_too_few_weights_for_any_width_is_an_error():
    tiny = replace(DENSE, model=replace(DENSE.model, width=4, heads=4, mlp=1))
    with pytest.raises(UserError, match="controls.equal_parameters: no dense model with 12 heads"):
        equal_parameters("tiny", tiny, replace(DENSE, model=replace(DENSE.model, heads=12)), cost)


def test_equal_flops_trains_longer():
    (control,) = made(equal_flops=("all_sparse",)).values()
    arm = cost(sparse(0.05))
    work = cost(control.setting.config).tokens * arm.flops_per_token
    dense = cost(DENSE)
    assert work == pytest.approx(dense.tokens * dense.flops_per_token, rel=0.02)
    assert longer(sparse(0.05), 2.5).phases.steps == (25, 50, 75)


def test_each_domain_alone_keeps_its_first_phase():
    alone = dict(each_alone(sparse(0.05)))
    assert list(alone) == ["code", "math"]
    assert alone["code"].phases.order == ("code",) and alone["code"].phases.steps == 10
    assert alone["math"].phases.offset == 1 and alone["math"].phases.steps == 20
    assert made(alone=("five",))["five.alone.math"].role == "alone"


def test_the_others_change_one_thing():
    found = made(update_only=("all_sparse",), joint=("dense",), stopped_early=("five",))
    assert list(found) == ["five.stopped_early", "five.update_only", "dense.joint"]
    update = found["five.update_only"].setting.config
    assert update == replace(sparse(0.05), topology=replace(sparse(0.05).topology, role="update"))
    joint = found["dense.joint"].setting.config
    assert joint == replace(DENSE, phases=replace(DENSE.phases, joint=True))
    stopped = found["five.stopped_early"]
    assert stopped.setting.config == DENSE and stopped.needs_losses and stopped.of == "five"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"joint": ("six",)}, "controls.joint: there is no arm six; there are dense, five"),
        ({"update_only": ("dense",)}, "controls.update_only: dense is dense"),
    ],
)
def test_controls_that_cannot_be_made(asked, message):
    with pytest.raises(UserError, match=message):
        made(**asked)
    with pytest.raises(UserError, match="analysis.reference: there is no arm none"):
        list(controls(ControlsConfig(), [Setting("a", BASE)], "none", cost))
    blind = replace(DENSE, eval=replace(DENSE.eval, every=0))
    settings = [Setting("dense", blind), Setting("five", sparse(0.05))]
    with pytest.raises(UserError, match="controls.stopped_early: five: .* eval.every > 0"):
        list(controls(ControlsConfig(stopped_early=("five",)), settings, "dense", cost))
