"""The loss in chunks of tokens is that of whole logits, with its gradients, wherever one cuts."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsecl.model.build import build_gpt
from sparsecl.model.chunked import Asked, score_in_chunks
from sparsecl.model.config import ModelConfig
from sparsecl.model.entropy import NO_TARGET
from sparsecl.topology.config import TopologyConfig

ROWS, REAL, WIDTH = 40, 33, 24  # seven rows of padding


def drawn(num_tokens: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Features, head and targets; where there are several tokens, one has no target."""
    generator = torch.Generator().manual_seed(num_tokens)
    x = torch.randn(num_tokens, WIDTH, generator=generator).to(dtype).requires_grad_()
    head = torch.randn(ROWS, WIDTH, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(REAL, (num_tokens,), generator=generator)
    if num_tokens > 1:
        targets[1] = NO_TARGET
    return x, head, targets


def asked(targets: Tensor, chunk: int, weight: Tensor | None = None, answers: bool = False):
    return Asked(targets=targets, weight=weight, answers=answers, chunk=chunk)


def scored(x: Tensor, head: Tensor, wanted: Asked):
    return score_in_chunks(x, head, wanted, first_id=0, num_real=REAL)


def whole(x: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Losses and answers in fp64."""
    logits = F.linear(x.double(), head.double())[:, :REAL]
    losses = F.cross_entropy(logits, targets, ignore_index=NO_TARGET, reduction="none")
    return losses, logits.argmax(-1) == targets


def test_two_tokens_by_hand():
    # Logits of the first: log 2 and 0 of two tokens; of the second, 0 and 0.
    x, head = torch.eye(2), torch.tensor([[math.log(2.0), 0.0], [0.0, 0.0], [9.0, 9.0]])
    x.requires_grad_()
    head.requires_grad_()
    wanted = asked(torch.tensor([0, 1]), 1, torch.tensor([1.0, 3.0]), answers=True)
    losses, correct, total = score_in_chunks(x, head, wanted, first_id=0, num_real=2)
    torch.testing.assert_close(losses, torch.tensor([math.log(1.5), math.log(2.0)]))
    assert correct is not None and correct.tolist() == [True, False]  # of a tie the lower id
    assert total is not None and float(total.detach()) == pytest.approx(math.log(1.5 * 8.0))
    total.backward()
    # Softmax minus the target, times the weight: (-1/3, 1/3) and 3 * (1/2, -1/2); none in padding.
    wished = torch.tensor([[-1 / 3, 1.5], [1 / 3, -1.5], [0.0, 0.0]])
    torch.testing.assert_close(head.grad, wished)
    wished = math.log(2.0) * torch.tensor([[-1 / 3, 0.0], [1.5, 0.0]])
    torch.testing.assert_close(x.grad, wished)


@pytest.mark.parametrize("chunk", [1, 4, 7, 13, 100])
@pytest.mark.parametrize("num_tokens", [1, 7, 13])
def test_chunks_are_the_whole(num_tokens: int, chunk: int):
    x, head, targets = drawn(num_tokens)
    weight = torch.tensor([0.5, 1.0, 0.0, 2.0] * 4)[:num_tokens]
    losses, correct, total = scored(x, head, asked(targets, chunk, weight, answers=True))
    wished, right = whole(x, head, targets)
    assert correct is not None and total is not None and not losses.requires_grad
    torch.testing.assert_close(losses.double(), wished.detach(), rtol=1e-6, atol=1e-6)
    assert torch.equal(correct, right)
    wished_total = (wished * weight).sum()
    torch.testing.assert_close(total.double(), wished_total, rtol=1e-6, atol=1e-6)
    # 1 / 3: as where a loss is a mean, or scaled.
    found = torch.autograd.grad(total / 3, [x, head])
    for mine, theirs in zip(found, torch.autograd.grad(wished_total / 3, [x, head]), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    if num_tokens > 2:  # no target; a weight of zero
        assert (found[0][1:3] == 0).all()
    assert (found[1][REAL:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_within_its_rounding(dtype: torch.dtype):
    x, head, targets = drawn(13, dtype)
    losses, _, total = scored(x, head, asked(targets, 5, torch.ones(13)))
    wished, _ = whole(x, head, targets)
    assert total is not None
    scale = 2.0**10 if dtype is torch.float16 else 1.0  # the loss scale
    found = torch.autograd.grad(total * scale / 13, [x, head])
    ideal = torch.autograd.grad(wished.sum() * scale / 13, [x, head])
    plain = F.cross_entropy(
        F.linear(x, head).float()[:, :REAL], targets, ignore_index=NO_TARGET, reduction="sum"
    )
    theirs = torch.autograd.grad(plain * scale / 13, [x, head])
    for mine, other, exact in zip(found, theirs, ideal, strict=True):
        assert mine.dtype == dtype
        error, usual = ((v - exact).float().norm() for v in (mine, other))
        assert error < 2 * usual, (error, usual)
    assert losses.dtype == torch.float32


def test_what_is_frozen_has_no_gradient_and_costs_none():
    x, head, targets = drawn(7)
    wanted = asked(targets, 3, torch.ones(7))

    def gradients(x: Tensor, head: Tensor) -> tuple[Tensor, ...]:
        total = scored(x, head, wanted)[2]
        assert total is not None
        return torch.autograd.grad(total, [part for part in (x, head) if part.requires_grad])

    both = gradients(x, head)
    assert torch.equal(gradients(x, head.detach())[0], both[0])
    assert torch.equal(gradients(x.detach(), head)[0], both[1])
    total = scored(x.detach(), head.detach(), wanted)[2]
    assert total is not None and not total.requires_grad


def test_it_goes_backward_once():
    x, head, targets = drawn(7)
    total = scored(x, head, asked(targets, 3, torch.ones(7)))[2]
    assert total is not None
    total.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="once"):
        total.backward()


@pytest.mark.parametrize("training", [True, False])
def test_a_model_says_the_same_whatever_its_chunk(training: bool):
    config = ModelConfig(preset=None, layers=1, width=16, heads=2, context=9)
    model = build_gpt(config, TopologyConfig(density=0.5), vocab_size=50, seed=1).train(training)
    text = torch.randint(50, (3, 10), generator=torch.Generator().manual_seed(0))
    tokens, targets = text[:, :-1], text[:, 1:].clone()
    targets[0, :4] = NO_TARGET
    weight = torch.tensor([1.0, 0.25, 2.0])
    parameters = list(model.parameters())

    def told(chunk: int):
        model.loss_chunk = chunk
        losses, correct, mean = model(tokens, targets, weight=weight)
        assert not losses.requires_grad
        return losses, correct, mean, torch.autograd.grad(mean, parameters)

    whole_loss, whole_correct, whole_mean, whole_gradients = told(0)
    by_hand = (model(tokens, targets)[0].mean(1) * weight).mean()
    torch.testing.assert_close(whole_mean, by_hand)
    for chunk in (1, 8, 512):
        losses, correct, mean, gradients = told(chunk)
        torch.testing.assert_close(losses, whole_loss, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(mean, whole_mean, rtol=1e-6, atol=1e-6)
        for mine, theirs in zip(gradients, whole_gradients, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)
        with torch.no_grad():
            alone, answers = model(tokens, targets)
        assert torch.equal(alone, losses)
        assert correct is None if training else torch.equal(correct, whole_correct)
        assert answers is None if training else torch.equal(answers, whole_correct)
