"""The gradient of whole matrices in real runs: that of a dense twin with zeros where absent."""

from typing import Any

import pytest
import torch

from sparsecl import dist
from sparsecl.methods.base import Method
from tests.distributed import cases
from tests.distributed.references.run import ReferenceRun
from tests.distributed.test_restore import _Silent

pytestmark = pytest.mark.dist


class Probe(Method):
    """Looks at the dense gradients of the first step."""

    name = "probe"

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, torch.Tensor] = {}

    def step_start(self, context) -> None:
        if context.progress.step == 0:
            context.arm_dense_gradients()

    def after_backward(self, context) -> None:
        if context.progress.step == 0:
            rows = context.rows(0, range(3))
            context.mean_gradients(rows)  # another backward pass, which is not the step's
            self.found = {name: context.dense_gradient(name).clone() for name in context.sparse}


def look(cache: str, stage: str, overrides: tuple[str, ...], folder: str) -> dict[str, Any]:
    trainer, _, _ = cases.assemble(cases.load(cache, overrides), stage, folder)
    probe = Probe()
    trainer.methods.methods.append(probe)
    phase = trainer.schedule.phases[0]
    trainer._begin_phase(phase)
    for _ in range(2):
        trainer._step_and_watch(phase, _Silent())
        assert all(entry.layer.tap is None for entry in trainer.context.sparse.values())
        assert not trainer.context._taps
    dims = {name: entry.partition_dim for name, entry in trainer.context.sparse.items()}
    return {"found": probe.found, "dims": dims, "tp_rank": dist.tp_rank()}


@pytest.fixture(scope="module")
def twin(shared_cache) -> dict[str, torch.Tensor]:
    """Gradients of the first step's loss without any mask."""
    run = ReferenceRun(str(shared_cache), ())
    run.model.masks = {}
    run.loss(run.rows(0, range(8)))[1].backward()
    return {name: run.params[name].grad for name in run.masks}


@pytest.mark.parametrize(
    ("stage", "tp", "dp", "extra"),
    [
        ("zero0", 1, 2, ()),
        ("zero2", 1, 2, ("topology.storage=packed",)),
        ("zero3", 1, 2, ("model.activation_checkpointing=true",)),
        ("zero2", 2, 1, ("parallel.sequence=true",)),
        ("zero2", 1, 1, ("topology.storage=packed", "topology.backend=csr")),
        cases.slow("zero3", 2, 2, ("topology.storage=packed",)),
        cases.slow("zero1", 1, 2, ("topology.backend=csr",)),
        cases.slow("zero2_offload", 1, 2, ()),
    ],
)
def test_it_is_that_of_the_dense_twin(pool, shared_cache, tmp_path, twin, stage, tp, dp, extra):
    overrides = (*extra, f"parallel.tensor={tp}", f"batch.micro={8 // dp // 2}")
    for rank in pool.run(look, tp * dp, str(shared_cache), stage, overrides, str(tmp_path)):
        assert rank["found"].keys() == twin.keys()
        for name, whole in twin.items():
            part = whole.chunk(tp, rank["dims"][name])[rank["tp_rank"]]
            torch.testing.assert_close(rank["found"][name], part, rtol=1e-4, atol=1e-6)
