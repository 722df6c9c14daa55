"""The one view of "my part of this parameter": fp32 master, gradient, moments, mask.

DeepSpeed keeps the tensors that the optimizer steps in a different place for every ZeRO stage and
precision. A `Slice` says where one parameter's part lies on this rank; everything elementwise on
the optimizer side (projection onto the mask, audit, EWC, checkpoints) is written on slices once.

| stage | precision  | what the optimizer steps            | found through                       |
|-------|------------|-------------------------------------|-------------------------------------|
| 0     | fp32       | the parameters themselves           | the parameters                      |
| 0     | bf16, fp16 | an fp32 copy of each parameter      | `fp32_groups` of the wrapper        |
| 0     | bf16, fp16 | one flat copy per group (FusedAdam) | `fp32_groups_flat` of the wrapper   |
| 1, 2  | any        | a flat partition per group          | `round_robin_bit16_offsets`         |
| 1     | bf16 [1]   | a flat partition per group          | `_hp_mapping` of each parameter     |
| 3     | any        | a flat partition per sub-group      | `grad_position` of each parameter   |

[1] with fp32 gradient accumulation. With CPU offload the tensors are the same ones, on the CPU.
Facts of DeepSpeed 0.19.8. NOTE: its `_hp_mapping` (and so `safe_get_full_*`) is wrong for stages 1
and 2 with `round_robin_gradients`, where the flat buffer is not in the parameters' order.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from sparsecl import dist


@dataclass(frozen=True, eq=False)
class Slice:
    """One rank's part of one parameter, a range of the flattened tp-local parameter."""

    name: str
    """Parameter name in the model."""

    param: Any
    """The torch parameter that the forward pass uses, with what DeepSpeed hangs on it."""

    stepped: torch.Tensor
    """The tensor that the optimizer steps; it may hold other parameters' slices too."""

    stepped_start: int
    """Where this slice begins in `stepped`, flattened."""

    start: int
    """Where this slice begins in the tp-local parameter, flattened."""

    numel: int
    """Number of elements of this slice."""

    @property
    def master(self) -> torch.Tensor:
        """View [numel] of the values that the optimizer steps (fp32)."""
        return self.cut(self.stepped)

    @property
    def weight(self) -> torch.Tensor:
        """View [numel] of the values that the forward pass uses, in the run's precision."""
        if hasattr(self.param, "ds_id"):
            return self.param.ds_tensor.detach().view(-1)[: self.numel]
        return self.param.detach().view(-1)[self.start : self.start + self.numel]

    @property
    def local_shape(self) -> torch.Size:
        """Shape of the whole tp-local parameter."""
        return self.param.ds_shape if hasattr(self.param, "ds_id") else self.param.shape

    @property
    def matrix_shape(self) -> torch.Size:
        """The same, of the matrix where it is kept as the vector of its live values."""
        return getattr(self.param, "dense_shape", self.local_shape)

    def cut(self, tensor: torch.Tensor) -> torch.Tensor:
        """This slice's view [numel] of a tensor laid out like `stepped`."""
        flat = tensor.detach().view(-1)
        return flat[self.stepped_start : self.stepped_start + self.numel]

    def part(self, tensor: torch.Tensor) -> torch.Tensor:
        """This slice's view [numel] of a tensor laid out like the tp-local parameter."""
        return tensor.detach().reshape(-1)[self.start : self.start + self.numel]


class Slices:
    """All slices of this rank, in the order of the model's parameters.

    A rank that owns no part of a parameter has no slice of it, so loops over slices must not call
    collectives.
    """

    def __init__(self, engine: Any) -> None:
        """Find the slices of a DeepSpeed engine. Local."""
        self.wrapper = engine.optimizer
        self.optimizer: torch.optim.Optimizer = engine.basic_optimizer
        self.stage: int = engine.zero_optimization_stage()
        names = {param: name for name, param in engine.module.named_parameters()}
        self._params = {name: param for param, name in names.items()}
        found = {item.name: item for item in self._find(names)}
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

    def _find(self, names: dict[Any, str]) -> Iterator[Slice]:
        wrapper = self.wrapper
        if hasattr(wrapper, "fp32_partitioned_groups_flat"):
            yield from _stage3_slices(wrapper, names)
        elif hasattr(wrapper, "single_partition_of_fp32_groups"):
            yield from _stage12_slices(wrapper, names)
        elif hasattr(wrapper, "fp32_groups_flat_partition"):
            yield from _mapped_slices(wrapper.fp32_groups_flat_partition, names)
        elif hasattr(wrapper, "fp32_groups_flat"):
            yield from _fused_slices(wrapper, names)
        elif hasattr(wrapper, "fp32_groups"):
            for masters, params in zip(wrapper.fp32_groups, wrapper.fp16_groups, strict=True):
                for master, param in zip(masters, params, strict=True):
                    yield Slice(names[param], param, master, 0, 0, param.numel())
        else:
            for param, name in names.items():
                yield Slice(name, param, param, 0, 0, param.numel())

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

    def num_updates(self, item: Slice) -> float:
        """Steps that the optimizer has counted for a slice: what Adam's bias correction goes by."""
        state = self.optimizer.state.get(item.stepped, {})
        groups = self.optimizer.param_groups
        return float(state.get("step", next((g["step"] for g in groups if "step" in g), 0)))

    @property
    def loss_scale(self) -> float:
        """What the gradients are multiplied by (fp16); 1.0 in other precisions."""
        scaling = getattr(self.wrapper, "loss_scale_config", None)
        if scaling is not None:
            return float(scaling.cur_scale) if scaling.use_grad_scaling else 1.0
        return float(getattr(self.wrapper, "loss_scale", 1.0))

    @property
    def missing_scale(self) -> float:
        """What the caller must multiply the loss by before `engine.backward`.

        DeepSpeed's stage 0 fp16 wrappers divide gradients by the loss scale in their step, but
        `engine.backward` multiplies the loss by it for ZeRO optimizers only (0.19.8).
        """
        return self.loss_scale if hasattr(self.wrapper, "loss_scale_config") else 1.0

    def grad(self, item: Slice) -> torch.Tensor | None:
        """View [numel] of the reduced gradient, times `loss_scale`; writing to it counts.

        Exists between the last micro-batch's backward and the step; None at other times.
        """
        param = item.param
        wrapper = self.wrapper
        if hasattr(param, "ds_id"):
            return _stage3_grad(wrapper, item)
        if hasattr(wrapper, "averaged_gradients"):
            return _stage12_grad(wrapper, item)
        if hasattr(wrapper, "fp32_groups_gradient_dict"):
            return _mapped_grad(wrapper, item)
        return None if param.grad is None else param.grad.view(-1)

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
        """Tell DeepSpeed that gradients were changed after backward. Local.

        With CPU offload it computes the norms for clipping during backward; without, in the step.
        """
        norms = getattr(self.wrapper, "norm_for_param_grads", None)
        if not norms:
            return
        for item in self:
            gradient = self.grad(item)
            key = self.wrapper.get_param_id(item.param)
            if gradient is not None and key in norms:
                norms[key] = gradient.double().norm(2)

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


