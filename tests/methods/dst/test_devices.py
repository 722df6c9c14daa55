"""A rewire stays on the device of the weights: on a stand-in for a GPU, which no test needs.

Its tensors keep their numbers on the CPU and say that they are elsewhere. Like a GPU's they refuse
to meet those of the CPU, and it is counted how often the host waits for a number.
"""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from sparsecl import dist
from sparsecl.methods.dst.base import InPlaceOfAStep
from sparsecl.methods.dst.cht import Cht
from sparsecl.methods.dst.chts import Chts
from sparsecl.methods.dst.config import (
    ChtConfig,
    ChtsConfig,
    DeepRConfig,
    GranetConfig,
    RiglConfig,
    SetConfig,
    SnfsConfig,
)
from sparsecl.methods.dst.deep_r import DeepR
from sparsecl.methods.dst.granet import Granet
from sparsecl.methods.dst.rigl import Rigl
from sparsecl.methods.dst.set import Set
from sparsecl.methods.dst.snfs import Snfs
from sparsecl.sparse.linear import ColumnParallelSparseLinear
from sparsecl.sparse.rewire import rewire, set_live
from sparsecl.topology.layer import LayerShape, LayerTopology
from tests.methods.plain import START

FAR = torch.device("meta")
MOST_WAITS = 11
"""For each matrix."""

NAMES = [f"layers.0.mlp.{name}.weight" for name in ("up", "down")]


class FarTensor(torch.Tensor):
    """One that says it is on the device."""

    near: torch.Tensor

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> "FarTensor":
        place = {"strides": near.stride(), "dtype": near.dtype, "device": FAR}
        made = torch.Tensor._make_wrapper_subclass(cls, near.shape, **place)
        made.near = near
        return made

    def tolist(self) -> list[Any]:  # torch's own knows no other class
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} without the device")


