"""`needs_update`: what the optimizer has done to each weight, in every stage."""

from collections.abc import Collection
from typing import Any

import pytest
import torch

from sparsecl.methods.base import Method
from sparsecl.methods.context import MethodContext
from sparsecl.methods.several import Methods
from sparsecl.optim.slice import Slice
from tests.distributed import cases

pytestmark = pytest.mark.dist


class Walk(Method):
    """Sums of updates, which must lead from the first weights to the last."""

    name = "probe"
    needs_update = True

    def __init__(self) -> None:
        super().__init__()
        self.sums: dict[str, torch.Tensor] = {}

    def after_update(self, context: MethodContext, items: Collection[Slice]) -> None:
        for item in items:
            step = item.master - context.before(item)
            self.sums[item.name] = self.sums.get(item.name, torch.zeros_like(step)) + step


def walked(cache: str, stage: str, overrides: tuple[str, ...], folder: str) -> Any:
    """(largest gap between the sum of all updates and the way that was made, that way)."""
    config = cases.load(cache, ("phases.steps=3", *overrides))
    trainer, _, built = cases.assemble(config, stage, folder)
    probe = Walk()
    built.guard.edits.append(lambda items: probe.after_update(trainer.context, items))
    built.guard.keeps_before = Methods([probe]).needs_update
    first = {item.name: item.master.clone() for item in built.slices}
    trainer.run()
    ways = {item.name: item.master - first[item.name] for item in built.slices}
    gaps = [float((ways[name] - probe.sums[name]).abs().max()) for name in ways]
    kept = built.guard._before
    return max(gaps), max(float(way.abs().max()) for way in ways.values()), len(kept)


@pytest.mark.parametrize(
    ("stage", "overrides"),
    [
        ("zero0", ()),
        ("zero3", ("topology.storage=packed",)),
        cases.slow("zero1", ("precision=bf16",)),
        cases.slow("zero2", ("parallel.tensor=2",)),
        cases.slow("zero3", ("parallel.tensor=2", "precision=bf16")),
    ],
)
def test_updates_lead_from_the_first_weights_to_the_last(
    pool, shared_cache, tmp_path, stage, overrides
):
    for gap, way, kept in pool.run(walked, 2, str(shared_cache), stage, overrides, str(tmp_path)):
        assert gap < 1e-6 < 1e-3 < way and kept == 0
