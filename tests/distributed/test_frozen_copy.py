"""A teacher gives what the model gave at its moment, whatever is trained afterwards."""

from typing import Any

import numpy as np
import pytest
import torch

from sparsecl.engine.loop.outputs import forward
from tests.distributed import cases
from tests.distributed.pool import Pool

pytestmark = pytest.mark.dist

ROWS = np.random.default_rng(0).integers(0, 257, (4, 17))


def given(outputs: Any) -> dict[str, torch.Tensor]:
    ids, log_probs = outputs.top(7)
    found = {"losses": outputs.losses, "ids": ids, "log_probs": log_probs}
    return {key: value.detach().clone() for key, value in found.items()}


def teach(cache: str, stage: str, overrides: tuple[str, ...], out: str) -> list[Any]:
    """The model's outputs after 2 steps, those of a copy then and 5 steps later, those of a copy
    made from kept masters then, and the model's own at the end."""
    trainer, _, built = cases.assemble(cases.load(cache, overrides), stage, out)
    context, tokens = trainer.context, torch.from_numpy(ROWS)

    def train(steps: int) -> None:
        for _ in range(steps):
            trainer._train_step(0.01, audited=False, logged=False)
            trainer.position.step += 1
            trainer.position.phase_step += 1

    def model() -> Any:
        built.engine.eval()
        with torch.no_grad():
            found = given(forward(built.engine, tokens, with_logits=True))
        built.engine.train()
        return found

    train(2)
    masters = {item.name: item.master.clone() for item in built.slices}
    teacher = context.frozen_copy()
    found = [model(), given(teacher(ROWS))]
    train(5)
    found += [given(teacher(ROWS)), given(context.frozen_copy(masters)(ROWS)), model()]
    built.guard.audit(7)
    return found


PACKED = ("topology.storage=packed",)


@pytest.mark.parametrize(
    ("stage", "tp", "dp", "more"),
    [
        ("zero0", 1, 1, (*PACKED, "topology.keep_expansion=true")),
        ("zero2", 1, 2, ("precision=bf16",)),
        ("zero3", 2, 1, ("precision=bf16",)),
        cases.slow("zero0", 2, 1, ("precision=bf16", *PACKED)),
        cases.slow("zero2", 2, 2, ()),
        cases.slow("zero3", 1, 2, (*PACKED,)),
        cases.slow("zero0", 1, 1, ("topology.role=update", "precision=bf16")),
    ],
)
def test_a_teacher_stays_what_the_model_was(
    pool: Pool, shared_cache, tmp_path, stage, tp, dp, more
):
    overrides = (f"parallel.tensor={tp}", f"batch.micro={8 // dp}", *more)
    for found in pool.run(teach, tp * dp, str(shared_cache), stage, overrides, str(tmp_path)):
        then, *copies, later = found
        for copy in copies:
            assert all(copy[key].equal(then[key]) for key in then)
        assert not later["losses"].allclose(then["losses"], atol=1e-3)
