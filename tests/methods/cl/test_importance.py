"""What EWC and MAS measure, by hand on a model whose logits are its weights."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sparsecl.engine.loop.outputs import ForwardOutputs, Logits
from sparsecl.errors import InvariantError
from sparsecl.methods.cl.config import EwcConfig, MasConfig
from sparsecl.methods.cl.ewc import Ewc
from sparsecl.methods.cl.mas import Mas
from tests.methods.plain import PlainContext

INF = float("inf")


def outputs(logits: torch.Tensor, labels: torch.Tensor) -> ForwardOutputs:
    """Logits [B, T, V] with one column of padding after them."""
    losses = -logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    padding = torch.full((*logits.shape[:-1], 1), -INF)
    return ForwardOutputs(losses, Logits(torch.cat([logits, padding], -1), 0, logits.shape[-1]))


class Unigrams(PlainContext):
    """p = softmax(theta) at each of T positions of every sequence, whatever was before."""

    def __init__(self, theta: list[float], length: int) -> None:
        self.theta = nn.Parameter(torch.tensor(theta))
        self.length = length
        super().__init__(self.theta, torch.optim.SGD([self.theta], lr=0.1))

    def forward(self, places: np.ndarray) -> ForwardOutputs:
        labels = torch.zeros(len(places), self.length, dtype=torch.int64)
        return outputs(self.theta.expand(len(places), self.length, len(self.theta)), labels)

    def mean_gradients(self, rows: np.ndarray, *, each: Any = None, of: Any = None) -> Any:
        total = torch.zeros_like(self.theta)
        for place in range(len(rows)):
            found = self.forward(np.array([place]))
            values = found.losses if of is None else of(found, np.array([place]))
            (gradient,) = torch.autograd.grad(values.mean(), self.theta)
            total += each(gradient)
        return {"weight": total / len(rows)}


def test_mas_by_hand():
    """|d/dtheta sum theta^2| = 2 |theta|; the penalty is lambda Omega (theta - theta*)^2."""
    context, mas = Unigrams([2.0, -1.0, 0.5], 4), Mas(MasConfig(strength=0.25, sequences=3))
    mas.phase_end(context)
    assert mas.precision["weight"].tolist() == [4.0, 2.0, 1.0]
    with torch.no_grad():
        context.theta += 1.0
    context.theta.grad = torch.zeros(3)
    with torch.no_grad():
        mas.after_backward(context)
    assert context.theta.grad.tolist() == pytest.approx([2.0, 1.0, 0.5])
    mas.phase_end(context)  # Omegas of domains add up, at the latest anchor
    assert mas.precision["weight"].tolist() == [4.0 + 6.0, 2.0 + 0.0, 1.0 + 3.0]
    assert mas.target["weight"].tolist() == pytest.approx([30.0, 0.0, 6.0])


@pytest.mark.parametrize("value", [INF, float("nan")])
def test_an_importance_that_is_not_finite_ends_the_run(value):
    context, mas = Unigrams([2.0, value, 0.5], 4), Mas(MasConfig(sequences=3))
    with pytest.raises(
        InvariantError, match=r"methods\.mas: an importance of phase 0 is not finite"
    ):
        mas.phase_end(context)
    assert not mas.precision


@pytest.mark.parametrize("length", [1, 4])
def test_the_true_fisher_is_that_of_the_models_own_labels(length):
    """Of one label it is p (1 - p) for each logit; of the mean of T, drawn apart, 1 / T of it."""
    context = Unigrams([0.0, 1.0, -0.5], length)
    found = Ewc(EwcConfig(fisher="true", sequences=800)).importance(context)["weight"]
    p = context.theta.detach().softmax(-1)
    assert found.tolist() == pytest.approx((p * (1 - p) / length).tolist(), rel=0.15)


def test_the_empirical_fisher_is_that_of_the_datas_labels():
    """Always label 0: (p - onehot)^2, however long the sequence."""
    context = Unigrams([0.0, 1.0, -0.5], 4)
    found = Ewc(EwcConfig(sequences=2)).importance(context)["weight"]
    p = context.theta.detach().softmax(-1)
    assert found.tolist() == pytest.approx(((p - torch.tensor([1.0, 0, 0])) ** 2).tolist())


def test_labels_of_a_sequence_do_not_depend_on_what_is_scored_with_it():
    context, ewc = Unigrams([0.0, 1.0, -0.5], 6), Ewc(EwcConfig(fisher="true"))
    losses = ewc._own_labels(context)
    together = losses(context.forward(np.arange(5)), np.arange(5))
    assert together.unique().numel() > 1
    for place in range(5):
        alone = losses(context.forward(np.array([place])), np.array([place]))
        assert alone[0].equal(together[place])
    again = ewc._own_labels(context.at(0, phase=1))(context.forward(np.arange(5)), np.arange(5))
    assert not again.equal(together)
