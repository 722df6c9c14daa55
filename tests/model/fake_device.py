"""A forward and backward pass of every storage on a GPU that is not there; a script, since torch
learns of such a device once in a process and before the first backward pass.

Tensors have shapes, types and a device, and no content: what reads one on the host fails, and so
does a tensor that was left on the CPU. Kernels are counted in place of being launched.
"""

import json
from collections import Counter
from contextlib import ExitStack
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

from sparsecl.model.build import build_gpt
from sparsecl.model.config import ModelConfig
from sparsecl.sparse import block_kernels, kernels
from sparsecl.topology.config import BlockConfig, TopologyConfig

DEVICE = "fakegpu"
STORAGES = {
    "dense": {"kind": "dense"},
    "masked": {"density": 0.3},
    "packed": {"density": 0.3, "storage": "packed"},
    "packed, few": {"density": 0.02, "storage": "packed"},  # int32 indices in place of a bitmap
    "packed, kept": {"density": 0.3, "storage": "packed", "keep_expansion": True},
    "block": {"density": 0.5, "backend": "block", "block": BlockConfig(size=16)},
    "packed, block": {
        "density": 0.5,
        "backend": "block",
        "block": BlockConfig(size=16),
        "storage": "packed",
    },
}


def move(module: torch.nn.Module) -> None:
    """What `module.to` does, in bf16; buffers keep their type."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                empty = torch.empty(value.shape, dtype=torch.bfloat16, device=DEVICE)
                part._parameters[name] = torch.nn.Parameter(empty)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device=DEVICE)


class Kernels(TorchDispatchMode):
    """Counts torch's operations that are more than another view of a tensor, or an empty one."""

    def __init__(self, launched: Counter[str]) -> None:
        super().__init__()
        self.launched = launched

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func._schema.returns[0].alias_info if func._schema.returns else None
        name = func.overloadpacket.__name__
        is_view = result is not None and not result.is_write
        if not is_view and "empty" not in name and name not in ("device", "_unsafe_view"):
            self.launched["torch." + name] += 1
        return func(*args, **(kwargs or {}))


def passed(storage: str, *, stray: str | None = None) -> dict[str, int]:
    """Kernels of one pass. `stray` names a buffer that stays on the CPU."""
    model = build_gpt(
        ModelConfig(preset=None, layers=1, width=64, heads=4, context=16),
        TopologyConfig(**STORAGES[storage]),  # pyright: ignore[reportArgumentType]
        vocab_size=100,
        seed=5,
    )
    launched: Counter[str] = Counter()

    def count(name):
        return lambda *_, **__: launched.update([name])

    with ExitStack() as stack:
        patches = [
            mock.patch.object(kernels, "available", lambda device: device.type == DEVICE),
            mock.patch.object(kernels, "_launch", lambda name, *_: launched.update([name])),
        ]
        patches += [
            mock.patch.object(block_kernels, name, count(name))
            for name in ("forward_product", "grad_input", "grad_values")
        ]
        for patch in patches:
            stack.enter_context(patch)
        stack.enter_context(FakeTensorMode())
        move(model)
        if stray is not None:
            owner, _, name = stray.rpartition(".")
            part = model.get_submodule(owner)
            part._buffers[name] = torch.empty_like(part._buffers[name], device="cpu")
        tokens = torch.zeros(128, 17, dtype=torch.int64, device=DEVICE)
        weight = torch.ones(128, device=DEVICE)
        stack.enter_context(Kernels(launched))
        losses, _, loss = model(tokens[:, :-1], tokens[:, 1:], weight=weight)
        loss.backward()
        assert losses.device.type == DEVICE
        gradients = {parameter.grad.device.type for parameter in model.parameters()}
        assert gradients == {DEVICE}, gradients
    return dict(launched)


def main() -> None:
    """Print what was launched, by storage, and what a stray tensor ends with."""
    backend_registration._setup_privateuseone_for_python_backend(DEVICE)
    found: dict[str, object] = {storage: passed(storage) for storage in STORAGES}
    try:
        found["stray"] = passed("masked", stray="layers.0.mlp.up.dead")
    except RuntimeError as error:
        found["stray"] = str(error)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
