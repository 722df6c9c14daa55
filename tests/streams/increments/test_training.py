"""A network on classes in increments: against plain torch, its arms, and its units."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sparsecl import seeding
from sparsecl.methods.plasticity.config import (
    CbpConfig,
    L2InitConfig,
    RedoConfig,
    ShrinkPerturbConfig,
)
from sparsecl.sparse.units import unit_groups
from sparsecl.streams.config import LearnerConfig, StepConfig, StreamRunConfig
from sparsecl.streams.increments.networks import build_network
from sparsecl.streams.increments.training import NetworkPack
from sparsecl.topology.config import TopologyConfig
from tests.streams.increments.small import config, split

CBP = {"cbp": CbpConfig(rate=0.05, maturity=3)}
SPARSE = TopologyConfig(kind="er_fixed", density=0.3)


def trained(settings: StreamRunConfig) -> tuple[NetworkPack, list[dict[str, Any]]]:
    """A network at its end, and its records."""
    found: list[dict[str, Any]] = []
    pack = NetworkPack(settings, split(), 0)
    pack.train(
        lambda kind, **values: found.append({"kind": kind, **values}),
        lambda pack: None,
        lambda *args: None,
    )
    return pack, found


def weights(pack: NetworkPack) -> dict[str, torch.Tensor]:
    return {name: param.detach().clone() for name, param in pack.model.named_parameters()}


def test_a_plain_network_learns_the_same():
    """Forty lines of torch, from the weights that the run begins with."""
    settings = config()
    begin = NetworkPack(settings, split(), 0)
    data, read = begin.data, begin.pixels.read
    p = {name: value.requires_grad_() for name, value in weights(begin).items()}
    speed = {name: torch.zeros_like(value) for name, value in p.items()}

    def logits(x: torch.Tensor, seen: int) -> torch.Tensor:
        for k in range(2):
            x = F.conv2d(x, p[f"convs.{k}.weight"], p[f"convs.{k}.bias"], padding=1)
            x = F.max_pool2d(x.relu(), 2)
        return F.linear(x.mean((2, 3)), p["head.weight"], p["head.bias"])[:, :seen]

    def right(rows: np.ndarray, seen: int, test: bool) -> float:
        x, y = read(rows, test=test)
        return float((logits(x, seen).argmax(1) == y).double().mean())

    expected = []
    for task, seen in enumerate((2, 4)):
        rows, best = data.train_rows(task), (-1.0, {})
        for epoch, factor in enumerate((1.0, 0.2, 0.008)):
            order = seeding.stream(0, "class_incremental", "order", task, epoch).permutation(rows)
            for at in range(0, len(rows) - 3, 4):
                x, y = read(order[at : at + 4])
                loss = F.cross_entropy(logits(x, seen), y)
                for (name, value), grad in zip(
                    p.items(), torch.autograd.grad(loss, list(p.values())), strict=True
                ):
                    speed[name] = 0.9 * speed[name] + grad + 1e-3 * value.detach()
                    value.data -= 0.05 * factor * speed[name]
            share = right(data.validation_rows(task), seen, False)
            if share > best[0]:
                best = share, {name: value.detach().clone() for name, value in p.items()}
        for name, value in p.items():
            value.data.copy_(best[1][name])
        expected.append([right(part.test, seen, True) for part in data.parts[: task + 1]])
    pack, records = trained(settings)
    assert [r["row"] for r in records if r["kind"] == "task"] == expected
    for name, value in weights(pack).items():
        assert torch.allclose(value, p[name], atol=1e-5), name


def test_logits_of_classes_that_have_not_come_are_not_trained():
    settings = config(increments={"epochs": 1}, optimizer=StepConfig(lr=0.05))
    pack = NetworkPack(settings, split(), 0)
    before = weights(pack)
    pack.begin()
    pack.learn(lambda pack: None, lambda *args: None)
    after = weights(pack)
    assert torch.equal(before["head.weight"][2:], after["head.weight"][2:])
    assert not torch.equal(before["head.weight"][:2], after["head.weight"][:2])


def test_arms_differ_by_what_begins_anew():
    pack = NetworkPack(config(increments={"reset": "head"}), split(), 0)
    whole = NetworkPack(config(increments={"reset": "network"}), split(), 0)
    for one in (pack, whole):
        before = weights(one)
        one.position.task = 1
        one.begin()
        changed = {
            name for name, value in weights(one).items() if not torch.equal(value, before[name])
        }
        # Biases are zero before and after.
        matrices = {name for name, value in before.items() if value.dim() > 1}
        assert changed == (matrices if one is whole else {"head.weight"})


@pytest.mark.parametrize(
    ("learner", "changes"),
    [
        ("convnet", {"methods": {**CBP, "l2_init": L2InitConfig(strength=0.01)}}),
        ("mlp", {"methods": {**CBP, "shrink_perturb": ShrinkPerturbConfig()}, "topology": SPARSE}),
        ("resnet18", {"methods": CBP, "increments": {"epochs": 1, "flip": True, "crop": 1}}),
        ("convnet", {"methods": {"redo": RedoConfig(every=3, tau=0.5)}}),
    ],
    ids=["convnet", "mlp, sparse", "resnet", "redo"],
)  # fmt: skip
def test_methods_run_on_every_network(learner, changes):
    pack, records = trained(config(learner, **changes))
    renewing = next(m for m in pack.methods.methods if m.name in ("cbp", "redo"))
    assert renewing.num_replaced > 0
    assert [len(r["row"]) for r in records if r["kind"] == "task"] == [1, 2]
    panels = [r for r in records if r["kind"] == "before"]
    assert len(panels) == 2 and all(0 <= r["dead"] <= 1 and r["final_erank"] >= 1 for r in panels)
    for name, dead in pack.model.masks().items():
        assert dead.any() and not weights(pack)[name][dead].any()
    assert (pack.guard.checks, pack.nonzero) == (2, 0)


def test_a_channel_that_begins_anew_has_fresh_filters_and_is_heard_by_none():
    pack, _ = trained(config("resnet18", methods=CBP, increments={"epochs": 1}))
    pack.optimizer.zero_grad()
    group = unit_groups(pack.model)["blocks.2.act"]
    before, units = weights(pack), np.array([1, 3])
    norm: Any = pack.model.get_submodule("blocks.2.first.norm")
    assert norm.running_mean[1] != 0.0
    pack.context.begin_anew(group, units, np.random.default_rng(0))
    after, others = weights(pack), [0, 2, 4, 5, 6, 7]
    conv, behind = "blocks.2.first.conv.weight", "blocks.2.second.conv.weight"
    assert not after[behind][:, units].any()
    assert torch.equal(after[behind][:, others], before[behind][:, others])
    assert torch.equal(after[conv][others], before[conv][others])
    assert (after[conv][units] != before[conv][units]).all()
    assert after["blocks.2.first.norm.weight"][units].tolist() == [1.0, 1.0]
    assert norm.running_mean[units].tolist() == [0.0, 0.0]
    assert norm.running_var[units].tolist() == [1.0, 1.0]
    moments = pack.optimizer.state[dict(pack.model.named_parameters())[conv]]["momentum_buffer"]
    assert not moments[units].any() and moments[others].any()


def test_unit_figures_by_hand():
    pack = NetworkPack(config(methods=CBP), split(), 0)
    pack.context.arm_units()
    x, _ = pack.pixels.read(np.arange(5))
    pack.model(x)
    conv: Any = pack.model.get_submodule("convs.0")
    h = conv(x).relu().detach()
    found = pack.context.unit_figures()["acts.0"]
    assert torch.allclose(found.mean_abs, h.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(found.active, (h > 0).float().mean((0, 2, 3)))
    w = weights(pack)
    assert torch.allclose(found.incoming, w["convs.0.weight"].abs().mean((1, 2, 3)))
    assert torch.allclose(found.outgoing, w["convs.1.weight"].abs().mean((0, 2, 3)))


def test_the_real_resnet18_has_the_size_that_is_known_of_it():
    learner = LearnerConfig(kind="resnet18", width=64)
    dense = TopologyConfig(kind="dense")
    model = build_network(learner, dense, channels=3, side=32, classes=100, seed=0)
    assert sum(param.numel() for param in model.parameters()) == 11_220_132
    model.add_units()
    assert [group.num_units for group in unit_groups(model).values()] == [
        64, 64, 128, 128, 256, 256, 512, 512,
    ]  # fmt: skip
    hidden, final = model.eval().hidden(torch.zeros(1, 3, 32, 32))
    assert len(hidden) == 17 and final.shape == (1, 512) and hidden[0].shape == (1024, 64)
