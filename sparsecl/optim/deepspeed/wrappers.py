"""Where DeepSpeed's wrappers of the optimizer keep masters, gradients and the loss scale.

| stage | precision  | what the optimizer steps            | class here |
|-------|------------|-------------------------------------|------------|
| 0     | fp32       | the parameters themselves           | `Plain`    |
| 0     | bf16, fp16 | an fp32 copy of each parameter      | `Copies`   |
| 0     | bf16, fp16 | one flat copy per group (FusedAdam) | `FlatCopies` |
| 1, 2  | any        | a flat partition per group          | `Stage12`  |
| 1     | bf16 [1]   | a flat partition per group          | `Mapped`   |
| 3     | any        | a flat partition per sub-group      | `Stage3`   |

[1] with fp32 gradient accumulation. With CPU offload the tensors are the same ones, on the CPU.
NOTE: DeepSpeed's `_hp_mapping` (and so `safe_get_full_*`) is wrong for stages 1 and 2 with
`round_robin_gradients`, where the flat buffer is not in the parameters' order. Everything is local.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from sparsecl import dist
from sparsecl.optim.deepspeed.known import take, unknown
from sparsecl.optim.deepspeed.parameters import is_cut, num_elements
from sparsecl.optim.slice import Slice

Names = Mapping[Any, str]
"""Parameter -> its name in the model."""


class Wrapper(ABC):
    """What holds masters and gradients of one engine."""

    def __init__(self, wrapper: Any) -> None:
        self.wrapper = wrapper

    @abstractmethod
    def slices(self, names: Names) -> Iterator[Slice]:
        """This rank's slices, in any order."""

    def grad(self, item: Slice) -> torch.Tensor | None:
        """View [numel] of the reduced gradient, times `loss_scale`, after the last micro-batch's
        backward; None if there is none."""
        gradient = item.param.grad
        return None if gradient is None else gradient.view(-1)

    @property
    def scaler(self) -> Any:
        """The object that holds the loss scale; None = there is none."""
        return None

    @property
    def loss_scale(self) -> float:
        """What gradients are multiplied by."""
        return 1.0

    @property
    def missing_scale(self) -> float:
        """What the caller must multiply the loss by before `engine.backward`."""
        return 1.0

    @property
    def least_scale(self) -> float | None:
        """The scale below which an overflow is not answered; None: DeepSpeed raises by itself."""
        return None

    @property
    def sums(self) -> Any:
        """Tensors, in any nesting, of gradients that are kept beside those of the parameters."""
        return ()

    def refresh_norms(self, items: Iterable[Slice]) -> None:
        """Tell DeepSpeed that gradients were changed after backward."""
        del items  # it looks by itself


class Plain(Wrapper):
    """No wrapper: parameters are their own masters."""

    def slices(self, names: Names) -> Iterator[Slice]:
        for param, name in names.items():
            yield Slice(name, param, param, 0, 0, param.numel())


class _Scaled(Wrapper):
    """Stage 0 under a loss scale.

    These wrappers divide gradients by the scale in their step, but `engine.backward` multiplies the
    loss by it for ZeRO optimizers only.
    """

    @property
    def scaler(self) -> Any:
        return take(self.wrapper, "loss_scale_config")

    @property
    def loss_scale(self) -> float:
        scaler = self.scaler
        return float(take(scaler, "cur_scale")) if take(scaler, "use_grad_scaling") else 1.0

    @property
    def missing_scale(self) -> float:
        return self.loss_scale

    @property
    def least_scale(self) -> float | None:
        return float(take(self.scaler, "min_loss_scale"))


class Copies(_Scaled):
    """An fp32 copy of each parameter."""

    def slices(self, names: Names) -> Iterator[Slice]:
        groups = take(self.wrapper, "fp32_groups"), take(self.wrapper, "fp16_groups")
        for masters, params in zip(*groups, strict=True):
            for master, param in zip(masters, params, strict=True):
                yield Slice(names[param], param, master, 0, 0, param.numel())


class FlatCopies(_Scaled):
    """One flat fp32 copy for each group."""

    def slices(self, names: Names) -> Iterator[Slice]:
        groups = take(self.wrapper, "fp32_groups_flat"), take(self.wrapper, "fp16_groups")
        for flat, params in zip(*groups, strict=True):
            offset = 0
            for param in params:
                yield Slice(names[param], param, flat, offset, 0, param.numel())
                offset += param.numel()


class _Zero(Wrapper):
    """Stages 1 to 3."""

    offload: str
    """Name of what says that the optimizer's state lies on the CPU."""

    @property
    def scaler(self) -> Any:
        return take(self.wrapper, "loss_scaler")

    @property
    def loss_scale(self) -> float:
        return float(take(self.wrapper, "loss_scale"))

    @property
    def sums(self) -> Any:
        return take(self.wrapper, "averaged_gradients")

    def refresh_norms(self, items: Iterable[Slice]) -> None:
        # With CPU offload it computes the norms for clipping during backward; without, in the step.
        if not take(self.wrapper, self.offload):
            return
        norms = take(self.wrapper, "norm_for_param_grads")
        for item in items:
            gradient = self.grad(item)
            key = take(self.wrapper, "get_param_id")(item.param)
            if gradient is not None and key in norms:
                norms[key] = gradient.double().norm(2)


