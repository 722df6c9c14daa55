"""Many steps in C are the steps that torch makes, but for the rounding of sums."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from sparsecl import signals
from sparsecl.errors import Preempted
from sparsecl.methods.dst.config import RiglConfig, SetConfig
from sparsecl.methods.plasticity.config import (
    CbpConfig,
    L1Config,
    L2Config,
    L2InitConfig,
    RedoConfig,
    ShrinkPerturbConfig,
    UpgdConfig,
)
from sparsecl.streams import native, run
from sparsecl.streams.activations import ACTIVATIONS
from sparsecl.streams.config import LearnerConfig, PanelConfig, StepConfig
from sparsecl.streams.loop import Pack
from sparsecl.topology.config import TopologyConfig
from tests.streams.small import config, images

pytestmark = pytest.mark.skipif(native._library() is None, reason="no compiler at installation")

CBP: dict[str, Any] = {"rate": 0.01, "maturity": 5}
SPARSE = TopologyConfig(kind="er_fixed", density=0.4)
ADAM = StepConfig(kind="adam", lr=0.003, weight_decay=0.01)
# Inputs and units leave remainders of 16 and of 4 behind.
LEARNER = LearnerConfig(widths=(37, 22))

ARMS: dict[str, dict[str, Any]] = {
    "sgd": {"topology": SPARSE},
    "momentum and decay": {"optimizer": StepConfig(lr=0.01, momentum=0.9, weight_decay=0.01)},
    "adam": {"optimizer": ADAM, "topology": SPARSE},
    "cbp": {"methods": {"cbp": CbpConfig(**CBP)}, "topology": SPARSE},
    "cbp under adam": {
        "methods": {"cbp": CbpConfig(**CBP, utility="adaptable_contribution", bias_transfer=True)},
        "optimizer": ADAM,
    },
    "redo": {"methods": {"redo": RedoConfig(every=7, tau=0.5)}},
    "shrink and perturb": {
        "methods": {"shrink_perturb": ShrinkPerturbConfig(sigma=1e-3, shrink=0.1)},
        "topology": SPARSE,
    },
    "l2 and cbp": {"methods": {"l2": L2Config(strength=0.01), "cbp": CbpConfig(**CBP)}},
    "l2 init": {"methods": {"l2_init": L2InitConfig(strength=0.05, vectors=True)}},
    "l1": {"methods": {"l1": L1Config(strength=0.05)}, "topology": SPARSE},
    "l1, to the start": {
        "methods": {"l1": L1Config(strength=0.1, towards="start", vectors=True)},
        "optimizer": ADAM,
    },
    "l1, subgradient": {"methods": {"l1": L1Config(strength=0.01, form="subgradient")}},
    "set": {
        "methods": {"set": SetConfig(every=10), "cbp": CbpConfig(**CBP)},
        "optimizer": ADAM,
        "topology": SPARSE,
    },
    "rigl": {"methods": {"rigl": RiglConfig(every=10, end=1.0)}, "topology": SPARSE},
    "upgd": {"methods": {"upgd": UpgdConfig(sigma=0.1, beta=0.9)}, "topology": SPARSE},
    "upgd of the code": {
        "methods": {"upgd": UpgdConfig(sigma=0.1, scaling="code", vectors=True)},
        "optimizer": StepConfig(lr=0.02, weight_decay=0.01),
    },
    "upgd, noise alone": {
        "methods": {"upgd": UpgdConfig(sigma=0.1, protecting=False)},
        "optimizer": StepConfig(kind="adamw", lr=0.003, weight_decay=0.1),
    },
}


def settings(name: str, **more: Any) -> Any:
    given = {"optimizer": StepConfig(lr=0.02), "learner": LEARNER, **ARMS[name], **more}
    return config(seeds=2, tasks=2, samples=70, panel=PanelConfig(samples=10, every=40), **given)


def trained(
    name: str, pack: int = 0, inputs: int = 50, **more: Any
) -> tuple[Pack, list[dict[str, Any]], int]:
    """A pack at its end, its records, and how many steps were made by themselves."""
    found: list[dict[str, Any]] = []
    made, steps = Pack(settings(name, **more), images(inputs=inputs), pack), 0
    step = made._step

    def counted(*args: Any) -> None:
        nonlocal steps
        steps += 1
        step(*args)

    made._step = counted
    made.train(
        lambda kind, **values: found.append({"kind": kind, **values}),
        lambda pack: None,
        lambda *args: None,
    )
    return made, found, steps


def state(pack: Pack) -> dict[str, torch.Tensor]:
    return {**pack.state()[0], "rest": torch.tensor(list(numbers(pack.state()[1])))}


def numbers(value: Any) -> Iterator[float]:
    """All that methods keep."""
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, dict | list):
            yield from numbers(item)
        else:
            yield float(item)


@pytest.mark.parametrize("name", ARMS)
def test_it_does_what_torch_does(name, monkeypatch):
    fast, records, steps = trained(name)
    assert steps == {"redo": 20, "set": 15, "rigl": 14}.get(name, steps) and steps <= 20
    monkeypatch.setattr(native, "_library", lambda: None)
    plain, others, steps = trained(name)
    assert steps == 140
    found, wanted = state(fast), state(plain)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        # 140 steps, each of them on the weights that the one before has rounded otherwise.
        assert torch.allclose(found[key], value, rtol=1e-3, atol=2e-5), key
    for record, other in zip(records, others, strict=True):
        assert record.pop("kind") == other.pop("kind")
        assert record == pytest.approx(other, rel=1e-3, abs=1e-4)
    for name, dead in fast.model.masks().items():
        absent = dict(fast.model.named_parameters())[name].detach()[dead]
        assert not absent.view(torch.int32).any()  # +0, to the bit
    for method in fast.methods.methods:
        assert getattr(method, "num_replaced", 9) > 5


@pytest.mark.parametrize("name", ["momentum and decay", "cbp under adam", "l2 and cbp", "upgd"])
def test_networks_are_each_by_itself(name):
    # The first step is one of torch, which wants multiples of 4.
    more: dict[str, Any] = {"inputs": 52, "learner": LearnerConfig(widths=(36, 20))}
    together = trained(name, **more)[0]
    for k in range(2):
        alone = trained(name, k, together=1, **more)[0]
        for a, b in zip(together.model.parameters(), alone.model.parameters(), strict=True):
            assert torch.equal(a[k], b[0])


@pytest.mark.parametrize(
    "name", ["cbp under adam", "set", "shrink and perturb", "upgd of the code"]
)
def test_a_stopped_run_goes_on_bit_for_bit(name, tmp_path, monkeypatch):
    def prepared(folder: str) -> run.Prepared:
        return run.Prepared(settings(name), images(inputs=50), tmp_path / folder)

    run.run(prepared("whole"))
    many = Pack._many_steps
    monkeypatch.setattr(
        Pack, "_many_steps", lambda pack, x, y: signals.note(15) or many(pack, x[:, :23], y[:, :23])
    )
    try:
        with pytest.raises(Preempted):
            run.run(prepared("stopped"))
    finally:
        signals.forget()
    monkeypatch.setattr(Pack, "_many_steps", many)
    run.run(prepared("stopped"))
    ends = [(tmp_path / n / "checkpoints").glob("*.safetensors") for n in ("whole", "stopped")]
    assert next(ends[0]).read_bytes() == next(ends[1]).read_bytes()


def test_what_it_does_not_know_is_left_to_torch():
    for more, steps in (
        ({"batch": 2}, 70),
        ({"methods": {"l1": L1Config(), "shrink_perturb": ShrinkPerturbConfig()}}, 140),
        ({"methods": {"cbp": CbpConfig(utility="random")}}, 140),
        ({"methods": {"upgd": UpgdConfig(utility="feature")}}, 140),
        ({"methods": {"l2": L2Config(), "l2_init": L2InitConfig()}}, 140),
        ({}, 0),
    ):
        assert trained("sgd", **more)[2] == steps, more
    made = Pack(settings("sgd"), images(inputs=50), 0)
    layer: Any = made.model.layers[0]
    layer.activation = ACTIVATIONS["tanh"]
    assert not native.takes(made.model, made.optimizer, 1)
