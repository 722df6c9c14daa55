"""A sub-network for each domain: what all methods share that freeze a graph when its phase ends.

O = out_features, I = in_features, global. A weight belongs to the first phase that has ended with
it in its graph, and no later phase moves a bit of it; a later graph may have it too and read it.
What is frozen and in no graph at the moment is absent, and its value kept beside. A domain is
tested with the graph of its phase, so it must be named then; all that is on no graph (embedding,
positions, norms, biases, dense linears) is trained in the first phase and held afterwards. So what
a named domain scores stays to the last bit.

A domain that comes again gets another graph, and is tested with that one. One that has not been
trained is tested with the network as it stands.
"""

from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsecl.methods.cl.again import no_way_on
from sparsecl.methods.context import MethodContext, SliceTensors
from sparsecl.methods.dst.base import LayerView, Rewirer, look
from sparsecl.methods.sparse_cl.config import IsolatedConfig


class Isolated(Rewirer):
    """The skeleton; `begin`, `drop` and `grow` are what a relative means."""

    config: IsolatedConfig

    def __init__(self, config: IsolatedConfig) -> None:
        super().__init__(config)
        self.graphs: list[dict[str, Tensor]] = []
        """Of the phases that have ended, by parameter: which cells live, as `packed` has them."""

        self.phases: dict[str, int] = {}
        """Domain -> the last phase that has ended with a graph for it."""

        self.kept: dict[str, Tensor] = {}
        """Values of what is frozen, fp32 [O, I], 0 elsewhere; on the CPU, the same on all ranks:
        absent cells belong to no slice."""

    @abstractmethod
    def begin(self, context: MethodContext) -> Mapping[str, Tensor]:
        """The live sets, bool [O, I], with which a phase begins, by parameter; what is left out
        stays as it is. Nothing is changed yet. Collective over the world.

        Raises:
            UserError: on all ranks, if the network has too little left.
        """

    @abstractmethod
    def drop(self, context: MethodContext, choice: LayerView) -> Tensor:
        """Which cells go, int64 [K], the first first."""

    @abstractmethod
    def grow(self, context: MethodContext, choice: LayerView, num: int) -> Tensor:
        """Which absent cells come, int64 [num], or fewer if there is no room."""

    def moving(self, context: MethodContext) -> Iterable[str]:
        """The parameters whose graph moves."""
        return context.sparse

    def frozen(self, context: MethodContext, name: str) -> Tensor:
        """bool [O, I]: what belongs to a phase that has ended. Local."""
        shape = context.global_shape(name)
        found = torch.zeros(shape, dtype=torch.bool)
        for graph in self.graphs:
            found |= unpacked(graph[name], shape)
        return found

    @torch.no_grad()
    def phase_start(self, context: MethodContext) -> None:
        super().phase_start(context)
        for name, mask in self.begin(context).items():
            self._give(context, name, mask, self._fresh(context, name, mask))
        self._hold(context)

    def resumed(self, context: MethodContext) -> None:
        self._hold(context)

    def began_anew(self, context: MethodContext) -> None:
        if context.progress.phase:
            raise no_way_on(self.name, "which weights belong to which phase")

    def after_step(self, context: MethodContext, *, applied: bool) -> None:
        if applied and self.is_due_after(context):
            for name in self.moving(context):
                self._rewire(context, name)

    def _rewire(self, context: MethodContext, name: str) -> None:
        choice = look(context, name).cpu()  # as what is frozen, and scores, are
        dropped = self.drop(context, choice)
        grown = self.grow(context, choice, dropped.numel())
        mask = choice.live.clone()
        mask[dropped[: grown.numel()]] = False
        mask[grown] = True
        self._give(context, name, mask.view(choice.shape), None)

    def _give(self, context: MethodContext, name: str, mask: Tensor, fresh: Tensor | None) -> None:
        """Give a parameter the live set [O, I]: what is frozen comes with its value, all else that
        comes with `fresh` [O, I], or zero. Collective over the world."""
        context.hold(name, None, owner=self.name)
        new = context.set_live(name, mask)
        frozen = context.local_of(name, self.frozen(context, name))
        self.restart.mark(context, name, new & ~frozen)
        if self.kept:
            context.write(name, context.local_of(name, self.kept[name]), new & frozen)
        if fresh is not None:
            context.write(name, context.local_of(name, fresh), new & ~frozen)
        context.hold(name, context.local_of(name, mask) & frozen, owner=self.name)

    def _fresh(self, context: MethodContext, name: str, mask: Tensor) -> Tensor:
        """Weights [O, I] as a new model has them on this graph. The same on all ranks."""
        layer = context.sparse[name].layer
        rng = context.generator(self.name, "weights", context.progress.phase, name)
        values = rng.standard_normal(tuple(mask.shape), dtype=np.float32)
        values *= np.float32(layer.init_std)
        if layer.init_corrected:
            degrees = np.maximum(mask.numpy().sum(axis=1), 1)
            values *= np.sqrt(mask.shape[1] / degrees).astype(np.float32)[:, None]
        return torch.from_numpy(values)

    def _hold(self, context: MethodContext) -> None:
        """Hold what is frozen and lives; after the first phase also all that is on no graph."""
        for name, shape in context.shapes().items():
            if name not in context.sparse:
                held = torch.full(tuple(shape), bool(self.graphs))
            else:
                live = torch.from_numpy(context.sparse[name].topology.mask())
                held = context.local_of(name, live & self.frozen(context, name))
            context.hold(name, held, owner=self.name)

    def phase_end(self, context: MethodContext) -> None:
        """From now on the weights of this phase's graph are frozen. Collective over the world."""
        graph = {}
        for name, entry in context.sparse.items():
            live = torch.from_numpy(entry.topology.mask())
            own = live & ~self.frozen(context, name)
            weights = context.matrix(name).cpu()
            before = self.kept.get(name, torch.zeros_like(weights))
            self.kept[name] = torch.where(own, weights, before)
            graph[name] = packed(live)
        self.graphs.append(graph)
        self.phases[context.domain] = context.progress.phase

    def scoring(self, context: MethodContext, domain: str) -> AbstractContextManager[None]:
        phase = self.phases.get(domain)
        if phase is None or domain == context.domain:
            return nullcontext()
        return context.shown(self._values(context, self.graphs[phase]))

    def _values(
        self, context: MethodContext, graph: Mapping[str, Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        """The weights of a phase that has ended, matrix by matrix. Local."""
        for name, bits in graph.items():
            value = self.kept[name]
            value = value.masked_fill(~unpacked(bits, value.shape), 0.0)
            yield name, context.local_of(name, value)

    def state_dict(self) -> tuple[Mapping[str, SliceTensors], Mapping[str, Any]]:
        tensors, values = super().state_dict()
        return tensors, {**values, "phases": dict(self.phases)}

    def check_state(self, tensors: Collection[str], values: Mapping[str, Any]) -> None:
        super().check_state(tensors, values)
        for domain, phase in values["phases"].items():
            if type(phase) is not int or not 0 <= phase < 2**15:
                raise ValueError(f"phases: {domain!r:.40} has {phase!r:.40}, which is no phase")

    def load_state_dict(
        self, tensors: Mapping[str, SliceTensors], values: Mapping[str, Any]
    ) -> None:
        super().load_state_dict(tensors, values)
        self.phases = dict(values["phases"])

    def arrays(self) -> Mapping[str, Tensor]:
        every = enumerate(self.graphs)
        found = {f"{phase}.{name}": bits for phase, graph in every for name, bits in graph.items()}
        return found | {f"kept.{name}": value for name, value in self.kept.items()}

    def check_arrays(self, arrays: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Of graphs and kept values; a relative takes its own out before."""
        num = max(values["phases"].values(), default=-1) + 1
        kinds = ["kept", *map(str, range(num))] if num else []
        names = {key.partition(".")[2] for key in arrays}
        if num and not names:
            raise ValueError(f"phases: {num}, with no graph")
        for key in sorted({f"{kind}.{name}" for kind in kinds for name in names} ^ {*arrays}):
            raise ValueError(f"{key} is {'not known' if key in arrays else 'missing'}")
        for key, value in arrays.items():
            kept = key.startswith("kept.")
            wanted = (torch.float32, 2) if kept else (torch.uint8, 1)
            if (value.dtype, value.dim()) != wanted:
                what = "are no weights of a matrix" if kept else "are no bits of a graph"
                raise ValueError(f"{key}: {value.dtype} {list(value.shape)} {what}")
            cells = arrays["kept." + key.partition(".")[2]].numel()
            if not kept and len(value) != -(-cells // 8):
                raise ValueError(f"{key}: {len(value)} bytes, which is no bit for each of {cells}")

    def load_arrays(self, arrays: Mapping[str, Tensor]) -> None:
        self.graphs = [{} for _ in range(max(self.phases.values(), default=-1) + 1)]
        self.kept = {}
        for key, value in arrays.items():
            kind, _, name = key.partition(".")
            if kind == "kept":
                self.kept[name] = value
            elif kind.isdecimal():
                self.graphs[int(kind)][name] = value


def packed(mask: Tensor) -> Tensor:
    """bool [O, I] -> uint8 [ceil(O I / 8)], a bit a cell."""
    return torch.from_numpy(np.packbits(mask.view(-1).numpy()))


def unpacked(bits: Tensor, shape: torch.Size) -> Tensor:
    """uint8 bits -> bool of `shape`."""
    found = np.unpackbits(bits.numpy(), count=shape.numel())
    return torch.from_numpy(found).view(torch.bool).view(shape)
