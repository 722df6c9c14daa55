"""O-LoRA by hand: the penalty and its gradient, what is held, and what the limits are."""

from dataclasses import replace

import pytest
import torch

from sparsecl.methods.adapters.config import OLoraConfig
from sparsecl.methods.adapters.o_lora import OLora
from sparsecl.model.config import ModelConfig
from sparsecl.model.gpt import GPT
from sparsecl.model.shapes import layer_shapes
from sparsecl.model.surgery import GptSide
from sparsecl.sparse.low_rank import LowRank
from tests.methods.adapters import linear
from tests.methods.adapters.linear import FACTS, Model
from tests.methods.plain import PlainContext


def attached(num_phases: int = 4, **options) -> tuple[OLora, Model, PlainContext]:
    config = OLoraConfig(**{"rank": 1, "kinds": ("q",), **options})
    method, model, context = linear.attached(OLora, config, num_phases)
    assert isinstance(method, OLora)
    return method, model, context


def test_an_adapter_changes_nothing_before_it_is_trained():
    method, model, _ = attached()
    x = torch.randn(5, 3)
    assert torch.equal(model.q(x), x @ torch.ones(2, 3).T)
    part = model.q.parts["o_lora"]
    assert isinstance(part, LowRank) and part.a.shape == (3, 3) and part.b.shape == (2, 3)
    assert part.a.abs().max() <= 3**-0.5 and part.a.abs().min() > 0


def test_the_part_is_scale_b_a():
    method, model, _ = attached(alpha=8.0)
    part = model.q.parts["o_lora"]
    with torch.no_grad():
        part.b.copy_(torch.tensor([[1.0, 0.0, 2.0], [0.0, -1.0, 0.0]]))
    x = torch.randn(5, 3)
    expected = x @ (torch.ones(2, 3) + 8.0 * part.b @ part.a).T
    assert torch.allclose(model.q(x), expected, atol=1e-5)


def test_the_penalty_and_its_gradient_by_hand():
    """A_old = [[1,0,0],[0,1,0]], A = [[.5,.5,1]]: sum |A_old A^T| = 1, slope (1, 1, 0)."""
    method, model, context = attached(l1=0.5)
    part = model.q.parts["o_lora"]
    with torch.no_grad():
        part.a.copy_(torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0.5, 0.5, 1.0]]))
    assert (part.a[:2] @ part.a[2]).abs().sum() == 1.0
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    context.at(0, phase=3)
    context.after_backward()
    assert part.a.grad.tolist() == [[0, 0, 0], [0, 0, 0], [0.5, 0.5, 0.0]]
    assert part.b.grad.abs().sum() == 0 and model.q.weight.grad.abs().sum() == 0


def test_a_strong_penalty_makes_the_new_adapter_orthogonal():
    method, model, context = attached(l1=100.0)
    part, optimizer = model.q.parts["o_lora"], torch.optim.SGD(model.parameters(), lr=0.1)
    context.at(0, phase=2)
    for step in range(400):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)
        context.after_backward()
        optimizer.step()
    assert (part.a[0] @ part.a[1]).abs() < 1e-2


def test_each_phase_trains_its_own_part_and_holds_the_rest_bit_for_bit():
    method, model, _ = attached()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    context = PlainContext(model, optimizer, [method])
    part = model.q.parts["o_lora"]
    for phase in range(4):
        before = [p.detach().clone() for p in (model.q.weight, part.a, part.b)]
        context.at(0, phase=phase)
        context.methods.phase_start(context)
        for _ in range(3):
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            context.step(optimizer)
        now = (model.q.weight, part.a, part.b)
        moved = [new != old for new, old in zip(now, before, strict=True)]
        assert moved[0].all() == (phase == 0) == moved[0].any()
        newest = torch.zeros(3, dtype=torch.bool)
        newest[phase - 1 : phase] = phase > 0
        assert torch.equal(moved[1], newest[:, None].expand(3, 3))
        assert torch.equal(moved[2], newest[None].expand(2, 3))
        assert context.guard.audit(phase) == 0


@pytest.mark.parametrize(
    ("options", "run", "message"),
    [
        ({}, {"num_phases": 1}, "2 at least"),
        ({}, {"joint": True}, "2 at least"),
        ({"kinds": ()}, {}, "kinds is empty"),
        ({"rank": 2}, {"num_phases": 5}, "rank=2 for 4 domains is 8 directions.* has 4 inputs"),
    ],
)
def test_what_is_refused(options, run, message):
    OLoraConfig(rank=2).check(FACTS)
    with pytest.raises(ValueError, match=message):
        OLoraConfig(**{"rank": 2, **options}).check(replace(FACTS, **run))


def test_what_it_promises_is_what_it_adds():
    config = OLoraConfig(rank=2, kinds=("q", "down"))
    shape = ModelConfig(preset=None, layers=2, width=8, heads=2, context=4).resolved()
    model = GPT(shape, vocab_size=10, topologies={})
    before = {name for name, _ in model.named_parameters()}
    OLora(config).attach(GptSide(model, 0), 3)
    added = {n: tuple(p.shape) for n, p in model.named_parameters() if n not in before}
    promised = config.parameters(layer_shapes(shape), 3)
    assert added == {name: entry.shape for name, entry in promised.items()}
    dims = {n: p.partition_dim for n, p in model.named_parameters() if n in promised}
    assert dims == {name: entry.partition_dim for name, entry in promised.items()}
