"""Networks side by side: as many multilayer perceptrons as there are seeds, as one module.

N = networks, B = images of a step, O, I = outputs and inputs of a layer, n = units of a hidden one.
Each network has its own weights, graph and data, so a layer is one product of N pairs of matrices.
The bits of a network do not depend on the others: products of a pair are made alone inside the
batched product, and everything else is element by element.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sparsecl import seeding
from sparsecl.sparse.units import UnitGroup
from sparsecl.streams.activations import ACTIVATIONS
from sparsecl.streams.online_norm import OnlineNorm
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
        activation: str = "relu",
        norm: str = "none",
    ) -> None:
        """Draw the weights of every network. Local.

        Args:
            shapes: the matrices, in order.
            seeds: [N]
            topologies: of each network, by layer name; layers without one are dense.
            apart: N is 1, and parameters have no dim in front for it: what is made for one
                network, a method say, finds one.
            activation: of hidden layers, by its name in ACTIVATIONS.
            norm: of what goes into it: none, or online (online_norm.py).
        """
        super().__init__()
        assert not apart or len(seeds) == 1, seeds
        networks = () if apart else (len(seeds),)
        self.columns = 2 if ACTIVATIONS[activation].paired else 1
        """Activations of a unit, side by side."""

        self.layers = nn.ModuleList(
            Layer(shape, networks, activation, hidden=shape is not shapes[-1]) for shape in shapes
        )
        for index, shape in enumerate(shapes):
            layer: Any = self.layers[index]
            layer.draw(seeds, [graphs.get(shape.name) for graphs in topologies])
            if norm == "online" and layer.is_hidden:
                layer.norm = OnlineNorm(shape.out_features, networks=networks)
        self.networks = networks

    def add_units(self) -> None:
        """Let methods see the hidden units, by layer."""
        layers: list[Any] = list(self.layers)
        for layer, after in zip(layers, layers[1:], strict=False):
            name, behind = layer.shape.name, after.shape.name
            layer.units = UnitGroup(
                layer.shape.out_features,
                incoming=tuple(f"{name}.{own}" for own, _ in layer.named_parameters()),
                outgoing=(f"{behind}.weight",),
                biases=(f"{behind}.bias",),
                fresh=lambda parameter, units, rng, layer=layer: layer.fresh(
                    parameter, units, rng, (0,) if layer.networks else ()
                ),
                networks=layer.networks,
                columns=self.columns,
            )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x

    @torch.no_grad()
    def learn(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Set every gradient to that of the mean loss of each network over its images: what
        autograd would do, in far fewer operations, of which a step of batch 1 mostly consists.

        Args:
            x: [N, B, inputs]
            y: int64 [N, B]

        Returns:
            Logits [N, B, classes], and the loss of each image in nats, [N, B].
        """
        logits, losses, found = self._backward(x, y)
        for layer, delta, given in found:
            layer.set_gradient(delta, given)
        return logits, losses

    @torch.no_grad()
    def dense_gradients(self, x: Tensor, y: Tensor, weight: Tensor | None) -> dict[str, Tensor]:
        """Gradients of all cells of the matrices, absent ones too, [N, O, I] by parameter name, of
        the mean loss of each network; without gates.

        Args:
            weight: of an image in the loss, [B]; None = all are 1.
        """
        found = self._backward(x, y, weight)[2]
        return {
            f"{layer.shape.name}.weight": delta.transpose(1, 2) @ given
            for layer, delta, given in found
        }

    def _backward(
        self, x: Tensor, y: Tensor, weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor, list[tuple[Any, Tensor, Tensor]]]:
        """Logits, losses, and for each layer from the last to the first the gradient of what it
        gives, [N, B, O], and what it was given, [N, B, I]."""
        layers: list[Any] = list(self.layers)
        inputs = [x]
        for layer in layers:
            h = torch.baddbmm(layer.shared_bias, inputs[-1], layer.turned)
            inputs.append(layer.shown(h))
        logits = inputs.pop()
        scores = logits.log_softmax(-1)
        losses = -scores.gather(-1, y.unsqueeze(-1)).squeeze(-1)
        delta = scores.exp_()
        delta.scatter_add_(-1, y.unsqueeze(-1), delta.new_full((), -1.0).expand(*y.shape, 1))
        if y.shape[1] > 1:
            delta /= y.shape[1]
        if weight is not None:
            delta *= weight[:, None]
        found = []
        for layer in reversed(layers):
            given = inputs.pop()
            found.append((layer, delta, given))
            if inputs:
                delta = torch.bmm(delta, layer.matrices)
                delta = layer.activation.backward(delta, given)
        return logits, losses, found

    @property
    def is_plain(self) -> bool:
        """`learn` knows everything that is in it: no unit has a gate, no layer a norm."""
        layers: list[Any] = list(self.layers)
        gates = [layer.units.gate for layer in layers if layer.units is not None]
        return not any(layer.norm for layer in layers) and all(gate is None for gate in gates)

    def hidden(self, x: Tensor) -> list[Tensor]:
        """What each hidden layer gives, [N, B, n], or [N, B, 2n]; nothing is added up by taps."""
        found = []
        layers: list[Any] = list(self.layers)
        for layer in layers[:-1]:
            x = layer.activate(x)
            found.append(x)
        return found

    def masks(self) -> dict[str, Tensor]:
        """Where weights are absent, bool of the parameter's shape, by its name."""
        layers: list[Any] = list(self.layers)
        return {f"{at.shape.name}.weight": at.dead for at in layers if at.dead is not None}


