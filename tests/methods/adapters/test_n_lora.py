"""N-LoRA by hand: both penalties and their slopes, and what is refused."""

from dataclasses import replace

import pytest
import torch

from sparsecl.methods.adapters.config import LoraConfig, NLoraConfig
from sparsecl.methods.adapters.n_lora import NLora, product_slope, update_slope
from sparsecl.topology.layer import LayerShape
from tests.methods.adapters.linear import FACTS, attached, zero_gradients

A = torch.tensor([[1.0, -1, 0], [0, 2, 1]])
B = torch.tensor([[1.0, 0], [0, 1], [1, 1]])


def test_the_two_penalties_by_hand():
    """B A = [[1,-1,0],[0,2,1],[1,1,1]], A B = [[1,-1],[1,3]]."""
    assert (B @ A).abs().sum() == 8.0 and (A @ B).abs().sum() == 6.0


@pytest.mark.parametrize("chunk", [1, 3, 6, 1000])
def test_the_slope_of_the_update_is_autograds(chunk):
    a, b = A.clone().requires_grad_(), B.clone().requires_grad_()
    (b @ a).abs().sum().backward()
    of_a, of_b = update_slope(A, B, chunk)
    assert of_a.equal(a.grad) and of_b.equal(b.grad)
    # S = [[1,-1,0],[0,1,1],[1,1,1]]
    assert of_a.tolist() == [[2, 0, 1], [1, 2, 2]] and of_b.tolist() == [[2, -2], [-1, 3], [0, 3]]


def test_the_slope_of_the_codes_product_is_autograds():
    a, b = A.clone().requires_grad_(), B.clone().requires_grad_()
    (a @ b).abs().sum().backward()
    of_a, of_b = product_slope(A, B)
    assert of_a.equal(a.grad) and of_b.equal(b.grad)


@pytest.mark.parametrize("penalty", ["dW", "code_product"])
def test_only_the_newest_pair_is_pulled(penalty):
    method, model, context = attached(NLora, NLoraConfig(rank=1, l1=0.5, penalty=penalty), out=3)
    part = model.q.parts["n_lora"]
    with torch.no_grad():
        part.a.copy_(torch.tensor([[9.0, 9, 9], [1.0, -1, 0], [9, 9, 9]]))
        part.b.copy_(torch.tensor([[9.0, 9, 9], [1, 2, 3], [9, 9, 9]]).T)
    zero_gradients(model)
    context.at(0, phase=2)
    context.after_backward()
    # B A has the signs [1, -1, 0] in every row, A B = 1 - 2 is negative.
    of_a, of_b = ([6, -6, 0], [2, 2, 2]) if penalty == "dW" else ([-1, -2, -3], [-1, 1, 0])
    assert part.a.grad.tolist() == [[0, 0, 0], [0.5 * v for v in of_a], [0, 0, 0]]
    assert part.b.grad.T.tolist() == [[0, 0, 0], [0.5 * v for v in of_b], [0, 0, 0]]
    assert model.q.weight.grad.abs().sum() == 0


@pytest.mark.parametrize(("phase", "options"), [(0, {}), (2, {"l1": 0.0})])
def test_no_penalty_in_the_first_phase_nor_at_zero(phase, options):
    method, model, context = attached(NLora, NLoraConfig(rank=1, **options))
    torch.nn.init.ones_(model.q.parts["n_lora"].b)
    zero_gradients(model)
    context.at(0, phase=phase)
    context.slices.refresh_norms = None  # would be called if a gradient had changed
    context.after_backward()
    assert all(not parameter.grad.any() for parameter in model.parameters())


def test_what_is_refused():
    square = (LayerShape("q", "q", 4, 4), LayerShape("up", "up", 16, 4))
    facts = replace(FACTS, layers=square)
    NLoraConfig(rank=2, kinds=("q",), penalty="code_product").check(facts)
    NLoraConfig(rank=2, kinds=("q", "up")).check(facts)
    with pytest.raises(ValueError, match="penalty=code_product .* up has 4 inputs and 16 outputs"):
        NLoraConfig(rank=2, kinds=("q", "up"), penalty="code_product").check(facts)
    for config in (NLoraConfig(rank=5), LoraConfig(rank=5)):
        with pytest.raises(ValueError, match="rank=5 is more than a linear of 4 inputs"):
            config.check(facts)
    with pytest.raises(ValueError, match="o_lora freezes weights too.* Take one of them"):
        LoraConfig(rank=2).check(replace(facts, freezing=("o_lora",)))
    with pytest.raises(ValueError, match="kinds=.*gate.* the model has none"):
        LoraConfig(rank=2, kinds=("gate",)).check(facts)
