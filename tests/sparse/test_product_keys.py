"""The lookup against all n^2 slots."""

import pytest
import torch
import torch.nn.functional as F

from sparsecl.sparse.product_keys import ProductKeyMemory, ValuePool, best_slots


@pytest.mark.parametrize(("num", "reads"), [(5, 1), (7, 3), (6, 6)])
def test_the_best_slots_are_the_best_of_all(num, reads):
    first, second = torch.randn(2, 20, 3, num, generator=torch.Generator().manual_seed(0))
    found, slots = best_slots(first, second, reads)
    sums = (first[..., :, None] + second[..., None, :]).flatten(-2)
    wanted = sums.topk(reads)
    assert found.equal(wanted.values) and slots.equal(wanted.indices)


def drawn(*, gate: bool = False) -> ProductKeyMemory:
    memory = ProductKeyMemory(6, ValuePool(16, 6), heads=2, keys=4, key_width=8, reads=3)
    if gate:
        memory.add_gate()
    generator = torch.Generator().manual_seed(1)
    for parameter in memory.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    return memory.double()


@pytest.mark.parametrize("gate", [False, True])
def test_a_memory_is_a_softmax_over_the_best_of_all_slots(gate):
    """Outputs and all gradients, with every other slot at minus infinity."""
    memory = drawn(gate=gate)
    x = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(2)).double()
    keys = memory.keys.view(2, 2, 4, 4)
    query = (x @ memory.query.T + memory.bias).view(3, 5, 2, 2, 4)
    halves = torch.einsum("bthcd,hckd->bthck", query, keys)
    scores = (halves[..., 0, :, None] + halves[..., 1, None, :]).flatten(-2)
    smallest = scores.topk(3).values[..., -1:]
    weights = scores.masked_fill(scores < smallest, -torch.inf).softmax(-1)
    y = weights.sum(2) @ memory.pool.weight
    if gate:
        assert memory.gate_in is not None and memory.gate_out is not None
        y = (y * F.silu(x @ memory.gate_in.T)) @ memory.gate_out.T
    found = memory(x)
    torch.testing.assert_close(found, y, rtol=1e-5, atol=1e-5)  # scores are in fp32
    along = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).double()
    parameters = list(memory.parameters())
    for own, wanted in zip(
        torch.autograd.grad(found, parameters, along),
        torch.autograd.grad(y, parameters, along),
        strict=True,
    ):
        torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-4)


def test_reads_are_counted_while_the_pool_is_armed():
    memory, x = drawn(), torch.ones(4, 6).double()
    memory(x)
    assert not memory.pool.num_reads().any()
    memory.pool.arm()
    memory(x)
    slots, _ = memory.find(x)
    memory.pool.disarm()
    memory(x)
    counts = memory.pool.num_reads()
    assert counts.equal(slots.flatten().bincount(minlength=16)) and int(counts.sum()) == 4 * 2 * 3
    memory.pool.arm()
    assert not memory.pool.num_reads().any()


def test_bf16_reads_the_pool_and_has_its_gradient():
    memory = drawn().bfloat16()
    memory(torch.randn(4, 6).bfloat16()).sum().backward()
    gradient = memory.pool.weight.grad
    assert gradient is not None and gradient.dtype == torch.bfloat16 and gradient.any()
