"""The distribution over the vocabulary, by hand and against torch. Split over tp it is the same:
tests/distributed/test_outputs.py."""

import torch
import torch.nn.functional as F

from sparsecl.model.distribution import (
    chosen,
    divergence,
    log_sum_exp,
    most_likely,
    sample,
    squared_norm,
)

INF = float("inf")


def random_logits(seed: int, padding: int = 3) -> torch.Tensor:
    logits = torch.randn(
        2, 3, 10, generator=torch.Generator().manual_seed(seed), dtype=torch.double
    )
    logits = 3 * logits
    logits[..., 10 - padding :] = -INF
    return logits


def test_four_logits_by_hand():
    z = torch.tensor([[[2.0, 1.0, 0.0, -1.0]]])
    assert round(log_sum_exp(z).item(), 6) == 2.440190
    assert chosen(z, torch.tensor([[[1, 3]]]), 0).tolist() == [[[1.0, -1.0]]]
    assert most_likely(z, 2, 0).tolist() == [[[0, 1]]]
    # Of [1, 0] and [0, 0] at temperature 2: 0.693147 (cross entropy) less 0.662847 (entropy).
    one, flat = torch.tensor([[[1.0, 0.0, -INF]]]), torch.tensor([[[0.0, 0.0, -INF]]])
    flat.requires_grad_()
    found = divergence(one, flat, 2.0)
    assert abs(found.item() - 0.0303) < 1e-6
    found.sum().backward()
    assert flat.grad is not None
    torch.testing.assert_close(
        flat.grad, torch.tensor([[[-0.061230, 0.061230, 0.0]]]), atol=1e-6, rtol=0
    )


def test_ties_go_to_the_lower_id_and_padding_comes_last():
    z = torch.tensor([[[-1.0, 5.0, -INF, 5.0, -2.0, 0.0, -0.0]]])
    assert most_likely(z, 7, 100)[0, 0].tolist() == [101, 103, 105, 106, 100, 104, 102]
    assert most_likely(z[:0], 2, 0).shape == (0, 1, 2)


def test_values_and_gradients_are_torch_s_and_padding_has_none():
    x, y = random_logits(0).requires_grad_(), random_logits(0).requires_grad_()
    teacher, weight = random_logits(1), torch.rand(2, 3, dtype=torch.double)
    ids = torch.tensor([0, 6, 3]).expand(2, 3, 3)
    ours = log_sum_exp(x) + chosen(x, ids, 0).square().sum(-1) + divergence(teacher, x, 1.5)
    ours = ours + squared_norm(x)
    real, t = y[..., :7], teacher[..., :7]
    log_p, log_q = (t / 1.5).log_softmax(-1), (real / 1.5).log_softmax(-1)
    kl = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    theirs = real.logsumexp(-1) + real.gather(-1, ids).square().sum(-1) + kl
    theirs = theirs + real.square().sum(-1)
    torch.testing.assert_close(ours, theirs)
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    assert x.grad is not None and y.grad is not None
    torch.testing.assert_close(x.grad, y.grad)
    assert (x.grad[..., 7:] == 0).all()


def test_gradients_are_finite_differences():
    x = random_logits(0, padding=0).requires_grad_()
    teacher = random_logits(1, padding=0)
    assert torch.autograd.gradcheck(log_sum_exp, (x,))
    assert torch.autograd.gradcheck(squared_norm, (x,))
    assert torch.autograd.gradcheck(lambda student: divergence(teacher, student, 2.0), (x,))


def test_a_draw_is_the_first_token_at_which_the_sum_passes_it():
    # Probabilities 1/8, 1/2, 0, 3/8, and padding.
    z = torch.tensor([[[0.125, 0.5, 0.0, 0.375, 0.0]]]).log() + 3.0
    u = torch.tensor([[[0.0, 0.124, 0.126, 0.624, 0.626, 1.0 - 2.0**-53]]], dtype=torch.double)
    assert sample(z, u, 4).tolist() == [[[0, 0, 1, 1, 3, 3]]]
    assert sample(z[:0], u[:0], 4).shape == (0, 1, 6)


def test_draws_have_the_frequencies_of_the_distribution():
    z = random_logits(0)
    u = torch.rand(2, 3, 20_000, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    found = F.one_hot(sample(z, u, 7), 10).double().mean(dim=2)
    torch.testing.assert_close(found, z.softmax(-1), atol=0.015, rtol=0)
