"""Masks on the linear layers of any torch model, and the gradient that never sees an absent weight.

O = out_features, I = in_features.

A masked layer has one more attribute, `sparsecl_mask`, a `WeightMask`. It is no buffer: buffers are
broadcast by DDP at every forward pass, are not sharded by ZeRO or FSDP, and add keys to the
state dict that other programs do not know. The state dict of a masked model is that of the dense
one. A model that is built again gets its masks from the same call of `mask_linears` (the bits
depend on the seed and the names of the layers), or with kind "from_zeros" from the loaded weights.

Gradients are selected by a hook on the tensor that the forward pass uses. It runs before the
gradient is accumulated, so before DDP, FSDP2 or ZeRO reduces it and before it is clipped. FSDP2
shows the forward pass another tensor than the parameter of the optimizer; so a hook before each
forward pass looks whether the present tensor has the selection.
"""

import fnmatch
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

from sparsecl.errors import UserError
from sparsecl.library.draw import topology_config
from sparsecl.library.layers import bare, is_conv1d, linear_shape, maskable, owners
from sparsecl.optim.zeroing import zero_absent
from sparsecl.topology.build import build_topologies
from sparsecl.topology.layer import LayerShape, LayerTopology

ATTRIBUTE = "sparsecl_mask"
"""Where a masked layer keeps its `WeightMask`."""

SKIP = ("lm_head",)
"""Layers that stay dense by default: the output layer, often tied to the embedding."""


class WeightMask:
    """The topology of one layer's weight, and the hook before its forward pass."""

    def __init__(self, topology: LayerTopology, *, transposed: bool) -> None:
        """Take the topology [O, I]; `transposed`: the weight is [I, O]."""
        self.topology, self.transposed = topology, transposed
        self._dead: dict[Any, Tensor] = {}

    def dead(self, like: Tensor) -> Tensor:
        """bool, True = absent, laid out as this rank's part of `like`: a weight, or its gradient.

        Local, also for a DTensor. Kept: do not write to it.
        """
        key: Any = like.device
        if isinstance(like, DTensor):
            key = (like.to_local().device, like.device_mesh, tuple(like.placements))
        if key not in self._dead:
            if not isinstance(like, DTensor):
                self._dead[key] = self.whole(like.device)
            else:
                # A partial sum is of the whole shape; an absent entry is zero in each term.
                places = [Replicate() if p.is_partial() else p for p in like.placements]
                # Without a source rank nothing is sent: every rank cuts its own copy.
                cut = distribute_tensor(
                    self.whole(like.device), like.device_mesh, places, src_data_rank=None
                )
                self._dead[key] = cut.to_local().to(key[0])
        return self._dead[key]

    def whole(self, device: torch.device) -> Tensor:
        """bool in the layout of the whole weight, True = absent."""
        mask = self.topology.mask()
        return torch.from_numpy(np.ascontiguousarray(~(mask.T if self.transposed else mask))).to(
            device
        )

    @torch.no_grad()
    def clear(self, weight: Tensor) -> None:
        """Set this rank's absent entries of a weight, or what is laid out like it, to zero."""
        zero_absent((local(weight),), self.dead(weight))

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        """Before a forward pass: have the gradient of the present weight selected."""
        # A compiler takes the hook that is there; it could not trace the search for it.
        if not torch.compiler.is_compiling():
            self.select(module.weight)

    def select(self, weight: Any) -> None:
        """Put the selection on a tensor that has none."""
        hooks = (weight._backward_hooks or {}).values()
        if weight.requires_grad and not any(isinstance(hook, _Select) for hook in hooks):
            weight.register_hook(_Select(self))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_dead": {}}  # a copy of the model may be for another device


class _Select:
    """A hook that gives absent entries of a gradient the value zero."""

    def __init__(self, mask: WeightMask) -> None:
        self.mask = mask

    def __call__(self, grad: Tensor) -> Tensor:
        # By selection: zero times NaN is NaN. And not in place: autograd may use `grad` again.
        chosen = local(grad).masked_fill(self.mask.dead(grad), 0.0)
        if not isinstance(grad, DTensor):
            return chosen
        return DTensor.from_local(
            chosen,
            grad.device_mesh,
            grad.placements,
            run_check=False,
            shape=grad.shape,
            stride=grad.stride(),
        )


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor: of a DTensor its shard, which shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def masked_layers(model: nn.Module) -> Iterator[tuple[str, Any, WeightMask]]:
    """(name, layer, mask) of every masked layer, in module order."""
    for name, module in bare(model).named_modules():
        mask = getattr(module, ATTRIBUTE, None)
        if isinstance(mask, WeightMask):
            yield name, module, mask


def checked_layers(model: nn.Module) -> list[tuple[str, Any, WeightMask]]:
    """(name of the weight, layer, mask) of every masked layer.

    Raises:
        UserError: there is none.
    """
    found = masked_layers(model)
    layers = [(f"{name}.weight" if name else "weight", *rest) for name, *rest in found]
    if not layers:
        raise UserError("mask_guard: no layer of the model is masked: call mask_linears before it")
    return layers  # pyright: ignore[reportReturnType]


