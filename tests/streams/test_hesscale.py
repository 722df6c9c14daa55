"""HesScale against the exact Hessian where it is exact, and against its definition in loops."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsecl.methods.plasticity.config import DropoutConfig, UpgdConfig
from sparsecl.streams.config import LearnerConfig, StepConfig, check_methods
from sparsecl.streams.hesscale import diagonals
from sparsecl.streams.loop import Pack
from sparsecl.topology.config import TopologyConfig
from tests.methods.plain import FACTS
from tests.streams.small import config, images

SPARSE = TopologyConfig(kind="er_fixed", density=0.5)


def small_pack(**changes) -> Pack:
    return Pack(config(**changes), images(), 0)


@pytest.mark.parametrize("batch", [1, 3])
def test_the_last_layer_is_exact(batch):
    """Softmax regression: the diagonal of autograd's own Hessian."""
    pack = small_pack(learner=LearnerConfig(kind="linear"), seeds=2)
    x, y = torch.rand(2, batch, 9), torch.randint(3, (2, batch))
    found = diagonals(pack.model, x, y)
    weight, bias = (param.detach() for param in pack.model.parameters())
    for k in range(2):

        def loss(w: Tensor, b: Tensor) -> Tensor:
            return F.cross_entropy(x[k] @ w.T + b, y[k])  # noqa: B023

        (of_w, _), (_, of_b) = torch.autograd.functional.hessian(loss, (weight[k], bias[k]))
        exact = torch.as_tensor(of_w).reshape(27, 27).diagonal()
        assert torch.allclose(found["layers.0.weight"][k].flatten(), exact, atol=1e-6)
        assert torch.allclose(
            found["layers.0.bias"][k], torch.as_tensor(of_b).diagonal(), atol=1e-6
        )


def by_definition(weights, biases, x, label, activation):
    """Of one image, one number at a time: [O][I] of each layer."""
    hs, zs = [x], []
    for k, (w, b) in enumerate(zip(weights, biases, strict=True)):
        zs.append(w @ hs[-1] + b)
        last = k == len(weights) - 1
        hs.append(zs[-1] if last else np.tanh(zs[-1]) if activation == "tanh" else zs[-1].clip(0))
    p = np.exp(hs[-1] - hs[-1].max())
    p /= p.sum()
    g, curve = p - np.eye(len(p))[label], p * (1 - p)
    found = []
    for k in reversed(range(len(weights))):
        num_out, num_in = weights[k].shape
        found.insert(0, [[curve[o] * hs[k][i] ** 2 for i in range(num_in)] for o in range(num_out)])
        back, bend = np.zeros(num_in), np.zeros(num_in)
        for i in range(num_in if k else 0):
            back[i] = sum(g[o] * weights[k][o, i] for o in range(num_out))
            inner = sum(curve[o] * weights[k][o, i] ** 2 for o in range(num_out))
            h = hs[k][i]
            first = 1 - h * h if activation == "tanh" else float(h > 0)
            second = -2 * h * (1 - h * h) if activation == "tanh" else 0.0
            bend[i] = first**2 * inner + second * back[i]
            back[i] *= first
        g, curve = back, bend
    return [np.array(layer) for layer in found]


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_recursion_is_its_definition(activation):
    learner = LearnerConfig(widths=(6, 5), activation=activation)
    pack = small_pack(learner=learner, topology=SPARSE, seeds=2)
    x, y = torch.rand(2, 3, 9), torch.randint(3, (2, 3))
    weight = torch.tensor([1.0, 0.5, 2.0])
    found, plain = diagonals(pack.model, x, y, weight), diagonals(pack.model, x, y)
    params = [param.detach().double().numpy() for param in pack.model.parameters()]
    for k in range(2):
        weights, biases = [p[k] for p in params[::2]], [p[k] for p in params[1::2]]
        each = [
            by_definition(weights, biases, x[k, b].double().numpy(), int(y[k, b]), activation)
            for b in range(3)
        ]
        for layer in range(3):
            name = f"layers.{layer}.weight"
            live = weights[layer] != 0
            want = sum(w * one[layer] for w, one in zip((1, 0.5, 2), each, strict=True)) / 3
            assert np.allclose(found[name][k].numpy(), want * live, atol=1e-6)
            want = sum(one[layer] for one in each) / 3
            assert np.allclose(plain[name][k].numpy(), want * live, atol=1e-6)


def test_a_units_utility_is_what_its_gate_would_change_to_second_order():
    """Exact where each hidden unit feeds one logit: the gates' gradient and Hessian by autograd."""
    pack = small_pack(
        learner=LearnerConfig(width=3, layers=1),
        methods={"upgd": UpgdConfig(utility="feature", order=2, sigma=0.0, beta=0.0)},
        optimizer=StepConfig(lr=1e-6),
    )
    first, last = list(pack.model.layers)
    with torch.no_grad():
        last.weight.copy_(torch.diag(torch.tensor([1.5, -2.0, 0.7])))
        first.bias.fill_(0.3)
    x, y = torch.rand(1, 1, 9), torch.tensor([[1]])
    h = first.activate(x)[0].detach()
    weight = last.weight.detach()[0]

    def loss(gate: Tensor) -> Tensor:
        return F.cross_entropy((h * gate) @ weight.T, y[0])

    gate = torch.ones(3, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(gate), gate)
    hessian = torch.as_tensor(torch.autograd.functional.hessian(loss, gate))
    pack._step(x, y)
    (found,) = pack.methods.methods[0].units.values()  # pyright: ignore
    want = -slope + 0.5 * hessian.diagonal()
    assert torch.allclose(found[0].float(), want, atol=1e-5) and want.abs().max() > 0.05


def test_a_weights_utility_has_half_its_curvature():
    pack = small_pack(methods={"upgd": UpgdConfig(order=2, beta=0.0, sigma=0.0)}, batch=2)
    x, y = torch.rand(1, 2, 9), torch.tensor([[0, 2]])
    before = {name: param.detach().clone() for name, param in pack.model.named_parameters()}
    curve = diagonals(pack.model, x, y)
    pack._step(x, y)
    (method,) = pack.methods.methods
    for name, utility in method.utility.items():  # pyright: ignore
        w = before[name]
        grad = dict(pack.model.named_parameters())[name].grad
        assert grad is not None
        want = -grad * w + 0.5 * curve[name] * w * w
        assert torch.allclose(utility, want.view(1, -1), atol=1e-7)
        assert not torch.allclose(utility, (-grad * w).view(1, -1), atol=1e-5)


def test_where_there_is_no_curvature_it_is_said():
    second = UpgdConfig(order=2)
    with pytest.raises(ValueError, match="order=2 needs the diagonal .* attention and norms"):
        second.check(FACTS)
    UpgdConfig().check(FACTS)
    settings = config(methods={"upgd": second, "dropout": DropoutConfig()})
    with pytest.raises(
        ValueError, match="methods.upgd.order=2 asks for the curvature of the whole"
    ):
        check_methods(settings, settings.learner.shapes(9, 3))
    check_methods(config(methods={"upgd": second}), settings.learner.shapes(9, 3))
