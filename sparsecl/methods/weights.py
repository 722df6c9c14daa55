"""The half of a method's context that is about weights and gradients, for every kind of loop.

Loss scale, norms for clipping, sharding, the copy to low precision and replicas are dealt with in
here, once for all methods.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from sparsecl import dist
from sparsecl.methods import lines, noise
from sparsecl.methods.context import MethodContext, SliceTensors
from sparsecl.methods.several import Methods
from sparsecl.methods.units import UnitFigures, begin_anew, unit_figures
from sparsecl.optim.deepspeed.parameters import local_shape
from sparsecl.optim.hiding import hidden_weights, shown_weights
from sparsecl.optim.masking import MaskGuard
from sparsecl.optim.moving import (
    clear,
    joined,
    move_parameter,
    move_slices,
    put,
    share,
    whole,
    write_weight,
)
from sparsecl.optim.slice import Slice
from sparsecl.optim.slices import Slices, is_counted
from sparsecl.sparse.index import LiveIndex
from sparsecl.sparse.linear import SparseLinear
from sparsecl.sparse.registry import SparseParameter, forget_expansions, sparse_parameters
from sparsecl.sparse.rewire import IndexMap, rewire, set_live
from sparsecl.sparse.tap import DenseTap
from sparsecl.sparse.units import UnitGroup, unit_groups


class WeightContext:
    """Weights of one model on this rank; a subclass adds data and progress (MethodContext)."""

    def __init__(
        self, module: nn.Module, slices: Slices, guard: MaskGuard, methods: Methods
    ) -> None:
        self.module, self.slices, self.guard, self.methods = module, slices, guard, methods
        self.units: Mapping[str, UnitGroup] = unit_groups(module)
        # Once: a walk of the model for each matrix of a rewire was a third of its fixed cost.
        self.sparse: Mapping[str, SparseParameter] = sparse_parameters(module)
        self._changed = False
        self._taps: dict[str, DenseTap] = {}
        self._tap_scale = 1.0
        self.skips, self.update_skipped = False, False
        if methods.overrides("after_update"):
            guard.edits.append(lambda items: methods.after_update(self.own(), items))
            guard.keeps_before = methods.needs_update

    def own(self) -> Any:
        """This context, as methods see it."""
        return self

    # Gradients.

    def after_backward(self) -> None:
        """Call the methods on reduced gradients that are finite everywhere. Collective."""
        guard, methods = self.guard, self.methods
        self._take_off_taps()
        for group in self.units.values():
            group.disarm()
        held = guard.still()
        if methods.overrides("after_backward") and self._all_finite():
            methods.after_backward(self.own())
            if self._changed:
                guard.still(absent=True)  # a method has pulled at what may not move
        if self._changed or held:
            self.slices.refresh_norms()
        self._changed = False

    def after_step(self, *, applied: bool, skipped: bool = False) -> None:
        """Tell the methods what came of a step, and let go of what it has shown."""
        self.update_skipped = skipped
        self.methods.after_step(self.own(), applied=applied)
        self.skips, self.update_skipped = False, False
        self._take_off_taps()
        self._taps.clear()

    def _all_finite(self) -> bool:
        bad = torch.tensor([float(bool(self.slices.bad_gradients()))], device=dist.device())
        return not float(dist.all_reduce(bad, op="max"))

    def gradient(self, item: Slice) -> torch.Tensor | None:
        found = self.slices.grad(item)
        return None if found is None else found.float() / self.slices.loss_scale

    def add_gradient(self, item: Slice, value: torch.Tensor, scale: float = 1.0) -> None:
        found = self.slices.grad(item)
        if found is not None:
            found.add_(value.to(found.device), alpha=scale * self.slices.loss_scale)
            self._changed = True

    def set_gradient(self, item: Slice, value: torch.Tensor) -> None:
        found = self.slices.grad(item)
        if found is not None:
            found.copy_(value * self.slices.loss_scale)
            self._changed = True

    def movable(self, values: SliceTensors) -> SliceTensors:
        self.guard.clear(values)
        return values

    def before(self, item: Slice) -> torch.Tensor:
        return self.guard.before(item)

    def arm_dense_gradients(self) -> None:
        for name, entry in self.sparse.items():
            self._taps[name] = entry.layer.tap = DenseTap()
        # Of this step: a dynamic scale may be another one after it.
        self._tap_scale = self.slices.loss_scale

    def _take_off_taps(self) -> None:
        """Whatever goes backward from here on, such as a method's own rows, is not the step's."""
        for entry in self.sparse.values() if self._taps else ():
            entry.layer.tap = None

    def dense_gradient(self, name: str) -> torch.Tensor:
        tap = self._taps.get(name)
        assert tap is not None and tap.total is not None, f"{name}: arm_dense_gradients comes first"
        if not tap.reduced:
            dist.all_reduce(tap.total, group=dist.dp_group())
            tap.total.div_(dist.dp_size() * self._tap_scale)
            tap.reduced = True
        return tap.total

    def skip_update(self) -> None:
        self.skips = True

    # Hidden units.

    def arm_units(self, centres: Mapping[str, torch.Tensor] | None = None) -> None:
        for name, group in self.units.items():
            group.arm((centres or {}).get(name))

    def unit_figures(self) -> Mapping[str, UnitFigures]:
        return unit_figures(self, self.units)

    def begin_anew(
        self,
        group: UnitGroup,
        units: np.ndarray,
        rng: np.random.Generator,
        network: tuple[int, ...] = (),
        *,
        moments: bool = True,
    ) -> dict[str, torch.Tensor]:
        assert network == (), network
        return begin_anew(self, group, units, rng, moments=moments)

    # One network, where a subclass has no more.

    @property
    def networks(self) -> tuple[int, ...]:
        return ()

    def each(self) -> Sequence[MethodContext]:
        return (self.own(),)

    def network_generator(self, network: tuple[int, ...], *names: str | int) -> np.random.Generator:
        assert network == (), network
        return self.own().generator(*names)

    # Sums over the model.

    def dot(self, a: SliceTensors, b: SliceTensors) -> float:
        total = torch.zeros(1, dtype=torch.float64, device=dist.device())
        for item in self.slices:
            if item.name in a and item.name in b and is_counted(item.param):
                total += (a[item.name].double() * b[item.name].double()).sum().to(total.device)
        group = None if self.slices.partitioned else dist.tp_group()
        return float(dist.all_reduce(total, group=group))

    def maximum(self, values: SliceTensors) -> torch.Tensor:
        shape = (*self.networks, 1)
        largest = torch.full(shape, -torch.inf, dtype=torch.float64, device=dist.device())
        for value in values.values():
            if value.numel():
                found = value.amax(-1, keepdim=True)
                largest = torch.maximum(largest, found.double().to(largest.device))
        return dist.all_reduce(largest, op="max")

    def line_sums(self, values: SliceTensors, dims: Mapping[str, int]) -> dict[str, torch.Tensor]:
        return lines.line_sums(self, values, dims)

    def of_lines(self, item: Slice, found: torch.Tensor, dim: int) -> torch.Tensor:
        return lines.of_lines(self, item, found, dim)

    # Weights.

    def shapes(self) -> Mapping[str, torch.Size]:
        return {name: self._shape(name) for name in self.slices.parameters()}

    def noise(self, item: Slice, *names: str | int) -> torch.Tensor:
        packed = hasattr(item.param, "dense_shape")
        index = self.live_index(item.name) if packed else None
        places = noise.places(item, index, self.split_dim(item.name))
        key = self.own().generator("noise", *names, item.name).integers(2**63)
        drawn = noise.normal(int(key), places)
        real = getattr(item.param, "num_real", None)
        if real is not None:  # what pads a matrix to fit the layout stays zero
            drawn[max(real - item.start, 0) :] = 0.0
        return drawn

    def live_values(self, name: str) -> torch.Tensor:
        layer = self.sparse[name].layer
        values = self._whole(name, None)
        return values if layer.packed else values[layer.live_mask().view(-1).to(values.device)]

    def whole(self, name: str, values: SliceTensors | None = None) -> torch.Tensor:
        return self._whole(name, values).view(self._shape(name))

    def matrix(self, name: str, values: SliceTensors | None = None) -> torch.Tensor:
        local, layer = self.whole(name, values), self._packed(name)
        if layer is not None and layer.index is not None:
            local = layer.index.expand(local)
        return self.joined(name, local)

    def local_of(self, name: str, matrix: torch.Tensor) -> torch.Tensor:
        local, layer = share(matrix, self.split_dim(name)), self._packed(name)
        return local if layer is None else layer.local_values(local)

    def slice_of(self, name: str, matrix: torch.Tensor) -> torch.Tensor | None:
        item = self.slices.find(name)
        return None if item is None else item.part(self.local_of(name, matrix))

    def global_shape(self, name: str) -> torch.Size:
        layer, dim = self._packed(name), self.split_dim(name)
        shape = list(self._shape(name) if layer is None else layer.local_shape)
        if dim >= 0:
            shape[dim] *= dist.tp_size()
        return torch.Size(shape)

    def live_index(self, name: str) -> LiveIndex | None:
        """Of a packed parameter."""
        layer = self._packed(name)
        return None if layer is None else layer.index

    def joined(self, name: str, local: torch.Tensor) -> torch.Tensor:
        return joined(local, self.split_dim(name))

    def _packed(self, name: str) -> SparseLinear | None:
        entry = self.sparse.get(name)
        return entry.layer if entry is not None and entry.layer.packed else None

    def split_dim(self, name: str) -> int:
        return int(getattr(self.slices.parameters()[name], "partition_dim", -1))

    def _whole(self, name: str, values: SliceTensors | None) -> torch.Tensor:
        item = self.slices.find(name)
        part = None
        if item is not None:
            part = item.master if values is None else values.get(name)
        return whole(self.slices, item, part, self._shape(name).numel())

    def _shape(self, name: str) -> torch.Size:
        return local_shape(self.slices.parameters()[name])

    @torch.no_grad()
    def write(self, name: str, value: torch.Tensor, where: torch.Tensor | None = None) -> None:
        param, item = self.slices.parameters()[name], self.slices.find(name)
        flat, entry = value.reshape(-1), self.sparse.get(name)
        if where is not None:
            where = where.reshape(-1)
            if entry is not None and entry.dead is not None:
                where = where & ~entry.dead.view(-1).to(where.device)
        if item is not None:
            put(item.master, item.part(flat), None if where is None else item.part(where))
        write_weight(param, flat, item, where)
        forget_expansions(self.module)

    @contextlib.contextmanager
    def hidden(self, where: Iterable[tuple[str, torch.Tensor]]) -> Iterator[None]:
        try:
            with hidden_weights(self.slices, where):
                forget_expansions(self.module)
                yield
        finally:
            forget_expansions(self.module)

    @contextlib.contextmanager
    def shown(self, values: Iterable[tuple[str, torch.Tensor]]) -> Iterator[None]:
        try:
            with shown_weights(self.slices, values):
                forget_expansions(self.module)
                yield
        finally:
            forget_expansions(self.module)

    def hold(self, name: str, where: torch.Tensor | None, *, owner: str) -> None:
        self.guard.hold(name, where, owner)

    @torch.no_grad()
    def reset_state(self, name: str, where: torch.Tensor) -> None:
        item = self.slices.find(name)
        if item is not None:
            chosen = item.part(where).to(item.master.device)
            for moment in self.slices.moments(item).values():
                moment.masked_fill_(chosen, 0.0)

    def rewire(self, name: str, drop: torch.Tensor, grow: torch.Tensor) -> torch.Tensor:
        layer = self.sparse[name].layer
        if not layer.packed:
            return self._follow(name, rewire(layer, drop, grow))
        # A hold names slots, and these shift.
        assert self.guard.holds.find(name) is None, f"{name}: rewired while some of it is held"
        index_map = rewire(layer, drop, grow)
        move_parameter(self.slices, name, layer.weight, index_map.move)
        for tensors in self.methods.slice_tensors():
            move_slices(self.slices, name, layer.weight, tensors, index_map.move)
        self.guard.refresh()
        return index_map.grown

    def set_live(self, name: str, mask: torch.Tensor) -> torch.Tensor:
        return self._follow(name, set_live(self.sparse[name].layer, mask))

    def _follow(self, name: str, index_map: IndexMap) -> torch.Tensor:
        """Clear what was dropped or has grown, in place. Local."""
        item, held = self.slices.find(name), self.guard.holds.find(name)
        if item is not None and held is not None:
            dropped = item.part(index_map.fresh & ~index_map.grown.view(-1)).to(held.device)
            assert not (held & dropped).any(), f"{name}: what is held was dropped"
        clear(self.slices, name, index_map.fresh, self.methods.slice_tensors())
        self.guard.refresh_mask(name)
        return index_map.grown
