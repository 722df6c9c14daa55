"""What hidden units give: slopes by hand against autograd; units of two activations, crelu."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import grad  # pyright: ignore[reportPrivateImportUsage]

from sparsecl.methods.plasticity.config import CbpConfig, RedoConfig, UpgdConfig
from sparsecl.streams.activations import ACTIVATIONS
from sparsecl.streams.config import LearnerConfig, StreamConfig, check_methods
from sparsecl.streams.figures import layer_figures
from sparsecl.streams.loop import Pack
from sparsecl.topology.config import TopologyConfig
from tests.streams.small import config, images

CRELU = LearnerConfig(width=8, layers=2, activation="crelu")


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slopes_and_bends_are_those_of_autograd(name):
    f = ACTIVATIONS[name]
    z = torch.tensor([-2.0, -0.5, 0.3, 1.7], dtype=torch.float64, requires_grad=True)
    h = f.forward(z)
    a, b = torch.rand(2, *h.shape, dtype=torch.float64) - 0.5

    def loss(of: torch.Tensor) -> torch.Tensor:  # its Hessian has the diagonal b
        return (a * of + 0.5 * b * of * of).sum()

    delta = a + b * h
    assert torch.allclose(f.backward(delta, h), grad(lambda z: loss(f.forward(z)))(z))
    hessian = torch.autograd.functional.hessian(lambda z: loss(f.forward(z)), z)
    expected = torch.as_tensor(hessian).diagonal()
    found = f.curve(b.expand_as(h), delta, h)
    assert torch.allclose(found, expected) and f.bent == (name == "tanh")


def test_crelu_gives_both_signs_of_a_unit_side_by_side():
    h = ACTIVATIONS["crelu"].forward(torch.tensor([[1.0, -2.0, 0.0]]))
    assert h.tolist() == [[1.0, 0.0, 0.0, 2.0, 0.0, 0.0]]


def test_the_layer_behind_crelu_has_twice_the_inputs():
    shapes = LearnerConfig(widths=(5, 4), activation="crelu").shapes(9, 3)
    assert [(s.in_features, s.out_features) for s in shapes] == [(9, 5), (10, 4), (8, 3)]


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("batch", [1, 4])
def test_a_step_by_hand_is_that_of_autograd(name, batch):
    graph = TopologyConfig(kind="er_fixed", density=0.4)
    learner = LearnerConfig(width=8, layers=2, activation=name)
    pack = Pack(config(seeds=2, topology=graph, learner=learner), images(), 0)
    x, y = torch.rand(2, batch, 9), torch.randint(3, (2, batch))
    logits, _ = pack.model.learn(x, y)
    by_hand = [param.grad.clone() for param in pack.model.parameters()]
    pack.optimizer.zero_grad()
    expected = pack.model(x)
    F.cross_entropy(expected.flatten(0, 1), y.flatten(), reduction="sum").div(batch).backward()
    assert torch.allclose(logits, expected, atol=1e-6)
    for found, param in zip(by_hand, pack.model.parameters(), strict=True):
        assert torch.allclose(found, param.grad, atol=1e-6) and found.abs().sum() > 0
    behind = pack.model.masks()["layers.1.weight"]
    assert behind.shape == (2, 8, 16 if name == "crelu" else 8)


def test_a_unit_of_crelu_is_dead_where_its_input_is_always_zero():
    z = torch.tensor([[[1.0, -3.0, 0.0, 0.0], [2.0, -1.0, 0.0, 0.0]]])
    (found,) = layer_figures(ACTIVATIONS["crelu"].forward(z), 2)
    assert found["dead"] == 0.5 and found["dormant"] == 0.5  # of four units, not of eight halves
    assert found["srank99"] == 2


def methods_pack(**methods) -> Pack:
    return Pack(config(learner=CRELU, methods=methods, batch=3, samples=30), images(), 0)


def test_a_unit_of_crelu_begins_anew_with_both_halves():
    pack = methods_pack(redo=RedoConfig())
    group, layer, after = pack.context.units["layers.0"], *list(pack.model.layers)[:2]
    assert group.num_units == 8 and group.num_columns == 2
    before = after.weight.detach().clone()
    rng = pack.context.network_generator((0,), "test")
    pack.context.begin_anew(group, torch.tensor([1, 6]).numpy(), rng, (0,))
    changed = (after.weight != before).any(1).flatten().nonzero().flatten()
    assert changed.tolist() == [2, 3, 12, 13] and not after.weight[:, :, [2, 3, 12, 13]].any()
    assert layer.bias[0, 1] == 0 and after.weight.shape == (1, 8, 16)


def test_methods_see_the_input_of_a_unit_of_crelu_and_both_its_columns():
    pack = methods_pack(redo=RedoConfig())
    x = torch.rand(1, 3, 9)
    pack.context.arm_units()
    pack.model.learn(x, torch.tensor([[0, 1, 2]]))
    first, second, _ = list(pack.model.layers)
    figures = pack.context.unit_figures()["layers.0"]
    z = x @ first.weight.detach().transpose(1, 2)
    assert torch.allclose(figures.mean_abs, z.abs().mean(1), atol=1e-6)
    columns = second.weight.detach().abs().view(8, 8, 2).mean((0, 2))[None]
    assert torch.allclose(figures.outgoing, columns)


@pytest.mark.parametrize(
    "methods",
    [
        {"cbp": CbpConfig(rate=0.01, maturity=5)},
        {"redo": RedoConfig(every=40, tau=0.5)},
        {"upgd": UpgdConfig(utility="feature", sigma=0.1)},
    ],
    ids=lambda methods: next(iter(methods)),
)
def test_networks_of_crelu_learn_with_methods_about_units(methods):
    settings = config(learner=CRELU, methods=methods, samples=120, tasks=1)
    pack, found = Pack(settings, images(12), 0), []
    pack.train(lambda kind, **v: found.append((kind, v)), lambda p: None, lambda *a: None)
    (share,) = [v["online_accuracy"] for kind, v in found if kind == "task"]
    assert share > 0.4 and all(getattr(m, "num_replaced", 1) > 0 for m in pack.methods.methods)


def test_what_crelu_does_not_go_with_is_said():
    settings = config(learner=CRELU, methods={"cbp": CbpConfig(bias_transfer=True)})
    with pytest.raises(ValueError, match="methods.cbp.bias_transfer=true knows one mean"):
        check_methods(settings, CRELU.shapes(9, 3))
    with pytest.raises(ValueError, match="learner.activation=tanh: convnet takes relu"):
        config(
            stream=StreamConfig(kind="class_incremental"),
            learner=LearnerConfig(kind="convnet", activation="tanh"),
        )