class FarDevice(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, given = func.overloadpacket.__name__, dict(kwargs or {})
        tensors = [x for x in tree_flatten((args, given))[0] if isinstance(x, torch.Tensor)]
        far = {id(x.near): x for x in tensors if isinstance(x, FarTensor)}
        copies = name in ("_to_copy", "copy_")
        if far and not copies:
            alien = [x for x in tensors if not isinstance(x, FarTensor) and x.dim()]
            assert not alien, f"{name} of both devices"
        stays = bool(far) and not (
            name == "_to_copy" and given.get("device") == torch.device("cpu")
        )
        stays = stays or given.get("device") == FAR
        if given.get("device") == FAR:
            given["device"] = torch.device("cpu")
        args, given = tree_map(lambda x: x.near if isinstance(x, FarTensor) else x, (args, given))
        masked = name in ("index", "index_put_") and any(
            x is not None and x.dtype == torch.bool for x in args[1]
        )
        if far and (masked or not stays or name in ("nonzero", "_local_scalar_dense")):
            self.waits[name] += 1
        found = func(*args, **given)
        if not stays:
            return found

        def back(x: Any) -> Any:
            """What was changed in place is the same tensor again."""
            if not isinstance(x, torch.Tensor):
                return x
            return far[id(x)] if id(x) in far else FarTensor(x)

        return tree_map(back, found)


class Context:
    """Two layers of a block, with the weights and gradients of all cells."""

    def __init__(self, far: bool) -> None:
        rng, self.far = np.random.default_rng(0), far
        self.progress = replace(START, step=1, total_steps=100, phase_steps=100)
        optimizer = SimpleNamespace(param_groups=[{"lr": 0.1}])
        self.slices = SimpleNamespace(find=lambda name: None, optimizer=optimizer)
        self.sparse, self.given = {}, {}
        self.update_skipped = True
        for name, (rows, columns) in zip(NAMES, ((24, 16), (16, 24)), strict=True):
            mask = rng.random((rows, columns)) < 0.3
            layer = ColumnParallelSparseLinear(
                LayerShape(name, "up", rows, columns), LayerTopology.from_mask(name, mask)
            )
            drawn = torch.from_numpy(rng.standard_normal((2, rows, columns), np.float32))
            weight, gradient = drawn.mul_(4).round_()  # many are equal
            weight[:, ::3] = 0.0  # what DEEP R has lost
            assert layer.dead is not None
            layer.dead, *self.given[name] = map(self.on, (layer.dead, weight, gradient))
            self.sparse[name] = Entry(layer)

    def each(self) -> tuple["Context"]:
        return (self,)

    def on(self, tensor: torch.Tensor) -> torch.Tensor:
        return FarTensor(tensor) if self.far else tensor

    def generator(self, *names: str | int) -> np.random.Generator:
        return np.random.default_rng(sum(map(ord, "".join(map(str, names)))))

    def matrix(self, name: str) -> torch.Tensor:
        weight, dead = self.given[name][0], self.sparse[name].layer.dead
        return torch.where(dead, 0.0, weight)

    def dense_gradient(self, name: str) -> torch.Tensor:
        return self.given[name][1]

    def arm_dense_gradients(self) -> None:
        pass

    def joined(self, name: str, local: torch.Tensor) -> torch.Tensor:
        return local

    def local_of(self, name: str, matrix: torch.Tensor) -> torch.Tensor:
        return matrix

    def rewire(self, name: str, drop: torch.Tensor, grow: torch.Tensor) -> torch.Tensor:
        return rewire(self.sparse[name].layer, drop, grow).grown

    def set_live(self, name: str, mask: torch.Tensor) -> torch.Tensor:
        return set_live(self.sparse[name].layer, mask).grown

    def reset_state(self, name: str, where: torch.Tensor) -> None:
        assert where.device == self.given[name][0].device

    def write(self, name: str, value: torch.Tensor, where: torch.Tensor) -> None:
        assert value.device == where.device == self.given[name][0].device


class Entry:
    def __init__(self, layer: ColumnParallelSparseLinear) -> None:
        self.layer = layer

    @property
    def topology(self) -> LayerTopology:
        assert self.layer.topology is not None
        return self.layer.topology


CASES = {
    "set": Set(SetConfig(every=1)),
    "magnitude": Set(SetConfig(every=1, drop="magnitude")),
    "mest": Set(SetConfig(every=1, drop="mest")),
    "rigl": Rigl(RiglConfig(every=1)),
    "snfs": Snfs(SnfsConfig(every=1)),
    "granet": Granet(GranetConfig(every=1, final_density=0.1)),
    "granet by layer": Granet(GranetConfig(every=1, final_density=0.1, scope="layer")),
    "deep_r": DeepR(DeepRConfig(every=1)),
    "deep_r soft": DeepR(DeepRConfig(every=1, variant="soft", l1=1e-3, noise=1e-2)),
    "cht": Cht(ChtConfig(every=1, score="ch3_l3n")),
    "chts": Chts(ChtsConfig(every=1)),
    "chts top": Chts(ChtsConfig(every=1, growth="top", removal="magnitude")),
    "chtss": Chts(ChtsConfig(every=1, final_density=0.1)),
}


def rewired(method: Any, far: bool) -> dict[str, str]:
    """Digests of the graphs after a rewire of a fresh copy of the method."""
    context: Any = Context(far)
    method = type(method)(method.config)
    method.step_start(context)
    before = {name: entry.topology.digest for name, entry in context.sparse.items()}
    method.after_step(context, applied=not isinstance(method, InPlaceOfAStep))
    found = {name: entry.topology.digest for name, entry in context.sparse.items()}
    assert all(found[name] != digest for name, digest in before.items())
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_graph_is_the_same_and_the_host_seldom_waits(monkeypatch, case):
    here = rewired(CASES[case], far=False)
    monkeypatch.setattr(dist, "device", lambda: FAR)
    with FarDevice() as device, torch.no_grad():
        there = rewired(CASES[case], far=True)
    assert there == here
    assert sum(device.waits.values()) <= MOST_WAITS * len(NAMES), device.waits
