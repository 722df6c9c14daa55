"""The guard: absent weights, their gradients and their moments are exactly zero, and it is proved.

One function for all ways to train. What it is given decides which guard it makes:

| given                        | guard                                                        |
|------------------------------|--------------------------------------------------------------|
| model and torch optimizers   | `TorchGuard`: a plain loop, DDP, FSDP2, Accelerate           |
| an engine of DeepSpeed       | `EngineGuard`: ZeRO 0 to 3, by the guard of our own runs     |
| a Trainer of transformers    | `TrainerGuard`: one of the others, made when training begins |

Three lines of defence, as in optim/masking.py: the gradient is selected in the backward pass
(masks.py), weights and moments are projected after every step, and the audit counts.
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsecl.errors import UserError
from sparsecl.library.audit import Counts, Guard
from sparsecl.library.masks import WeightMask, checked_layers, local
from sparsecl.optim.zeroing import zero_absent


def mask_guard(model: Any, *optimizers: Any) -> Guard:
    """Keep the absent weights of a masked model at exactly zero while it is trained.

    Sets them to zero at once, weights and state: loading a checkpoint may come before or after.

    Args:
        model: masked by `mask_linears` or `mask_linear`, wrapped or not; or an engine of DeepSpeed,
            or a Trainer of transformers, which bring their optimizer along.
        optimizers: all that step masked weights of the model, as torch or Accelerate has them.
            Create them after FSDP2's `fully_shard`, as torch asks for.

    Raises:
        UserError: no layer is masked; or an optimizer does not hold what the model trains.
    """
    if _is_trainer(model):
        from sparsecl.library.trainer import TrainerGuard

        return TrainerGuard(model, mask_guard)
    if hasattr(model, "zero_optimization_stage") and hasattr(model, "module"):
        from sparsecl.library.engine import EngineGuard

        return EngineGuard(model)
    return TorchGuard(model, [_unwrapped(optimizer) for optimizer in optimizers])


def _is_trainer(model: Any) -> bool:
    """By what has been imported: without transformers' trainer there is none."""
    trainer = getattr(sys.modules.get("transformers.trainer"), "Trainer", None)
    return trainer is not None and isinstance(model, trainer)


def _unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer that steps: inside Accelerate's, which is one of torch's by name only."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(f"mask_guard: {type(optimizer).__name__} is no torch optimizer")
    return optimizer


class TorchGuard(Guard):
    """For optimizers that step the parameters themselves, whole or as DTensors."""

    def __init__(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        if not optimizers:
            raise UserError("mask_guard: give the optimizer too: mask_guard(model, optimizer)")
        self._layers = checked_layers(model)
        self._optimizers = tuple(optimizers)
        self._stepped: dict[str, Tensor] = {}
        with torch.no_grad():
            for _, layer, mask in self._layers:
                mask.clear(layer.weight)
                if layer.weight.grad is not None:
                    mask.clear(layer.weight.grad)
            for optimizer in self._optimizers:
                self._after_step(optimizer)
        self._hooks = [
            hook
            for each in self._optimizers
            for hook in (
                each.register_step_pre_hook(self._before_step),
                each.register_step_post_hook(self._after_step),
            )
        ]

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _weights(self) -> dict[str, tuple[Tensor, WeightMask, torch.optim.Optimizer | None]]:
        """By name: what is stepped, its mask, and who steps it; None for a frozen weight.

        Looked up at each use: wrapping a model may give a layer another parameter.
        """
        owner = {id(p): o for o in self._optimizers for g in o.param_groups for p in g["params"]}
        found = {}
        for name, layer, mask in self._layers:
            weight = layer.weight
            # FSDP2 shows the gathered weight until it is sharded again.
            if id(weight) not in owner and name in self._stepped:
                weight = self._stepped[name]
            if id(weight) in owner:
                self._stepped[name] = weight
            elif weight.requires_grad:
                raise UserError(
                    f"mask_guard: no optimizer that it was given holds {name}. Create it from "
                    "the parameters of this model, after fully_shard; if there are several, give "
                    "all; freeze what is not trained (requires_grad_(False))"
                )
            found[name] = weight, mask, owner.get(id(weight))
        return found

    @torch.no_grad()
    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Gradients that no backward pass has selected: a penalty's, or one that was assigned."""
        for weight, mask, owner in self._weights().values():
            if owner is optimizer and weight.grad is not None:
                mask.clear(weight.grad)

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for name, (weight, mask, owner) in self._weights().items():
            if owner is optimizer:
                state = _state(optimizer, weight, name).values()
                zero_absent((local(weight), *state), mask.dead(weight))

    def counts(self) -> Counts:
        counts = {}
        for name, (weight, mask, owner) in self._weights().items():
            dead = mask.dead(weight)
            copies = {"weight": local(weight)}
            if weight.grad is not None:
                counts[name, "gradient"] = _count(local(weight.grad), mask.dead(weight.grad))
            if owner is not None:
                copies |= _state(owner, weight, name)
            counts |= {(name, copy): _count(tensor, dead) for copy, tensor in copies.items()}
        return counts


def _count(tensor: Tensor, dead: Tensor) -> Tensor:
    return (tensor.ne(0) & dead).sum()


def _state(optimizer: torch.optim.Optimizer, weight: Tensor, name: str) -> dict[str, Tensor]:
    """What the optimizer keeps for each element of a weight, in the weight's local shape.

    Sums over rows and columns, as Adafactor keeps them, are nothing of single elements.
    """
    shape, found = local(weight).shape, {}
    for key, value in optimizer.state.get(weight, {}).items():
        if not isinstance(value, Tensor) or not value.dim():
            continue
        part = local(value)
        if part.numel() != shape.numel():
            continue
        if not part.is_floating_point() or part.element_size() < 2:
            raise UserError(
                f"mask_guard: {type(optimizer).__name__} keeps {key} of {name} as {part.dtype}, of "
                "which zero cannot be told. Use an optimizer whose state is floating-point"
            )
        found[key] = part.view(shape)
    return found
