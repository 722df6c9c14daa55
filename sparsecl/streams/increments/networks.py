"""Networks that look at one image at a time: convolutions, or hidden layers without any.

B = images, n = channels or units. Hidden channels are units that methods see; a look at B images
tells of each at every position.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from sparsecl import seeding
from sparsecl.sparse.units import UnitGroup
from sparsecl.streams.config import LearnerConfig
from sparsecl.streams.models import Networks
from sparsecl.topology.build import build_topologies
from sparsecl.topology.config import TopologyConfig

Hidden = tuple[list[Tensor], Tensor]
"""Activations of each hidden layer [rows, n], a row for each image and position; and what the
logits are made of, [B, n]."""


class ImageNetwork(nn.Module, ABC):
    """[B, channels, side, side] -> logits [B, classes]."""

    head: Any
    """The layer that gives the logits, with weight and bias."""

    columns = 1
    """Activations of a unit, side by side."""

    @abstractmethod
    def hidden(self, x: Tensor) -> Hidden:
        """What a look at images sees."""

    @abstractmethod
    def draw(self, seed: int, *names: str | int, only: nn.Module | None = None) -> None:
        """New weights, of the whole network or of one of its modules."""

    @abstractmethod
    def add_units(self) -> None:
        """Let methods see hidden units."""

    def forget(self, group: UnitGroup, units: NDArray[np.int64]) -> None:
        """What else of units has to begin anew."""

    def masks(self) -> Mapping[str, Tensor]:
        """As Networks.masks."""
        return {}


class Convolutions(ImageNetwork):
    """A head behind features that filters make."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

    @abstractmethod
    def features(self, x: Tensor, keep: list[Tensor] | None = None) -> Tensor:
        """What the logits are made of, [B, n]; `keep` gets what each hidden layer gives."""

    def hidden(self, x: Tensor) -> Hidden:
        keep: list[Tensor] = []
        final = self.features(x, keep)
        return [h.movedim(1, -1).flatten(0, -2) for h in keep], final

    def draw(self, seed: int, *names: str | int, only: nn.Module | None = None) -> None:
        """New weights, of the whole network or of one of its modules: normal with the deviation
        sqrt(2 / inputs) (He et al. 2015), 1 in the place of the 2 in the head; biases of zero."""
        chosen = set((only or self).parameters())
        for name, param in self.named_parameters():
            if param in chosen:
                rng = seeding.stream(seed, "init", name, *names)
                gain = 1.0 if name.startswith("head.") else 2.0
                rows = np.arange(len(param))
                param.data.copy_(torch.from_numpy(fresh(name, param, rows, rng, gain=gain)))
        for module in (only or self).modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()


def fresh(
    name: str,
    param: Tensor,
    units: NDArray[np.int64],
    rng: np.random.Generator,
    *,
    gain: float = 2.0,
) -> NDArray[np.float32]:
    """What units have when a network begins, [k, ...] of a weight [n, ...]: normal of a matrix or
    of filters, ones of a scale, zeros of biases."""
    shape = (len(units), *param.shape[1:])
    if param.dim() > 1:
        found = rng.normal(0.0, math.sqrt(gain / param[0].numel()), shape)
    else:
        found = np.full(shape, float(name.endswith("norm.weight")))
    return found.astype(np.float32)


class Channels(nn.Module):
    """ReLU of channels [B, n, side, side], which methods may see."""

    units: UnitGroup | None

    def __init__(self) -> None:
        super().__init__()
        self.units = None

    def forward(self, h: Tensor) -> Tensor:
        h = h.relu()
        return h if self.units is None else self.units(h.movedim(1, -1)).movedim(-1, 1)

    def watch(self, model: nn.Module, incoming: Sequence[str], outgoing: str) -> None:
        """Make the channels units of a model, from the names of its parameters."""
        params = dict(model.named_parameters())

        def rows(
            name: str, units: NDArray[np.int64], rng: np.random.Generator
        ) -> NDArray[np.float32]:
            return fresh(name, params[name], units, rng)

        num = len(params[incoming[0]])
        self.units = UnitGroup(num, incoming=incoming, outgoing=(outgoing,), fresh=rows)


class ConvNet(Convolutions):
    """`layers` filters of 3 x 3, each with a ReLU and a maximum over 2 x 2, then the mean over
    positions and the head. Channels double from layer to layer."""

    def __init__(self, config: LearnerConfig, *, channels: int, classes: int) -> None:
        super().__init__()
        sizes = [channels, *(config.width << k for k in range(config.layers))]
        pairs = zip(sizes, sizes[1:], strict=False)
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in pairs)
        self.acts = nn.ModuleList(Channels() for _ in self.convs)
        self.head = nn.Linear(sizes[-1], classes)

    def features(self, x: Tensor, keep: list[Tensor] | None = None) -> Tensor:
        for conv, act in zip(self.convs, self.acts, strict=True):
            x = act(conv(x))
            if keep is not None:
                keep.append(x)
            if x.shape[-1] > 1:
                x = functional.max_pool2d(x, 2)
        return x.mean((2, 3))

    def add_units(self) -> None:
        names = [*(f"convs.{k}" for k in range(len(self.convs))), "head"]
        for k, act in enumerate(self.acts):
            channels: Any = act
            incoming = (f"{names[k]}.weight", f"{names[k]}.bias")
            channels.watch(self, incoming, f"{names[k + 1]}.weight")


