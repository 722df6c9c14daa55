"""The masked product: by hand, against autograd in float64, bit for bit against F.linear."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from sparsecl.sparse.masked import masked_linear

# 8 weights, [O=2, I=4]; live: (0,1), (0,3), (1,0).
LIVE = torch.tensor([[False, True, False, True], [True, False, False, False]])
DEAD = ~LIVE
W = torch.tensor([[0.0, 2.0, 0.0, -1.0], [3.0, 0.0, 0.0, 0.0]])


def test_by_hand():
    x = torch.tensor([[1.0, 10.0, 100.0, 1000.0]], requires_grad=True)
    weight = W.clone().requires_grad_()
    y = masked_linear(x, weight, DEAD)
    assert y.tolist() == [[-980.0, 3.0]]
    y.backward(torch.tensor([[1.0, 2.0]]))
    assert x.grad.tolist() == [[6.0, 2.0, 0.0, -1.0]]
    assert weight.grad.tolist() == [[0.0, 10.0, 0.0, 1000.0], [2.0, 0.0, 0.0, 0.0]]


@pytest.mark.fault("N5")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nothing_leaks_into_absent_weights(bad):
    weight = W.clone().requires_grad_()
    masked_linear(torch.full((1, 4), bad), weight, DEAD).sum().backward()
    assert (weight.grad[DEAD] == 0).all()
    assert not weight.grad[LIVE].isfinite().any()  # a live weight must still show the accident


@pytest.mark.parametrize("shape", [(5, 12), (2, 3, 12), (2, 2, 2, 12)])
def test_gradients_equal_those_of_a_masked_product(shape):
    generator = torch.Generator().manual_seed(0)
    live = torch.rand(7, 12, generator=generator) < 0.3
    weight = torch.randn(7, 12, dtype=torch.float64, generator=generator) * live
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    ours = (x.clone().requires_grad_(), weight.clone().requires_grad_())
    theirs = (x.clone().requires_grad_(), weight.clone().requires_grad_())
    y_ours = masked_linear(*ours, ~live)
    y_theirs = theirs[0] @ (theirs[1] * live).T
    dy = torch.randn(y_ours.shape, dtype=torch.float64, generator=generator)
    y_ours.backward(dy)
    y_theirs.backward(dy)
    torch.testing.assert_close(y_ours, y_theirs, rtol=1e-13, atol=1e-13)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, reference.grad, rtol=1e-13, atol=1e-13)


def results(function, x, weight):
    """Output, dx and dW of `function` on fresh leaves, with fixed output gradients."""
    weight = weight.detach().clone().requires_grad_()
    x = x.detach().requires_grad_()
    y = function(x, weight)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return y.detach(), *torch.autograd.grad(y, (x, weight), dy)


def strided(layout, dtype):
    """[5, 6, 33] in one of several layouts."""
    generator = torch.Generator().manual_seed(2)
    if layout == "plain":
        return torch.randn(5, 6, 33, generator=generator).to(dtype)
    if layout == "transposed":
        return torch.randn(6, 5, 33, generator=generator).to(dtype).transpose(0, 1)
    if layout == "expanded":
        return torch.randn(1, 1, 33, generator=generator).to(dtype).expand(5, 6, 33)
    return torch.randn(5, 6, 66, generator=generator).to(dtype)[..., ::2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["plain", "transposed", "expanded", "every_second"])
def test_all_live_is_bit_identical_to_a_dense_layer(layout, dtype):
    x = strided(layout, dtype)
    for num_outputs in (1, 17, 64):
        weight = torch.randn(num_outputs, 33, generator=torch.Generator().manual_seed(3)).to(dtype)
        none_dead = torch.zeros(weight.shape, dtype=torch.bool)
        for batch in (x, x[0]):
            masked = results(lambda a, w, dead=none_dead: masked_linear(a, w, dead), batch, weight)
            dense = results(F.linear, batch, weight)
            for mine, reference in zip(masked, dense, strict=True):
                assert torch.equal(mine, reference)


def test_column_major_input():
    x = torch.randn(33, 9, generator=torch.Generator().manual_seed(4)).t()
    weight = torch.randn(5, 33, generator=torch.Generator().manual_seed(5))
    masked = results(
        lambda a, w: masked_linear(a, w, torch.zeros(w.shape, dtype=torch.bool)), x, weight
    )
    # Here torch transposes the dx product, so only closeness can be asked for.
    for mine, reference in zip(masked, results(F.linear, x, weight), strict=True):
        torch.testing.assert_close(mine, reference)


@pytest.mark.parametrize(("x_grad", "weight_grad"), [(False, True), (True, False)])
def test_only_the_gradients_asked_for(x_grad, weight_grad):
    x = torch.ones(1, 4, requires_grad=x_grad)
    weight = W.clone().requires_grad_(weight_grad)
    masked_linear(x, weight, DEAD).sum().backward()
    assert (x.grad is not None) == x_grad
    assert (weight.grad is not None) == weight_grad


def test_no_graph_without_gradients():
    assert not masked_linear(torch.ones(1, 4), W, DEAD).requires_grad
    with torch.no_grad():
        assert not masked_linear(torch.ones(1, 4), W.clone().requires_grad_(), DEAD).requires_grad


def test_two_uses_and_accumulation():
    weight = W.clone().requires_grad_()
    x1, x2 = torch.ones(1, 4), torch.full((1, 4), 2.0)
    (masked_linear(x1, weight, DEAD) + masked_linear(x2, weight, DEAD)).sum().backward()
    masked_linear(x1, weight, DEAD).sum().backward()
    assert torch.equal(weight.grad, 4.0 * LIVE)


def test_under_activation_checkpointing():
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))

    def through_checkpoint(a, weight):
        return checkpoint(lambda b: masked_linear(b, weight, DEAD).tanh(), a, use_reentrant=False)

    plain = results(lambda a, w: masked_linear(a, w, DEAD).tanh(), x, W)
    for mine, reference in zip(results(through_checkpoint, x, W), plain, strict=True):
        assert torch.equal(mine, reference)


def test_output_may_be_changed_in_place():
    weight = W.clone().requires_grad_()
    y = masked_linear(torch.ones(1, 1, 4), weight, DEAD)
    y *= 3.0
    y.sum().backward()
    assert torch.equal(weight.grad, 3.0 * LIVE)


def test_second_backward_after_a_weight_step_is_refused():
    weight = W.clone().requires_grad_()
    y = masked_linear(torch.ones(1, 4, requires_grad=True), weight, DEAD)
    with torch.no_grad():
        weight += 1.0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_absent_weights_of_role_update_take_part_forward():
    weight = torch.ones(2, 4, requires_grad=True)
    y = masked_linear(torch.ones(1, 4), weight, DEAD)
    assert y.tolist() == [[4.0, 4.0]]
    y.sum().backward()
    assert torch.equal(weight.grad, LIVE.float())
