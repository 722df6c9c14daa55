"""What methods see of the networks of a stream; the same methods as those of a GPT.

A row is an image and its label, fp32 [inputs + 1]; a phase is a task.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from sparsecl import dist, seeding
from sparsecl.methods.context import MethodContext, Outputs, Progress, SliceTensors
from sparsecl.methods.lines import matrix_of
from sparsecl.methods.several import Methods
from sparsecl.methods.units import UnitFigures
from sparsecl.methods.weights import WeightContext
from sparsecl.methods.work import Moment
from sparsecl.optim.masking import MaskGuard
from sparsecl.optim.moving import clear
from sparsecl.optim.slice import Slice
from sparsecl.sparse.units import UnitGroup
from sparsecl.streams.config import StreamConfig
from sparsecl.streams.hesscale import diagonals
from sparsecl.streams.models import Networks
from sparsecl.streams.noise import NoiseStream
from sparsecl.streams.position import Position
from sparsecl.streams.slices import NetworkSlice, NetworkSlices
from sparsecl.streams.tasks import Tasks


class BareSide:
    """The half of ModelSide that is alike for all networks of streams: they have no parts of a GPT,
    and take none. `check_methods` has refused what needs some."""

    def columns(self) -> None:
        return None

    def linears(self) -> Mapping[str, Any]:
        return {}

    def feed_forwards(self) -> Mapping[str, int]:
        return {}

    def add(self, at: str, name: str, part: nn.Module) -> None:
        raise KeyError(at)


class StreamModel(BareSide):
    """The networks before their optimizer has them, for a method that adds to them (ModelSide)."""

    def __init__(self, model: Networks, seeds: Sequence[int]) -> None:
        self.model, self.seeds = model, seeds

    def units(self, *, gated: bool = False) -> Mapping[str, UnitGroup]:
        if not self._groups():
            self.model.add_units()
        for group in self._groups().values() if gated else ():
            group.add_gate()
        return self._groups()

    def _groups(self) -> dict[str, UnitGroup]:
        layers: list[Any] = list(self.model.layers)
        return {layer.shape.name: layer.units for layer in layers if layer.units is not None}

    def generator(self, *names: str | int) -> np.random.Generator:
        assert not self.model.networks
        return seeding.stream(self.seeds[0], *names)


class StreamContext(WeightContext):
    """The context of networks that are trained side by side, or of one apart (MethodContext)."""

    def __init__(
        self,
        config: StreamConfig,
        model: Networks,
        slices: NetworkSlices,
        guard: MaskGuard,
        methods: Methods,
        *,
        seeds: Sequence[int],
        tasks: Sequence[Tasks],
        position: Position,
    ) -> None:
        """`seeds`, `tasks`: of each network."""
        super().__init__(model, slices, guard, methods)
        self.config, self.model, self.position = config, model, position
        self.seeds, self.tasks = seeds, tasks
        sizes = [item.param.numel() // len(seeds) for item in slices]
        ends = np.cumsum([0, *sizes]).tolist()
        self._places = {item.name: slice(*ends[k : k + 2]) for k, item in enumerate(slices)}
        self._num_weights = ends[-1]
        self._noise: dict[tuple[str | int, ...], NoiseStream] = {}
        self._seen: Any = ()
        self._curvature: dict[str, Tensor] = {}
        self._armed = False
        self.dense_gradients: dict[str, Tensor] = {}
        """Of the last step that was armed."""

    @property
    def networks(self) -> tuple[int, ...]:
        return self.model.networks

    # Where the run is.

    @property
    def progress(self) -> Progress:
        position, steps = self.position, self.config.steps_per_task
        return Progress.plain(
            Moment(
                step=position.task * steps + position.step,
                total_steps=self.config.tasks * steps,
                phase=position.task,
                phase_step=position.step,
                phase_steps=steps,
            )
        )

    @property
    def domain(self) -> str:
        return f"task {self.position.task}"

    @property
    def batch_sequences(self) -> int:
        return self.config.batch

    def rows(self, phase: int, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Images of a task with their labels, fp32 [n, inputs + 1]; behind its last one the first
        comes again, as text does."""
        assert not self.networks
        return as_rows(*self.tasks[0].read(phase, self.chunks(phase, indices)))

    def chunks(self, phase: int, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.tasks[0].order(phase)[indices % self.config.samples_per_task]

    def generator(self, *names: str | int) -> np.random.Generator:
        return self.network_generator((), *names)

    def network_generator(self, network: tuple[int, ...], *names: str | int) -> np.random.Generator:
        assert len(network) == len(self.networks), network
        return seeding.stream(self.seeds[network[0] if network else 0], *names)

    def noise(self, item: Slice, *names: str | int) -> Tensor:
        """A draw depends on the network's seed, the names and the place; see streams/noise.py.

        Args:
            names: the last one is the step.
        """
        *head, step = names
        assert isinstance(step, int), names
        drawn = self.noise_stream(*head).at(step)[:, self._places[item.name]]
        return (drawn if self.networks else drawn[0]).to(dist.device())

    def noise_stream(self, *names: str | int) -> NoiseStream:
        """The draws of all steps."""
        if names not in self._noise:

            def key(network: int, block: int) -> int:
                return seeding.stream_key(self.seeds[network], "noise", *names, block)

            self._noise[names] = NoiseStream(len(self.seeds), self._num_weights, key)
        return self._noise[names]

    def mean_gradients(
        self,
        rows: NDArray[np.float32],
        *,
        each: Callable[[Tensor], Tensor] | None = None,
        of: Callable[[Outputs, NDArray[np.int64]], Tensor] | None = None,
    ) -> SliceTensors:
        assert not self.networks
        items = list(self.slices)
        parts = np.arange(len(rows)).reshape(-1, 1) if each else [np.arange(len(rows))]
        total = {item.name: torch.zeros_like(item.master) for item in items}
        for part in parts:
            outputs = ImageOutputs(self.model, rows[part])
            with torch.enable_grad():
                losses = of(cast(Outputs, outputs), part) if of else outputs.losses
                found = torch.autograd.grad(losses.mean(), [item.param for item in items])
            for item, gradient in zip(items, found, strict=True):
                value = gradient.reshape(-1)
                total[item.name] += (each(value) if each else value) / len(parts)
        return total

    def dot(self, a: SliceTensors, b: SliceTensors) -> float:
        assert not self.networks
        return super().dot(a, b)

    def see(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> None:
        """Take note of a step's images x [N, B, inputs], y [N, B] and their weights in the loss [B]
        (None = all are 1), before the methods see its gradients."""
        self._seen, self._curvature = (x, y, weight), {}
        if self._armed:
            self.dense_gradients, self._armed = self.model.dense_gradients(x, y, weight), False

    def arm_dense_gradients(self) -> None:
        self._armed = True

    def curvature(self, item: Slice) -> Tensor:
        if not self._curvature:
            self._curvature = diagonals(self.model, *self._seen)
        return cast(NetworkSlice, item).cut(self._curvature[item.name])

    # Lines: of each network by itself, so that its sums are to the bit what they are alone.

    def global_shape(self, name: str) -> torch.Size:
        """Of one network."""
        return self.slices.parameters()[name].shape[len(self.networks) :]

    def line_sums(self, values: SliceTensors, dims: Mapping[str, int]) -> dict[str, Tensor]:
        found = {}
        for name, dim in dims.items():
            laid = values[name].view(-1, *matrix_of(self.global_shape(name)))
            sums = torch.stack([matrix.sum(1 - dim) for matrix in laid])
            found[name] = sums.view(*self.networks, -1).double()
        return found

    def of_lines(self, item: Slice, found: Tensor, dim: int) -> Tensor:
        shape = (*self.networks, *matrix_of(self.global_shape(item.name)))
        return found.unsqueeze(-2 if dim else -1).expand(shape).reshape(*self.networks, -1)

    # Graphs.

    def each(self) -> Sequence[MethodContext]:
        if not self.networks:
            return (cast(MethodContext, OneNetwork(self, 0)),)
        return [cast(MethodContext, OneNetwork(self, k)) for k in range(len(self.seeds))]

    @torch.no_grad()
    def rewire_one(self, network: int, name: str, drop: Tensor, grow: Tensor) -> Tensor:
        """`rewire` of one network."""
        layer = self._layer(name)
        dead = layer.dead.view(len(self.seeds), -1)[network]
        assert not dead[drop].any() and dead[grow].all() and drop.shape == grow.shape, name
        fresh = torch.zeros_like(layer.dead)
        of_one = fresh.view(len(self.seeds), -1)[network]
        of_one[grow] = True
        grown = fresh.clone()
        of_one[drop] = True
        dead[drop], dead[grow] = True, False
        clear(self.slices, name, fresh, self.methods.slice_tensors())
        self.mask_changed(name)
        return grown

    def mask_changed(self, name: str) -> None:
        """The guard and the layer take a mask again that has changed in place."""
        self._layer(name).__dict__.pop("keep", None)
        self.guard.refresh_mask(name)

    # Hidden units.

    def unit_figures(self) -> Mapping[str, UnitFigures]:
        found = {name: _Figures(group, self.slices) for name, group in self.units.items()}
        return cast(Mapping[str, UnitFigures], found)

    @torch.no_grad()
    def begin_anew(
        self,
        group: UnitGroup,
        units: NDArray[np.int64],
        rng: np.random.Generator,
        network: tuple[int, ...] = (),
        *,
        moments: bool = True,
    ) -> dict[str, Tensor]:
        changed, params = {}, self.slices.parameters()
        for name in (*group.incoming, *group.outgoing):
            param, item = params[name], self.slices.find(name)
            assert item is not None
            layer = self._layer(name)
            if name in group.incoming:
                lines = (*network, torch.from_numpy(units))
                value: Any = torch.from_numpy(layer.fresh(name, units, rng, network))
            else:
                columns = torch.from_numpy(group.columns(units))
                lines, value = (*network, slice(None), columns), 0.0
            param.data[lines] = value
            for moment in self.slices.moments(item).values() if moments else ():
                moment.view(param.shape)[lines] = 0.0
            where = torch.zeros(param.shape, dtype=torch.bool, device=param.device)
            where[lines] = True
            if layer.dead is not None and param is layer.weight:
                where &= ~layer.dead
            changed[name] = where
        norm = self._layer(group.incoming[0]).norm
        if norm is not None:
            norm.forget(network, torch.from_numpy(units))
        return changed

    def _layer(self, name: str) -> Any:
        """That of a parameter, or of one of its norm."""
        return self.model.get_submodule(name.rpartition(".")[0].removesuffix(".norm"))

    @torch.no_grad()
    def write(self, name: str, value: Tensor, where: Tensor | None = None) -> None:
        param = self.slices.parameters()[name]
        layer = self._layer(name)
        new = value.view(param.shape).to(param)
        if where is not None:
            new = torch.where(where.view(param.shape), new, param)
        if layer.dead is not None and param is layer.weight:
            new = torch.where(layer.dead, param, new)
        param.copy_(new)


@dataclass(frozen=True, eq=False)
class _Graph:
    """Of one network, as sparse/rewire.py reads a layer in masked storage."""

    dead: Tensor
    """bool [O, I], True = absent."""

    topology: str = "drawn"
    packed: bool = False
    tp_size: int = 1

    def live_mask(self) -> Tensor:
        return ~self.dead


@dataclass(frozen=True, eq=False)
class _OnGraph:
    layer: _Graph


class OneNetwork:
    """One network of a StreamContext, for methods that choose over whole matrices."""

    def __init__(self, context: StreamContext, network: int) -> None:
        self._all, self._network = context, network
        self.slices, self.progress = context.slices, context.progress

    @property
    def sparse(self) -> Mapping[str, _OnGraph]:
        """By parameter name, as the matrices on a topology of a GPT."""
        return {
            name: _OnGraph(_Graph(dead.view(-1, *dead.shape[-2:])[self._network]))
            for name, dead in self._all.model.masks().items()
        }

    def matrix(self, name: str) -> Tensor:
        """fp32 [O, I], a view."""
        weight = self._all.slices.parameters()[name].detach()
        return weight.view(-1, *weight.shape[-2:])[self._network]

    def joined(self, name: str, local: Tensor) -> Tensor:
        return local

    def dense_gradient(self, name: str) -> Tensor:
        return self._all.dense_gradients[name][self._network]

    def generator(self, *names: str | int) -> np.random.Generator:
        return seeding.stream(self._all.seeds[self._network], *names)

    def rewire(self, name: str, drop: Tensor, grow: Tensor) -> Tensor:
        return self._all.rewire_one(self._network, name, drop, grow)


class _Figures:
    """UnitFigures of one group, each made when it is asked for: |w| of a first layer costs more
    than all else."""

    def __init__(self, group: UnitGroup, slices: NetworkSlices | Any) -> None:
        self.group, self._params = group, slices.parameters()

    def _mean(self, row: int) -> Tensor:
        return self.group.sums[row] / self.group.sums[0].clamp(min=1.0)

    @cached_property
    def mean(self) -> Tensor:
        return self._mean(1)

    @cached_property
    def mean_abs(self) -> Tensor:
        return self._mean(2)

    @cached_property
    def active(self) -> Tensor:
        return self._mean(3)

    @cached_property
    def distance(self) -> Tensor:
        return self._mean(4)

    @cached_property
    def incoming(self) -> Tensor:
        weight = self._params[self.group.incoming[0]].detach()
        return torch.linalg.vector_norm(weight, ord=1, dim=-1) / weight.shape[-1]

    @cached_property
    def outgoing(self) -> Tensor:
        (name,) = self.group.outgoing
        weight = self._params[name].detach()
        sums = self.group.by_unit(torch.linalg.vector_norm(weight, ord=1, dim=-2))
        return sums / (weight.shape[-2] * self.group.num_columns)


class ImageOutputs:
    """Outputs (methods/context.py) of one network for images: a sequence of one position each."""

    def __init__(self, model: Networks, rows: NDArray[np.float32]) -> None:
        table = torch.from_numpy(rows).to(dist.device())
        with torch.enable_grad():
            self.scores = model(table[None, :, :-1])[0]
            self.losses = functional.cross_entropy(
                self.scores, table[:, -1].long(), reduction="none"
            )[:, None]

    @property
    def squared_norm(self) -> Tensor:
        return self.scores.square().sum(1, keepdim=True)

    @property
    def logsumexp(self) -> Tensor:
        return self.scores.logsumexp(1, keepdim=True)

    def logits(self, ids: Tensor) -> Tensor:
        return self.scores.gather(1, ids[:, 0])[:, None]

    def log_probs(self, ids: Tensor) -> Tensor:
        return self.logits(ids) - self.logsumexp[..., None]

    def draw(self, uniform: Tensor) -> Tensor:
        total = self.scores.detach().double().softmax(1).cumsum(1)
        last = self.scores.shape[1] - 1
        return torch.searchsorted(total, uniform.to(total), right=True).clamp(max=last)


def as_rows(pixels: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float32]:
    """Images [n, inputs] and labels [n] as one table."""
    return np.concatenate([pixels, labels[:, None].astype(np.float32)], axis=1)
