"""A run whose loss is taken in chunks of a few tokens is the plain one, in every layout."""

from pathlib import Path

import pytest

from tests.distributed import cases
from tests.distributed.pool import Pool
from tests.distributed.references.run import ReferenceRun, Trace
from tests.distributed.test_parity import TOLERANCE

pytestmark = pytest.mark.dist

UNTIED = ("model.form=llama", "model.kv_heads=2")


@pytest.fixture(scope="module")
def reference(shared_cache: Path) -> Trace:
    return ReferenceRun(str(shared_cache), ()).train()


@pytest.mark.parametrize(
    ("stage", "tp", "dp", "more"),
    [
        ("zero3", 2, 1, ()),
        cases.slow("zero0", 2, 1, ()),
        cases.slow("zero1", 1, 2, ()),
        cases.slow("zero2", 2, 1, ("parallel.sequence=true",)),
        cases.slow("zero3", 1, 1, ()),
    ],
)
def test_chunks_train_as_plain_pytorch_does(
    pool: Pool, shared_cache, tmp_path, reference, stage, tp, dp, more
):
    # 7 divides no micro-batch of 64 tokens.
    overrides = (f"parallel.tensor={tp}", f"batch.micro={4 // dp}", "speed.loss_chunk=7", *more)
    results = pool.run(cases.train, tp * dp, str(shared_cache), stage, overrides, str(tmp_path))
    for result in results:
        assert result["losses"] == pytest.approx(reference.losses, abs=TOLERANCE)
        assert result["norms"] == pytest.approx(reference.norms, abs=1e-4)
        assert result["audit"] == (4, 0)
    found = cases.masters(tmp_path)
    for name, weight in reference.weights.items():
        assert found[name][: len(weight)].sub(weight).abs().max() < TOLERANCE, name


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["zero1", "zero3"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_head_of_its_own_and_scores_are_those_of_whole_logits(
    pool: Pool, shared_cache, tmp_path, stage, precision
):
    found = []
    for chunk in (0, 7):
        folder = tmp_path / str(chunk)
        overrides = (*UNTIED, f"precision={precision}", f"speed.loss_chunk={chunk}")
        found += pool.run(cases.train, 2, str(shared_cache), stage, overrides, str(folder))[:1]
    close = 1e-5 if precision == "fp32" else 2e-2
    assert found[1]["losses"] == pytest.approx(found[0]["losses"], abs=close)
    scores = [[r["loss_sum"] / r["num_tokens"] for r in run["evals"]] for run in found]
    assert scores[1] == pytest.approx(scores[0], abs=close) and scores[0]
