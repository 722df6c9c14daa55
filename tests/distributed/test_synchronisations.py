"""How often a step makes the host wait for the device: counted, so that no GPU is needed.

On a GPU each of these calls waits for all work that was queued: the device then stands idle while
the host prepares the next operations.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.distributed import cases
from tests.distributed.test_bad_steps import _Silent

pytestmark = pytest.mark.dist

READS = ("item", "tolist", "__bool__", "__float__", "__int__")

# DeepSpeed 0.19.8 reads whether the gradient is finite, and the norm that it clips by once for each
# group of the optimizer; its wrapper of stage 0 in bf16 looks at every one of the 19 parameters.
MOST_READS = {("zero0", "fp32"): 2, ("zero0", "bf16"): 19 + 7}


# Operations whose result is as large as the content of a tensor says.
SIZED = ("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount")


class Sized(TorchDispatchMode):
    """Keeps the names of operations that wait on a GPU, though the caller reads nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = tree_leaves(args[1]) if name in ("index", "index_put", "index_put_") else ()
        masks = [i for i in indices if isinstance(i, torch.Tensor) and i.dtype == torch.bool]
        if masks or name in SIZED:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def counted(counter: Counter[str], owner: Any, name: str) -> Any:
    """A patch of a method that counts its calls; one inside another counts once."""
    original: Callable[..., Any] = getattr(owner, name)
    inside: list[str] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        counter[name] += not inside
        inside.append(name)
        try:
            return original(*args, **kwargs)
        finally:
            inside.pop()

    return mock.patch.object(owner, name, call)


def one_step(
    cache: str, stage: str, folder: str, overrides: tuple[str, ...]
) -> tuple[dict[str, int], list[str]]:
    """What the third step reads, and what waits beside that; it is neither logged nor audited."""
    from deepspeed.accelerator import get_accelerator

    quiet = ("log.every=100", "audit.every=100", "batch.micro=1", *overrides)
    trainer, _, _ = cases.assemble(cases.load(cache, quiet), stage, folder)
    phase = trainer.schedule.phases[0]
    trainer._begin_phase(phase)
    counter: Counter[str] = Counter(synchronize=0)
    for _ in range(2):
        trainer._step_and_watch(phase, _Silent())
    with counted(counter, type(get_accelerator()), "synchronize"):
        patches = [counted(counter, torch.Tensor, name) for name in READS]
        for patch in patches:
            patch.start()
        try:
            with Sized() as sized:
                trainer._step_and_watch(phase, _Silent())
        finally:
            for patch in reversed(patches):
                patch.stop()
    return dict(counter), sized.found


@pytest.mark.fault("G1")
@pytest.mark.parametrize(("precision", "storage"), [("fp32", "packed"), ("bf16", "masked")])
@pytest.mark.parametrize("stage", ["zero0", "zero1", "zero2", "zero3"])
def test_a_step_of_eight_micro_batches_waits_no_oftener_than_one_of_one(
    pool, shared_cache, tmp_path, stage, precision, storage
):
    overrides = (f"precision={precision}", f"topology.storage={storage}")
    ((found, sized),) = pool.run(one_step, 1, str(shared_cache), stage, str(tmp_path), overrides)
    assert found.pop("synchronize") == 0
    assert sum(found.values()) <= MOST_READS.get((stage, precision), 4), found
    assert not sized


def waiting() -> list[str]:
    a = torch.arange(4.0)
    with Sized() as sized:
        a[a > 1] = 0.0
        a[a > 1], a.nonzero(), a.masked_fill(a > 1, 0.0), a[torch.tensor([1])]
    return sized.found


def test_what_waits_without_being_read_is_seen(pool):
    assert pool.run(waiting, 1) == [["index_put_", "index", "nonzero"]]
