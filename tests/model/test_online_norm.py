"""Online normalisation against the vector of the card (methods2.md 6) and plain normalisation."""

import numpy as np
import pytest
import torch

from sparsecl.model.online_norm import OnlineNorm


def test_the_vector_of_the_card():
    """a = b = .9, eps 0, x = 1, 3, gradients 1, -1."""
    norm = OnlineNorm(1, decay=0.9, control=0.9, eps=0.0)
    x = torch.tensor([[1.0], [3.0]], requires_grad=True)
    y = norm(x)
    assert y.flatten().tolist() == pytest.approx([1.0, 2.914610], abs=1e-5)
    assert norm.stats[:2, 0].tolist() == pytest.approx([0.39, 1.6479], abs=1e-5)
    y.backward(torch.tensor([[1.0], [-1.0]]))
    assert x.grad.flatten().tolist() == pytest.approx([1.0, -1.397967], abs=1e-5)
    assert norm.stats[2:, 0].tolist() == pytest.approx([-0.397967, -2.764105], abs=1e-5)


def test_many_features_and_steps_against_numpy_one_number_at_a_time():
    rng = np.random.default_rng(0)
    norm = OnlineNorm(3, decay=0.95, control=0.8)
    mean, var, u, v = np.zeros(3), np.ones(3), np.zeros(3), np.zeros(3)
    for _ in range(4):
        x, g = rng.normal(1.0, 2.0, (5, 3)), rng.normal(size=(5, 3))
        given = torch.tensor(x, dtype=torch.float32, requires_grad=True)
        norm.bound = 100.0
        y = norm(given)
        y.backward(torch.tensor(g, dtype=torch.float32))
        ys, gins = np.empty((2, 5, 3))
        sigmas = np.empty((5, 3))
        for i, j in np.ndindex(5, 3):
            sigmas[i, j] = (var[j] + 1e-5) ** 0.5
            d = x[i, j] - mean[j]
            ys[i, j] = d / sigmas[i, j]
            var[j], mean[j] = 0.95 * var[j] + 0.95 * 0.05 * d * d, mean[j] + 0.05 * d
        for i, j in np.ndindex(5, 3):
            free = g[i, j] - 0.2 * v[j] * ys[i, j]
            v[j] += free * ys[i, j]
            gins[i, j] = free / sigmas[i, j] - 0.2 * u[j]
            u[j] += gins[i, j]
        assert y.detach().numpy() == pytest.approx(ys, abs=1e-4)
        assert given.grad.numpy() == pytest.approx(gins, abs=1e-4)


def test_a_long_stream_is_normalised_and_its_gradients_are_balanced():
    """Then outputs have mean 0 and deviation 1, and gradients neither a sum nor a part along y."""
    torch.manual_seed(0)
    norm = OnlineNorm(2, decay=0.99, control=0.9)
    x = (3.0 + 2.0 * torch.randn(3000, 2)).requires_grad_()
    y = norm(x)
    late = y[1000:].detach()
    assert late.mean(0).tolist() == pytest.approx([0.0, 0.0], abs=0.1)
    assert late.std(0).tolist() == pytest.approx([1.0, 1.0], abs=0.1)
    (1.0 + y + 0.1 * torch.randn(3000, 2)).square().sum().mul(0.5).backward()  # pulls along y
    gradients = x.grad[1000:]
    assert gradients.mean(0).tolist() == pytest.approx([0.0, 0.0], abs=0.02)
    assert (gradients * late).mean(0).tolist() == pytest.approx([0.0, 0.0], abs=0.15)


def test_in_a_test_nothing_moves_and_far_samples_are_cut_off():
    norm = OnlineNorm(1).eval()
    before = norm.stats.clone()
    assert norm(torch.tensor([[7.0], [-0.5], [-9.0]])).flatten().tolist() == pytest.approx(
        [5.0, -0.5, -5.0], abs=1e-4
    )
    assert norm.stats.equal(before)


def test_a_batch_is_its_samples_one_by_one():
    torch.manual_seed(1)
    whole, parts = OnlineNorm(3), OnlineNorm(3)
    x = torch.randn(6, 3)
    assert whole(x).equal(torch.cat([parts(row[None]) for row in x]))
    assert whole.stats.equal(parts.stats)
    again = OnlineNorm(3)
    again.load_state_dict(whole.state_dict())  # a resume
    assert again(x).equal(whole(x))
