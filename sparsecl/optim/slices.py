"""The one view of "my part of this parameter": fp32 master, gradient, moments, mask.

DeepSpeed keeps the tensors that the optimizer steps in a different place for every ZeRO stage and
precision (optim/deepspeed/wrappers.py). A `Slice` says where one parameter's part lies on this
rank; everything elementwise on the optimizer side (projection onto the mask, audit, EWC,
checkpoints) is written on slices once.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch

from sparsecl import dist
from sparsecl.optim.deepspeed.known import take
from sparsecl.optim.deepspeed.wrappers import find_wrapper
from sparsecl.optim.slice import Slice


class Slices:
    """All slices of this rank, in the order of the model's parameters.

    A rank that owns no part of a parameter has no slice of it, so loops over slices must not call
    collectives.
    """

    def __init__(self, engine: Any) -> None:
        """Find the slices of a DeepSpeed engine. Local."""
        self.wrapper = find_wrapper(engine)
        self.optimizer: torch.optim.Optimizer = take(engine, "basic_optimizer")
        self.stage: int = engine.zero_optimization_stage()
        names = {param: name for name, param in engine.module.named_parameters()}
        self._params = {name: param for param, name in names.items()}
        found = {item.name: item for item in self.wrapper.slices(names)}
        self._slices = [found[name] for name in names.values() if name in found]
        self.partitioned = self.stage > 0

    def __iter__(self) -> Iterator[Slice]:
        return iter(self._slices)

    def __len__(self) -> int:
        return len(self._slices)

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """All parameters of this tp rank by name, also those that it has no slice of."""
        return dict(self._params)

    def find(self, name: str) -> Slice | None:
        """The slice of one parameter; None if this rank holds no part of it."""
        return next((item for item in self._slices if item.name == name), None)

    def moment_names(self) -> list[str]:
        """Names of the optimizer's elementwise states, the same on all ranks; empty before the
        first step."""
        return list(self.moments(self._slices[0])) if self._slices else []

    def moments(self, item: Slice) -> dict[str, torch.Tensor]:
        """Views [numel] of every elementwise state of the optimizer, by its name.

        Empty before the first step, because optimizers create their state lazily.
        """
        state = self.optimizer.state.get(item.stepped, {})
        return {
            key: item.cut(value)
            for key, value in state.items()
            if torch.is_tensor(value) and value.numel() == item.stepped.numel() and value.dim() > 0
        }

    def lr(self, item: Slice) -> float:
        """The learning rate that a slice is stepped with; only while it is (`after_update`)."""
        groups = self.optimizer.param_groups
        return next(g["lr"] for g in groups if any(p is item.stepped for p in g["params"]))

    def decay(self, item: Slice) -> float:
        """Share of itself that a slice loses in a step beside what its gradient does; 0 where the
        decay goes through moments (Adam, SGD with momentum). Only while it is stepped."""
        optimizer = self.optimizer
        group = next(
            g for g in optimizer.param_groups if any(p is item.stepped for p in g["params"])
        )
        if isinstance(optimizer, torch.optim.SGD):
            apart = not group["momentum"]
        elif isinstance(optimizer, torch.optim.Adam):
            apart = isinstance(optimizer, torch.optim.AdamW)
        else:  # DeepSpeed's Adam says which one it is; Muon decays as AdamW does
            apart = bool(getattr(optimizer, "adam_w_mode", True))
        return float(group["lr"]) * float(group.get("weight_decay", 0.0)) if apart else 0.0

    def num_updates(self, item: Slice) -> float:
        """Steps that the optimizer has counted for a slice: what Adam's bias correction goes by."""
        state = self.optimizer.state.get(item.stepped, {})
        groups = self.optimizer.param_groups
        return float(state.get("step", next((g["step"] for g in groups if "step" in g), 0)))

    @property
    def loss_scale(self) -> float:
        """What the gradients are multiplied by (fp16); 1.0 in other precisions."""
        return self.wrapper.loss_scale

    def grad(self, item: Slice) -> torch.Tensor | None:
        """View [numel] of the reduced gradient, times `loss_scale`; writing to it counts.

        Exists between the last micro-batch's backward and the step; None at other times.
        """
        return self.wrapper.grad(item)

    def bad_gradients(self) -> list[str]:
        """Parameters whose gradient is not finite on this rank. Local."""
        gradients = [(item.name, self.grad(item)) for item in self]
        found = [(name, gradient) for name, gradient in gradients if gradient is not None]
        if not found:
            return []
        # A sum that is finite has finite terms. One that is not may have overflowed: look again.
        sums = torch.stack([gradient.sum(dtype=torch.float32) for _, gradient in found]).tolist()
        return [
            name
            for (name, gradient), total in zip(found, sums, strict=True)
            if not math.isfinite(total) and not bool(torch.isfinite(gradient).all())
        ]

    def refresh_norms(self) -> None:
        """Tell DeepSpeed that gradients were changed after backward. Local."""
        self.wrapper.refresh_norms(self)

    def grad_norm(self) -> float:
        """L2 norm of the whole model's reduced gradient, unscaled. Collective over the world.

        Gradients of absent weights are zero, so this is the norm over live weights.
        """
        total = torch.zeros(1, dtype=torch.float64, device=dist.device())
        for item in self:
            gradient = self.grad(item)
            if gradient is not None and is_counted(item.param):
                total += gradient.double().square().sum().to(total.device)
        dist.all_reduce(total, group=None if self.partitioned else dist.tp_group())
        return float(total.sqrt()) / self.loss_scale

    def sync_masters(self) -> None:
        """Set every master to its weight and forget the optimizer's state. Local.

        DeepSpeed's stage 0 wrappers take an optimizer step with zero gradients when they are
        built, which applies weight decay to the masters and counts as a step in Adam's bias
        correction. A run must not begin like that.
        """
        for item in self:
            item.master.copy_(item.weight)
        self.optimizer.state.clear()


def is_counted(param: torch.nn.Parameter) -> bool:
    """True if this tp rank counts `param` in sums over tp: replicated ones count once."""
    return dist.tp_rank() == 0 or bool(getattr(param, "tensor_model_parallel", False))