class Block(nn.Module):
    """Two filters with their normalisation, and a way around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = Filter(inputs, outputs, 3, stride)
        self.act = Channels()
        self.second = Filter(outputs, outputs, 3, 1)
        around = stride != 1 or inputs != outputs
        self.around = Filter(inputs, outputs, 1, stride) if around else nn.Identity()

    def forward(self, x: Tensor, keep: list[Tensor] | None) -> Tensor:
        inner = self.act(self.first(x))
        y = (self.second(inner) + self.around(x)).relu()
        if keep is not None:
            keep += [inner, y]
        return y


class Filter(nn.Module):
    """A convolution without bias, and batch normalisation."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class ResNet18(Convolutions):
    """He et al. 2016 (https://arxiv.org/abs/1512.03385) for small images: a first filter of 3 x 3
    without pooling, four stages of two blocks, the mean over positions.

    Units are the channels inside of blocks: what a block gives is added to what came in, so it is
    no unit's alone.
    """

    def __init__(self, config: LearnerConfig, *, channels: int, classes: int) -> None:
        super().__init__()
        sizes = [config.width << stage for stage in range(4)]
        self.stem = Filter(channels, sizes[0], 3, 1)
        blocks, inputs = [], sizes[0]
        for stage, size in enumerate(sizes):
            for first in (True, False):
                blocks.append(Block(inputs, size, 2 if stage and first else 1))
                inputs = size
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(inputs, classes)

    def features(self, x: Tensor, keep: list[Tensor] | None = None) -> Tensor:
        x = self.stem(x).relu()
        if keep is not None:
            keep.append(x)
        for block in self.blocks:
            x = block(x, keep)
        return x.mean((2, 3))

    def add_units(self) -> None:
        for k, module in enumerate(self.blocks):
            block: Any = module
            first = f"blocks.{k}.first"
            incoming = (f"{first}.conv.weight", f"{first}.norm.weight", f"{first}.norm.bias")
            block.act.watch(self, incoming, f"blocks.{k}.second.conv.weight")

    @torch.no_grad()
    def forget(self, group: UnitGroup, units: NDArray[np.int64]) -> None:
        norm: Any = self.get_submodule(group.incoming[1].rpartition(".")[0])
        at = torch.from_numpy(units).to(norm.running_mean.device)
        norm.running_mean[at], norm.running_var[at] = 0.0, 1.0


class Perceptron(ImageNetwork):
    """The hidden layers of the other streams, dense or on a graph."""

    def __init__(
        self,
        config: LearnerConfig,
        *,
        inputs: int,
        classes: int,
        topology: TopologyConfig,
        seed: int,
    ) -> None:
        super().__init__()
        found = config.shapes(inputs, classes)
        shapes = [replace(shape, name=f"net.{shape.name}") for shape in found]
        self._graphs = build_topologies(topology, tuple(shapes[:-1]), seed=seed)
        given: Any = {"apart": True, "activation": config.activation}
        self.net = Networks(shapes, [seed], [self._graphs], **given)
        self.columns = self.net.columns

    @property
    def head(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.net.layers[-1]

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.flatten(1)[None])[0]

    def hidden(self, x: Tensor) -> Hidden:
        found = [h[0] for h in self.net.hidden(x.flatten(1)[None])]
        return found, found[-1]

    def draw(self, seed: int, *names: str | int, only: nn.Module | None = None) -> None:
        """As the other streams do; see Networks."""
        for module in self.net.layers:
            layer: Any = module
            if only in (None, layer):
                name = layer.shape.name
                live = ~layer.dead if layer.dead is not None else torch.ones_like(layer.weight) > 0
                rng = seeding.stream(seed, "init", f"{name}.weight", *names)
                layer.begin(live.cpu().numpy(), rng)

    def add_units(self) -> None:
        self.net.add_units()

    def masks(self) -> Mapping[str, Tensor]:
        return self.net.masks()


def build_network(
    config: LearnerConfig,
    topology: TopologyConfig,
    *,
    channels: int,
    side: int,
    classes: int,
    seed: int,
) -> ImageNetwork:
    """A network with the weights that it begins with.

    Raises:
        UserError: a graph does not exist for a shape.
    """
    if config.kind == "mlp":
        inputs = channels * side * side
        return Perceptron(config, inputs=inputs, classes=classes, topology=topology, seed=seed)
    kind = ConvNet if config.kind == "convnet" else ResNet18
    made = kind(config, channels=channels, classes=classes)
    made.draw(seed)
    return made
