"""fp16: an overflow lowers the scale on all ranks and changes nothing else, down to the lowest."""

from typing import Any

import pytest

from sparsecl import dist, faults
from sparsecl.errors import InvariantError
from tests.distributed import cases
from tests.distributed.test_bad_steps import snapshot
from tests.faults import fp16

pytestmark = pytest.mark.dist


def overflow_until_it_ends(cache: str, stage: str, folder: str) -> dict[str, Any]:
    """Two good steps, then rank 1 overflows in every step."""
    with fp16.allowed():
        config = cases.load(cache, ("precision=fp16",))
        trainer, _, built = cases.assemble(config, stage, folder, fp16.scaling(power=2))
        faults.arm(["inf@loss:3-9/rank=1"], seed=0, rank=dist.rank())
        changed, scales = [], []
        with pytest.raises(InvariantError) as caught:
            for _ in range(9):
                before = snapshot(built)
                trainer._train_step(1e-3, audited=False, logged=False)
                trainer.position.step += 1
                after = snapshot(built)
                changed.append(any(not before[key].equal(after[key]) for key in before))
                scales.append(built.slices.loss_scale)
        faults.disarm()
    return {"changed": changed, "scales": scales, "error": str(caught.value)}


@pytest.mark.fault("N2")
@pytest.mark.parametrize("stage", ["zero0", "zero2", "zero3"])
def test_overflows_down_to_the_lowest_scale(pool, shared_cache, tmp_path, stage):
    for found in pool.run(overflow_until_it_ends, 2, str(shared_cache), stage, str(tmp_path)):
        # The fifth step overflows at scale 1: the run ends there.
        assert found["scales"] == [4.0, 4.0, 2.0, 1.0]
        assert found["changed"] == [True, True, False, False]
        assert "a gradient overflows fp16 at the lowest loss scale, 1." in found["error"]