class Layer(nn.Module):
    """x W^T + b, and an activation behind it in a hidden layer."""

    dead: Tensor | None
    """bool, the shape of the weight, True = absent; None = all are there."""

    units: UnitGroup | None

    norm: OnlineNorm | None
    """Between the products and the activation."""

    def __init__(
        self, shape: LayerShape, networks: tuple[int, ...], activation: str, *, hidden: bool
    ) -> None:
        super().__init__()
        self.shape, self.networks, self.is_hidden = shape, networks, hidden
        self.activation = ACTIVATIONS[activation]
        size = (shape.out_features, shape.in_features)
        self.weight = nn.Parameter(torch.zeros(*networks, *size))
        self.bias = nn.Parameter(torch.zeros(*networks, size[0]))
        self.register_buffer("dead", None, persistent=False)
        self.units, self.norm = None, None

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

    @torch.no_grad()
    def begin(self, live: NDArray[np.bool_], rng: np.random.Generator) -> None:
        """New weights on the links that are there, [O, I], of one network; biases of zero."""
        rows = self._rows(np.arange(self.shape.out_features), live, rng)
        self.weight.copy_(torch.from_numpy(rows).view(self.weight.shape))
        self.bias.zero_()

    def fresh(
        self,
        parameter: str,
        units: NDArray[np.int64],
        rng: np.random.Generator,
        network: tuple[int, ...],
    ) -> NDArray[np.float32]:
        """As FreshRows (sparse/units.py), of one network."""
        if parameter.endswith((".bias", ".norm.weight")):
            return np.full(len(units), parameter.endswith("weight"), dtype=np.float32)
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

    # What `learn` works on: views of the parameters and of their gradients, made once.

    @cached_property
    def matrices(self) -> Tensor:
        """[N, O, I]"""
        return self.weight.detach().view(-1, *self.weight.shape[-2:])

    @cached_property
    def turned(self) -> Tensor:
        """[N, I, O]"""
        return self.matrices.transpose(1, 2)

    @cached_property
    def shared_bias(self) -> Tensor:
        """[N, 1, O]"""
        return self.bias.detach().view(-1, 1, self.bias.shape[-1])

    @cached_property
    def _gradients(self) -> tuple[Tensor, Tensor]:
        """Buffers [N, O, I] and [N, O]."""
        return torch.zeros_like(self.matrices), torch.zeros_like(self.shared_bias[:, 0])

    @cached_property
    def keep(self) -> Tensor | None:
        """Of the weights' bits: none where a weight is absent; see optim/zeroing.py."""
        return None if self.dead is None else self.dead.view_as(self.matrices).int().sub_(1)

    def set_gradient(self, delta: Tensor, x: Tensor) -> None:
        """From the gradient of the outputs [N, B, O] and the inputs [N, B, I]."""
        of_weight, of_bias = self._gradients
        if delta.shape[1] == 1:
            torch.mul(delta.transpose(1, 2), x, out=of_weight)
            of_bias.copy_(delta[:, 0])
        else:
            torch.bmm(delta.transpose(1, 2), x, out=of_weight)
            torch.sum(delta, 1, out=of_bias)
        if self.keep is not None:
            of_weight.view(torch.int32).bitwise_and_(self.keep)
        self.weight.grad = of_weight.view(self.weight.shape)
        self.bias.grad = of_bias.view(self.bias.shape)

    def activate(self, x: Tensor) -> Tensor:
        """[N, B, I] -> [N, B, O]; under a paired activation [N, B, 2 O]."""
        z = self.products(x)
        return self.squash(z if self.norm is None else self.norm.look(z))

    def products(self, x: Tensor) -> Tensor:
        """[N, B, I] -> z [N, B, O]."""
        num = x.shape[0]
        weight, bias = self.weight.view(num, *self.weight.shape[-2:]), self.bias.view(num, 1, -1)
        return torch.baddbmm(bias, x, weight.transpose(1, 2))

    def squash(self, z: Tensor) -> Tensor:
        """The activation, in a hidden layer."""
        return self.activation.forward(z) if self.is_hidden else z

    def forward(self, x: Tensor) -> Tensor:
        """[N, B, I] -> [N, B, O], seen by the units."""
        z = self.products(x)
        if self.norm is not None:
            z = self.norm(z) if self.networks else self.norm(z[0])[None]
        return self.shown(z)

    def shown(self, z: Tensor) -> Tensor:
        """`squash`, with the units looking on."""
        if self.units is None:
            return self.squash(z)
        if self.activation.paired:
            return self.squash(self._see(z))
        return self._see(self.squash(z))

    def _see(self, h: Tensor) -> Tensor:
        units: Any = self.units
        return units(h) if self.networks else units(h[0])[None]
