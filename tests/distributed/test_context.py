"""Sums over the model, and what a method replaces, whatever the layout."""

import math
from typing import Any

import pytest
import torch

from sparsecl.methods.base import Method
from sparsecl.methods.context import MethodContext
from sparsecl.methods.several import Methods
from tests.distributed import cases

pytestmark = pytest.mark.dist

LAYOUTS = [("zero0", 2, 1), ("zero3", 2, 1), cases.slow("zero2", 2, 2), cases.slow("zero3", 1, 2)]


def asked(cache: str, stage: str, overrides: tuple[str, ...], folder: str) -> dict[str, float]:
    """Of the weights that a run begins with."""
    trainer, _, built = cases.assemble(cases.load(cache, overrides), stage, folder)
    masters = {item.name: item.master for item in built.slices}
    shifted = {name: value + 1.0 for name, value in masters.items()}
    embedding = {name: value for name, value in masters.items() if "norm" not in name}
    return {
        "square": trainer.context.dot(masters, masters),
        "sum": trainer.context.dot(masters, shifted) - trainer.context.dot(masters, masters),
        "some": trainer.context.dot(masters, embedding),
        "maximum": float(trainer.context.maximum(masters)),
        "minimum": -float(trainer.context.maximum({name: -v for name, v in masters.items()})),
    }


@pytest.mark.parametrize(("stage", "tp", "dp"), LAYOUTS)
def test_sums_count_every_weight_once(pool, shared_cache, tmp_path, stage, tp, dp):
    """What is replicated over tp or dp too: equal to a run that is not split."""
    alone = pool.run(asked, 1, str(shared_cache), "zero0", (), str(tmp_path))[0]
    assert alone["some"] < alone["square"] and alone["minimum"] < 0.0 < alone["maximum"]
    overrides = (f"parallel.tensor={tp}",)
    for found in pool.run(asked, tp * dp, str(shared_cache), stage, overrides, str(tmp_path)):
        assert found == pytest.approx(alone, rel=1e-6)


class Ones(Method):
    """Every gradient is one, whatever the loss says."""

    name = "probe"

    def after_backward(self, context: MethodContext) -> None:
        for item in context.slices:
            found = context.gradient(item)
            if found is not None:
                context.set_gradient(item, torch.ones_like(found))


def stepped(cache: str, stage: str, overrides: tuple[str, ...], folder: str) -> Any:
    """How far one step of plain gradient descent has moved live and absent weights, by lr."""
    config = cases.load(cache, (*overrides, "phases.steps=1", "schedule.warmup=0"))
    trainer, _, built = cases.assemble(config, stage, folder)
    trainer.context.methods = Methods([Ones()])
    before = {item.name: item.master.clone() for item in built.slices}
    trainer.run()
    absent = {name: entry.dead for name, entry in trainer.context.sparse.items()}
    moved: tuple[set[float], set[float]] = (set(), set())
    for item in built.slices:
        way = ((before[item.name] - item.master) / config.optimizer.lr).cpu()
        dead = torch.zeros_like(way, dtype=torch.bool)
        if absent.get(item.name) is not None:
            dead = item.part(absent[item.name]).cpu()
        for found, where in zip(moved, (~dead, dead), strict=True):
            found |= {round(value, 3) for value in way[where].tolist()}
    return moved


@pytest.mark.parametrize(("stage", "tp", "dp"), LAYOUTS)
def test_a_gradient_that_is_replaced_reaches_live_weights_alone(
    pool, shared_cache, tmp_path, stage, tp, dp
):
    overrides = (
        f"parallel.tensor={tp}",
        "optimizer={kind: sgd, lr: 0.25, momentum: 0.0, weight_decay: 0.0, clip: 0.0}",
    )
    for live, dead in pool.run(
        stepped, tp * dp, str(shared_cache), stage, overrides, str(tmp_path)
    ):
        assert live == {1.0} and dead <= {0.0}


class Silent(Method):
    """Every logit is zero when a phase's steps are done."""

    name = "probe"

    def phase_trained(self, context: MethodContext) -> None:
        context.write("norm.weight", torch.zeros_like(context.whole("norm.weight")))


def scored(cache: str, overrides: tuple[str, ...], folder: str) -> list[tuple[str, float]]:
    """When the domain was scored, and its loss."""
    trainer, *_ = cases.assemble(cases.load(cache, overrides), "zero2", folder)
    trainer.context.methods = Methods([Silent()])
    trainer.run()
    found = [record for record in trainer.records if record["kind"] == "eval"]
    return [(one["at"], one["loss_sum"] / one["num_tokens"]) for one in found]


def test_what_is_written_when_a_phase_is_trained_is_evaluated(pool, shared_cache, tmp_path):
    (found,) = pool.run(scored, 1, str(shared_cache), ("phases.steps=1",), str(tmp_path))
    assert {at for at, _ in found} == {"start", "phase_end"}
    for at, loss in found:
        assert (loss == pytest.approx(math.log(257))) == (at == "phase_end")
