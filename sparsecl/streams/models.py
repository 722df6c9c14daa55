"""Networks side by side: as many multilayer perceptrons as there are seeds, as one module.

N = networks, B = images of a step, O, I = outputs and inputs of a layer, n = units of a hidden one.
Each network has its own weights, graph and data, so a layer is one product of N pairs of matrices.
The bits of a network do not depend on the others: products of a pair are made alone inside the
batched product, and everything else is element by element.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sparsecl import seeding
from sparsecl.sparse.units import UnitGroup
from sparsecl.topology.layer import LayerShape, LayerTopology


class Networks(nn.Module):
    """[N, B, inputs] -> logits [N, B, classes]."""

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        seeds: Sequence[int],
        topologies: Sequence[Mapping[str, LayerTopology]],
        *,
        apart: bool = False,
    ) -> None:
        """Draw the weights of every network. Local.

        Args:
            shapes: the matrices, in order.
            seeds: [N]
            topologies: of each network, by layer name; layers without one are dense.
            apart: N is 1, and parameters have no dim in front for it: what is made for one
                network, a method say, finds one.
        """
        super().__init__()
        assert not apart or len(seeds) == 1, seeds
        networks = () if apart else (len(seeds),)
        self.layers = nn.ModuleList(
            Layer(shape, networks, hidden=shape is not shapes[-1]) for shape in shapes
        )
        for index, shape in enumerate(shapes):
            layer: Any = self.layers[index]
            layer.draw(seeds, [graphs.get(shape.name) for graphs in topologies])
        self.networks = networks

    def add_units(self) -> None:
        """Let methods see the hidden units, by layer."""
        layers: list[Any] = list(self.layers)
        for layer, after in zip(layers, layers[1:], strict=False):
            name, behind = layer.shape.name, after.shape.name
            layer.units = UnitGroup(
                layer.shape.out_features,
                incoming=(f"{name}.weight", f"{name}.bias"),
                outgoing=(f"{behind}.weight",),
                biases=(f"{behind}.bias",),
                fresh=lambda parameter, units, rng, layer=layer: layer.fresh(
                    parameter, units, rng, (0,) if layer.networks else ()
                ),
                networks=layer.networks,
            )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x

    def hidden(self, x: Tensor) -> list[Tensor]:
        """What each hidden layer gives, [N, B, n]; nothing is added up by taps."""
        found = []
        for layer in self.layers[:-1]:
            x = layer.activate(x)
            found.append(x)
        return found

    def masks(self) -> dict[str, Tensor]:
        """Where weights are absent, bool of the parameter's shape, by its name."""
        return {
            f"layers.{k}.weight": layer.dead
            for k, layer in enumerate(self.layers)
            if layer.dead is not None
        }


class Layer(nn.Module):
    """x W^T + b, and a ReLU behind it in a hidden layer."""

    dead: Tensor | None
    """bool, the shape of the weight, True = absent; None = all are there."""

    units: UnitGroup | None

    def __init__(self, shape: LayerShape, networks: tuple[int, ...], *, hidden: bool) -> None:
        super().__init__()
        self.shape, self.networks, self.is_hidden = shape, networks, hidden
        size = (shape.out_features, shape.in_features)
        self.weight = nn.Parameter(torch.zeros(*networks, *size))
        self.bias = nn.Parameter(torch.zeros(*networks, size[0]))
        self.register_buffer("dead", None, persistent=False)
        self.units = None

    @torch.no_grad()
    def draw(self, seeds: Sequence[int], topologies: Sequence[LayerTopology | None]) -> None:
        """Take a graph and draw the weights of each network."""
        shape = self.shape
        dead = torch.zeros(len(seeds), shape.out_features, shape.in_features, dtype=torch.bool)
        for network, topology in enumerate(topologies):
            if topology is not None:
                dead[network] = ~torch.from_numpy(topology.mask())
        if dead.any():
            self.dead = dead.view(self.weight.shape)
            # Nothing that reads the gradient sees one of a weight that is not there.
            self.weight.register_hook(lambda grad: grad.masked_fill(self.dead, 0.0))
        weights = self.weight.view(dead.shape)
        for network, seed in enumerate(seeds):
            rng = seeding.stream(seed, "init", f"{shape.name}.weight")
            rows = self._rows(np.arange(shape.out_features), ~dead[network].numpy(), rng)
            weights[network] = torch.from_numpy(rows)

    def fresh(
        self,
        parameter: str,
        units: NDArray[np.int64],
        rng: np.random.Generator,
        network: tuple[int, ...],
    ) -> NDArray[np.float32]:
        """As FreshRows (sparse/units.py), of one network."""
        if parameter.endswith(".bias"):
            return np.zeros(len(units), dtype=np.float32)
        live = np.ones((self.shape.out_features, self.shape.in_features), dtype=bool)
        if self.dead is not None:
            live = ~self.dead[network].cpu().numpy()
        return self._rows(units, live, rng)

    def _rows(
        self, units: NDArray[np.int64], live: NDArray[np.bool_], rng: np.random.Generator
    ) -> NDArray[np.float32]:
        """Kaiming-uniform rows [k, I] (He et al. 2015, by fan-in), by the links that a unit has."""
        live = live[units]
        gain = math.sqrt(2.0) if self.is_hidden else 1.0
        bound = gain * np.sqrt(3.0 / np.maximum(live.sum(1), 1))
        drawn = rng.uniform(-1.0, 1.0, live.shape) * bound[:, None]
        return np.where(live, drawn, 0.0).astype(np.float32)

    def activate(self, x: Tensor) -> Tensor:
        """[N, B, I] -> [N, B, O]."""
        num = x.shape[0]
        weight = self.weight.view(num, *self.weight.shape[-2:])
        y: Any = _Affine.apply(x, weight, self.bias.view(num, -1))
        return y.relu() if self.is_hidden else y

    def forward(self, x: Tensor) -> Tensor:
        """[N, B, I] -> [N, B, O], seen by the units."""
        y = self.activate(x)
        return y if self.units is None else self.units(y)


class _Affine(torch.autograd.Function):
    """x W^T + b for each network, and its gradients.

    With one image the gradient of W is an outer product, which torch's batched product makes three
    times slower than a multiplication (5 networks of 100 x 784, one core).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # pyright: ignore
        ctx.save_for_backward(x, weight)
        return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # pyright: ignore
        x, weight = ctx.saved_tensors
        to_x = torch.bmm(grad, weight) if ctx.needs_input_grad[0] else None
        turned = grad.transpose(1, 2)
        to_weight = turned * x if x.shape[1] == 1 else torch.bmm(turned, x)
        return to_x, to_weight, grad.sum(1)
