"""From config to phases, stages and batches; and every mistake that a schedule can find."""

import pytest

from sparsecl import config as configs
from sparsecl.engine.run_config import RunConfig
from sparsecl.engine.schedule import learning_rate, make_schedule
from sparsecl.errors import UserError

DOMAINS = "data.domains=[{name: a, source: synthetic}, {name: b, source: synthetic}]"


def schedule(*overrides: str, world_size: int = 1):
    return make_schedule(
        configs.load(RunConfig, None, [DOMAINS, *overrides]), world_size=world_size
    )


def test_order_steps_and_tokens():
    found = schedule("phases={order: [b, a, b], steps: [5, 6, 7]}")
    assert found.order == [1, 0, 1]
    assert [phase.num_steps for phase in found.phases] == [5, 6, 7]
    assert found.num_steps == 18
    assert [p.num_steps for p in schedule("phases.tokens=2049").phases] == [2, 2]  # rounded up
    assert [p.num_steps for p in schedule().phases] == [200, 200]


def test_stages_cover_the_phase_with_curves_of_their_own():
    overrides = (
        "phases={steps: 10, stages: [{name: x, share: 0.4}, {name: y, share: 0.6, lr_scale: 0.5}]}",
        "schedule={kind: linear, warmup: 0.0, final: 0.0}",
        "optimizer.lr=1.0",
    )
    config = configs.load(RunConfig, None, [DOMAINS, *overrides])
    phase = make_schedule(config, world_size=1).phases[1]
    assert [(stage.begin, stage.end) for stage in phase.stages] == [(0, 4), (4, 10)]
    rates = [learning_rate(config, phase, step) for step in range(10)]
    assert rates == pytest.approx([1, 2 / 3, 1 / 3, 0, 0.5, 0.4, 0.3, 0.2, 0.1, 0])


@pytest.mark.parametrize(
    ("world_size", "tensor", "micro", "accumulation"),
    [(1, 1, 8, 2), (2, 1, 8, 1), (4, 1, 4, 1), (4, 2, 8, 1), (16, 1, 1, 1)],
)
def test_micro_batch_fits_itself_to_the_ranks(world_size, tensor, micro, accumulation):
    found = schedule(f"parallel.tensor={tensor}", world_size=world_size)
    assert (found.micro, found.accumulation) == (micro, accumulation)
    assert found.micro * found.accumulation * found.dp_size == 16


@pytest.mark.parametrize(
    ("overrides", "world_size", "message"),
    [
        (("parallel.tensor=3",), 4, "parallel.tensor=3 does not divide the number of processes, 4"),
        (("batch.micro=3",), 1, "batch.sequences=16"),
        ((), 32, "batch.sequences=16"),
        (("phases.steps=[1, 2, 3]",), 1, "phases.steps has 3 numbers for 2 phases"),
        (("phases.order=[a, c]",), 1, "phases.order: no domain is named 'c'"),
        (("methods.replay.share=0.3",), 1, "methods.replay.share=0.3 of the 8 sequences"),
        (("phases.patience=2", "eval.every=0"), 1, "phases.patience needs evaluations"),
        (("phases.until_loss=[2]", "eval.every=0"), 1, "phases.until_loss needs evaluations"),
        (("phases.until_loss=[2, 2, 2]",), 1, "phases.until_loss has 3 losses for 2 phases"),
        (("phases={joint: true, patience: 2}",), 1, "phases.joint has one phase of all domains"),
        (("phases.offset=-1",), 1, "phases.offset must be >= 0, got -1"),
        (("model.heads=2", "parallel.tensor=4"), 4, "model.heads=2 is not divisible by"),
        (
            ("model.context=127", "parallel={tensor: 2, sequence: true}"),
            2,
            "model.context=127 is not divisible by parallel.tensor=2, over which "
            "parallel.sequence=true spreads positions. Use model.context=126 or 128, or",
        ),
        (
            ("phases={steps: 2, stages: [{name: x, share: 0.1}, {name: y, share: 0.9}]}",),
            1,
            "stage 'x' gets no step of 2",
        ),
        (
            ("phases.steps=1", "methods.packnet={}"),
            1,
            "stage 'retrain' gets no step of 1; raise the steps of the phase",
        ),
        (
            ("phases.patience=2", "eval.every=5", "methods.packnet={}"),
            1,
            "phases.patience: methods.packnet divides phases into stages, and a phase that ends",
        ),
        (
            ("phases.until_loss=[2]", "eval.every=5", "methods.packnet={}"),
            1,
            "phases.until_loss: methods.packnet divides phases into stages",
        ),
        (
            ("phases.stages=[{name: x, share: 1.0}]", "methods.packnet={}"),
            1,
            "phases.stages: methods.packnet divides phases itself",
        ),
    ],
)
def test_mistakes(overrides, world_size, message):
    with pytest.raises(UserError) as caught:
        schedule(*overrides, world_size=world_size)
    assert message in str(caught.value)
