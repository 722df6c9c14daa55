"""Collectives as NCCL would take them: types and strides that it cannot carry are refused, and a
step has as few calls as it should. Looked at where torch gives them to the process group.
"""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.distributed import cases
from tests.distributed.test_bad_steps import _Silent

pytestmark = pytest.mark.dist

# torch sends a bool as a byte, whose sum is then cut to the lowest one; better none at all.
CARRIED = {
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.int8, torch.uint8, torch.int32, torch.int64,
}  # fmt: skip


class Nccl(TorchDispatchMode):
    """Refuses what NCCL cannot carry, and counts the rest by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        space, _, name = func.name().partition("::")
        if space == "c10d":
            self.calls[name.strip("_")] += 1
            for tensor in tree_leaves((args, kwargs)):
                if isinstance(tensor, torch.Tensor):
                    assert tensor.dtype in CARRIED, f"{name}: NCCL has no {tensor.dtype}"
                    assert tensor.is_contiguous(), f"{name}: strides {tensor.stride()}"
        return func(*args, **(kwargs or {}))


def whole_run(cache: str, stage: str, folder: str, overrides: tuple[str, ...]) -> int:
    """Training, evaluations, audits, methods and saves. Returns the number of calls."""
    with Nccl() as seen:
        cases.train(cache, stage, overrides, folder)
    return sum(seen.calls.values())


def one_step(cache: str, stage: str, folder: str, overrides: tuple[str, ...]) -> dict[str, int]:
    """The calls of the third step of this rank; it is neither logged nor audited."""
    quiet = ("log.every=100", "audit.every=100", *overrides)
    trainer, _, _ = cases.assemble(cases.load(cache, quiet), stage, folder)
    phase = trainer.schedule.phases[0]
    trainer._begin_phase(phase)
    for _ in range(2):
        trainer._step_and_watch(phase, _Silent())
    with Nccl() as seen:
        trainer._step_and_watch(phase, _Silent())
    return dict(seen.calls)


METHODS = (
    *cases.TWO_DOMAINS,
    "methods={rigl: {every: 3}, replay: {share: 0.25}, ewc: {strength: 10.0, sequences: 4}}",
    "precision=bf16",
)


@pytest.mark.fault("G13")
@pytest.mark.parametrize(
    ("stage", "more"),
    [
        ("zero1", ("parallel.tensor=2",)),
        cases.slow("zero0", ()),
        cases.slow("zero2", ()),
        cases.slow("zero3", ()),
    ],
)
def test_nccl_could_carry_a_whole_run(pool, shared_cache, tmp_path, stage, more):
    arguments = (str(shared_cache), stage, str(tmp_path), (*METHODS, *more))
    assert min(pool.run(whole_run, 2, *arguments)) > 20


# By stage: of a step of one micro-batch, and more for each further one (DeepSpeed 0.19.8).
# ZeRO 3 gathers each of the 19 parameters: all are below its persistence threshold.
CALLS = {
    "zero0": ({"allreduce": 4}, {}),
    "zero1": ({"allreduce": 3, "allgather_base": 2}, {}),
    "zero2": ({"allreduce": 3, "allgather_base": 2}, {"allreduce": 1}),
    "zero3": (
        {"allreduce": 2, "allgather_base": 19, "reduce_scatter_base": 1},
        {"allgather_base": 1, "reduce_scatter_base": 1},
    ),
}


@pytest.mark.fault("G13")
@pytest.mark.parametrize("micro", [1, 4])
@pytest.mark.parametrize("stage", [cases.slow("zero0"), "zero1", cases.slow("zero2"), "zero3"])
def test_calls_of_a_step(pool, shared_cache, tmp_path, stage, micro):
    arguments = (str(shared_cache), stage, str(tmp_path), (f"batch.micro={micro}",))
    found = pool.run(one_step, 2, *arguments)
    first, further = CALLS[stage]
    assert found == 2 * [
        {name: n + (4 // micro - 1) * further.get(name, 0) for name, n in first.items()}
    ]


@pytest.mark.fault("G13")
def test_calls_of_a_tensor_parallel_step(pool, shared_cache, tmp_path):
    """Of a micro-batch: two in each of two blocks, forward and backward; the embedding and the
    head; and one for each chunk of the loss, here the only one. The others are of the step."""
    calls = []
    for micro in (8, 4):
        more = ("parallel.tensor=2", f"batch.micro={micro}")
        found = pool.run(one_step, 2, str(shared_cache), "zero1", str(tmp_path), more)
        assert found[0] == found[1]
        calls.append(found[0])
    one, two = calls
    assert {name: two[name] - one[name] for name in two} == {
        "allreduce": 2 * 4 + 1 + 1,
        "allgather_base": 1,
    }
    assert one == {"allreduce": 15, "allgather_base": 1}


def refused(tensor: torch.Tensor) -> str:
    import torch.distributed as torch_dist

    from sparsecl import dist

    dist.init()
    with Nccl(), pytest.raises(AssertionError) as caught:
        torch_dist.all_reduce(tensor)
    return str(caught.value)


@pytest.mark.fault("G13")
def test_what_is_refused(pool):
    strided = torch.zeros(4, 4).t()[:2]
    wrong = (torch.zeros(2, dtype=torch.int16), torch.zeros(2, dtype=torch.bool), strided)
    for tensor, word in zip(wrong, ("int16", "bool", "strides"), strict=True):
        assert word in pool.run(refused, 1, tensor)[0]