def _mapped_slices(flats: list[torch.Tensor], names: dict[Any, str]) -> Iterator[Slice]:
    for param, name in names.items():
        mapping = param._hp_mapping
        if mapping is not None:
            inside, within = mapping.lp_fragment_address, mapping.hp_fragment_address
            flat = flats[mapping.param_group_index]
            yield Slice(name, param, flat, within.start, inside.start, inside.numel)


def _stage12_slices(wrapper: Any, names: dict[Any, str]) -> Iterator[Slice]:
    for group, flat in enumerate(wrapper.single_partition_of_fp32_groups):
        size = flat.numel()
        first = dist.dp_rank() * size
        params = wrapper.round_robin_bit16_groups[group]
        offsets = wrapper.round_robin_bit16_offsets[group]
        for param, offset in zip(params, offsets, strict=True):
            begin, end = max(offset, first), min(offset + param.numel(), first + size)
            if begin < end:
                yield Slice(names[param], param, flat, begin - first, begin - offset, end - begin)


def _fused_slices(wrapper: Any, names: dict[Any, str]) -> Iterator[Slice]:
    for flat, params in zip(wrapper.fp32_groups_flat, wrapper.fp16_groups, strict=True):
        offset = 0
        for param in params:
            yield Slice(names[param], param, flat, offset, 0, param.numel())
            offset += param.numel()


def _stage3_slices(wrapper: Any, names: dict[Any, str]) -> Iterator[Slice]:
    for param, name in names.items():
        group, offset, size = wrapper.grad_position[wrapper.get_param_id(param)]
        start = dist.dp_rank() * size
        numel = min(size, param.ds_numel - start)
        if numel > 0:
            flat = wrapper.fp32_partitioned_groups_flat[group]
            yield Slice(name, param, flat, offset, start, numel)


def _mapped_grad(wrapper: Any, item: Slice) -> torch.Tensor:
    group, index = item.param._hp_mapping.param_group_index, item.param._index_in_param_group
    # The wrapper keeps the whole parameter's gradient.
    return item.part(wrapper.fp32_groups_gradient_dict[group][index])


def _stage12_grad(wrapper: Any, item: Slice) -> torch.Tensor | None:
    if wrapper.cpu_offload:
        gradient = item.stepped.grad
        return None if gradient is None else item.cut(gradient)
    flats = wrapper.single_partition_of_fp32_groups
    group = next(i for i, flat in enumerate(flats) if flat is item.stepped)
    # A list of tensors that, laid end to end, are the gradient of the flat partition.
    begin = 0
    for gradient in wrapper.averaged_gradients.get(group) or ():
        offset = item.stepped_start - begin
        if 0 <= offset and offset + item.numel <= gradient.numel():
            return gradient.view(-1)[offset : offset + item.numel]
        begin += gradient.numel()
    return None


def _stage3_grad(wrapper: Any, item: Slice) -> torch.Tensor | None:
    group, offset, size = wrapper.grad_position[wrapper.get_param_id(item.param)]
    if wrapper.offload_optimizer:
        gradient = wrapper.fp32_partitioned_groups_flat[group].grad
        return None if gradient is None else gradient.narrow(0, offset, item.numel)
    found = wrapper.averaged_gradients.get(group)
    if found is None:
        return None
    index = [param.ds_id for param in wrapper.fp16_groups[group]].index(item.param.ds_id)
    return found[index].view(-1)[: item.numel]