class Mapped(Wrapper):
    """Stage 1 in bf16 with fp32 gradient sums: every parameter knows its place."""

    def slices(self, names: Names) -> Iterator[Slice]:
        flats = take(self.wrapper, "fp32_groups_flat_partition")
        for param, name in names.items():
            mapping = take(param, "_hp_mapping")
            if mapping is None:
                continue
            inside, within = mapping.lp_fragment_address, mapping.hp_fragment_address
            flat = flats[mapping.param_group_index]
            yield Slice(name, param, flat, within.start, inside.start, inside.numel)

    @property
    def sums(self) -> Any:
        return take(self.wrapper, "fp32_groups_gradients")

    def grad(self, item: Slice) -> torch.Tensor | None:
        group = take(item.param, "_hp_mapping").param_group_index
        index = take(item.param, "_index_in_param_group")
        # The wrapper keeps the whole parameter's gradient.
        return item.part(take(self.wrapper, "fp32_groups_gradient_dict")[group][index])


class Stage12(_Zero):
    """One flat partition for each group."""

    offload = "cpu_offload"

    def slices(self, names: Names) -> Iterator[Slice]:
        for group, flat in enumerate(take(self.wrapper, "single_partition_of_fp32_groups")):
            size = flat.numel()
            first = dist.dp_rank() * size
            params = take(self.wrapper, "round_robin_bit16_groups")[group]
            offsets = take(self.wrapper, "round_robin_bit16_offsets")[group]
            for param, at in zip(params, offsets, strict=True):
                begin, end = max(at, first), min(at + param.numel(), first + size)
                if begin < end:
                    yield Slice(names[param], param, flat, begin - first, begin - at, end - begin)

    def grad(self, item: Slice) -> torch.Tensor | None:
        if take(self.wrapper, self.offload):
            gradient = item.stepped.grad
            return None if gradient is None else item.cut(gradient)
        flats = take(self.wrapper, "single_partition_of_fp32_groups")
        group = next(i for i, flat in enumerate(flats) if flat is item.stepped)
        # A list of tensors that, laid end to end, are the gradient of the flat partition.
        begin = 0
        for gradient in take(self.wrapper, "averaged_gradients").get(group) or ():
            offset = item.stepped_start - begin
            if 0 <= offset and offset + item.numel <= gradient.numel():
                return gradient.view(-1)[offset : offset + item.numel]
            begin += gradient.numel()
        return None


class Stage3(_Zero):
    """One flat partition for each sub-group; parameters are cut up too."""

    offload = "offload_optimizer"

    def slices(self, names: Names) -> Iterator[Slice]:
        flats = take(self.wrapper, "fp32_partitioned_groups_flat")
        for param, name in names.items():
            if not is_cut(param):
                raise unknown(f"ZeRO 3 has left {name} whole")
            group, offset, size = self._place(param)
            start = dist.dp_rank() * size
            numel = min(size, num_elements(param) - start)
            if numel > 0:
                yield Slice(name, param, flats[group], offset, start, numel)

    def grad(self, item: Slice) -> torch.Tensor | None:
        group, offset, _ = self._place(item.param)
        if take(self.wrapper, self.offload):
            gradient = take(self.wrapper, "fp32_partitioned_groups_flat")[group].grad
            return None if gradient is None else gradient.narrow(0, offset, item.numel)
        found = take(self.wrapper, "averaged_gradients").get(group)
        if found is None:
            return None
        ids = [take(param, "ds_id") for param in take(self.wrapper, "fp16_groups")[group]]
        return found[ids.index(take(item.param, "ds_id"))].view(-1)[: item.numel]

    def _place(self, param: Any) -> tuple[int, int, int]:
        """(sub-group, offset in its flat partition, elements of each rank's share)."""
        return take(self.wrapper, "grad_position")[take(self.wrapper, "get_param_id")(param)]


WRAPPERS: Mapping[str, type[Wrapper]] = {
    "FP16_UnfusedOptimizer": Copies,
    "FP16_Optimizer": FlatCopies,
    "BF16_Optimizer": Mapped,
    "DeepSpeedZeroOptimizer": Stage12,
    "DeepSpeedZeroOptimizer_Stage3": Stage3,
}


def find_wrapper(engine: Any) -> Wrapper:
    """The wrapper of an engine's optimizer.

    Raises:
        UserError: it is none that is known here.
    """
    found = engine.optimizer
    if found is take(engine, "basic_optimizer"):
        return Plain(found)
    kind = WRAPPERS.get(type(found).__name__)
    if kind is None:
        raise unknown(f"the optimizer is wrapped in a {type(found).__name__}")
    return kind(found)
