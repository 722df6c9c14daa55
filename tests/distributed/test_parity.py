"""Every layout trains the same model: against plain PyTorch in one process.

Methods have the same test in test_methods.py.
"""

from pathlib import Path

import pytest

from tests.distributed import cases
from tests.distributed.pool import Pool
from tests.distributed.references.run import ReferenceRun, Trace

pytestmark = pytest.mark.dist

# Four ranks wait for each other on two cores: one such case in the short half of the suite.
LAYOUTS = [
    cases.slow(stage, tp, dp) if (tp, dp) == (2, 2) and stage != "zero2" else (stage, tp, dp)
    for stage in ("zero0", "zero1", "zero2", "zero3")
    for tp in (1, 2)
    for dp in (1, 2)
]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def reference(shared_cache: Path) -> Trace:
    return ReferenceRun(str(shared_cache), ()).train()


SPRINGS = "ewc: {strength: 0, sequences: 2}, si: {strength: 0}, mas: {strength: 0, sequences: 2}"


@pytest.mark.parametrize("accumulation", [cases.slow(1), 2])
@pytest.mark.parametrize(("stage", "tp", "dp"), LAYOUTS)
def test_every_layout_equals_plain_pytorch(
    pool: Pool, shared_cache, tmp_path, reference, stage, tp, dp, accumulation
):
    overrides = (f"parallel.tensor={tp}", f"batch.micro={8 // dp // accumulation}")
    results = pool.run(cases.train, tp * dp, str(shared_cache), stage, overrides, str(tmp_path))
    for result in results:
        assert result["losses"] == pytest.approx(reference.losses, abs=TOLERANCE)
        assert result["norms"] == pytest.approx(reference.norms, abs=1e-4)
        assert result["audit"] == (4, 0)
    found = cases.masters(tmp_path)
    assert found.keys() == reference.weights.keys()
    for name, weight in reference.weights.items():
        assert found[name][: len(weight)].sub(weight).abs().max() < TOLERANCE, name


def test_springs_of_strength_zero_are_plain_training_bit_for_bit(pool, shared_cache, tmp_path):
    runs = [
        pool.run(
            cases.train, 2, str(shared_cache), "zero2", overrides, str(tmp_path / str(number))
        )[0]["losses"]
        for number, overrides in enumerate(
            (cases.TWO_DOMAINS, (*cases.TWO_DOMAINS, f"methods={{{SPRINGS}}}"))
        )
    ]
    assert runs[0] == runs[1]