def mask_linear(
    layer: nn.Module, mask: LayerTopology | NDArray[np.bool_] | Tensor, *, name: str = "weight"
) -> LayerTopology:
    """Put a linear layer on a topology: absent weights become zero and get no gradient. Local.

    Zero weights stay zero under an optimizer without moments; `mask_guard` makes it a law. A layer
    may be masked again, with another mask.

    Args:
        layer: torch.nn.Linear or transformers' Conv1D; also one that is sharded already.
        mask: bool [O, I], True = live, whatever the layout of the layer's weight.
        name: for messages, and in the topology.

    Raises:
        UserError: another kind of layer, dtype or shape, or no live weight.
    """
    if not maskable(layer):
        raise UserError(f"{name}: {type(layer).__name__} is neither Linear nor Conv1D")
    topology = _topology(name, mask)
    wanted = linear_shape(layer)
    if (topology.out_features, topology.in_features) != wanted:
        found = f"{topology.out_features} x {topology.in_features}"
        raise UserError(
            f"{name}: the mask is {found}, the layer {wanted[0]} x {wanted[1]} (out, in)"
        )
    before = getattr(layer, ATTRIBUTE, None)
    if isinstance(before, WeightMask):  # its hooks stay, with other bits
        before.topology, before._dead = topology, {}
        found = before
    else:
        found = WeightMask(topology, transposed=is_conv1d(layer))
        setattr(layer, ATTRIBUTE, found)
        layer.register_forward_pre_hook(found)
    weight: Any = layer.weight
    if weight.dim() == 2:  # ZeRO 3 may have cut it up; the guard zeroes its shards
        found.clear(weight)
    found.select(weight)
    return topology


def _topology(name: str, mask: LayerTopology | NDArray[np.bool_] | Tensor) -> LayerTopology:
    if not isinstance(mask, LayerTopology):
        array = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
        if array.dtype != np.bool_ or array.ndim != 2:
            raise UserError(
                f"{name}: a mask is bool with two dims, True = live; got {array.dtype} with shape "
                f"{array.shape}"
            )
        mask = LayerTopology.from_mask(name, array)
    if not mask.num_live:
        raise UserError(f"{name}: the mask has no live weight")
    return mask


def mask_linears(
    model: nn.Module,
    kind: str = "er_fixed",
    density: float = 0.1,
    seed: int = 0,
    *,
    only: Sequence[str] = (),
    skip: Sequence[str] = SKIP,
    **options: Any,
) -> dict[str, LayerTopology]:
    """Mask the linear layers of a model but those of `skip`. Local; call it on every rank.

    Args:
        kind: a graph family of `sparsecl.draw`; or "from_zeros": the zeros of the model's own
            weights, for one that was pruned. Layers without a zero then stay dense.
        density: live weights / all weights of the masked layers; ignored by from_zeros.
        only: none but these, named as in `skip`; () = all.
        skip: names of layers or of parts of the model, "*" and "?" allowed: "lm_head" is the layer
            of this name and every layer whose last name it is, "blocks.0" all layers below it.
        options: of the kind, and `allocation`, `block`; see `topology_config`.

    Returns:
        Topology by layer name.

    Raises:
        UserError: nothing to mask, an entry of `only` or `skip` without a layer, or a weight that
            another module shares.
    """
    model = bare(model)
    layers = {name: m for name, m in model.named_modules() if maskable(m)}
    for what, entries in (("only", only), ("skip", skip)):
        for entry in entries:
            if entry not in SKIP and not any(_is_named(name, entry) for name in layers):
                raise UserError(f"{what}: no linear layer is named {entry}, or lies below it")
    chosen = {
        name: layer
        for name, layer in layers.items()
        if (not only or any(_is_named(name, each) for each in only))
        and not any(_is_named(name, each) for each in skip)
    }
    if kind == "from_zeros":
        masks = _from_zeros(chosen)
    else:
        config = topology_config(kind, density=density, **options)
        # The job of a matrix decides only what overrides match, and there are none here.
        shapes = [LayerShape(name, "up", *linear_shape(m)) for name, m in chosen.items()]
        masks = build_topologies(config, shapes, seed=seed)
    if not masks:
        found = f"{len(layers)} linear layers, {len(layers) - len(chosen)} of them left out"
        zeros = ", and no other has a zero weight" if kind == "from_zeros" and chosen else ""
        raise UserError(f"there is nothing to mask: the model has {found}{zeros}")
    shared = owners(model)
    for name in masks:
        others = [each for each in shared[id(layers[name].weight)] if each != name]
        if others:
            raise UserError(
                f"the weight of {name} is that of {', '.join(others)} too, which the mask would "
                f"cut: put {name} in skip"
            )
    return {name: mask_linear(layers[name], mask, name=name) for name, mask in masks.items()}


def _is_named(name: str, entry: str) -> bool:
    return any(fnmatch.fnmatchcase(name, p) for p in (entry, f"*.{entry}", f"{entry}.*"))


def _from_zeros(layers: dict[str, Any]) -> dict[str, LayerTopology]:
    """The topology of each layer that has a zero weight."""
    found = {}
    for name, layer in layers.items():
        weight = layer.weight.detach()
        if isinstance(weight, DTensor) or weight.dim() != 2 or weight.is_meta:
            raise UserError(f"{name}: no whole weight to read zeros from: mask before sharding")
        mask = (weight.t() if is_conv1d(layer) else weight).ne(0).cpu().numpy()
        if not mask.all():
            found[name] = LayerTopology.from_mask(name, np.ascontiguousarray(mask))
    return found
