"""PackNet: every domain trains the weights that are free, keeps the largest, and frees the rest.

Source: Mallya & Lazebnik 2018, https://arxiv.org/abs/1711.05769, and its public code
(arunmallya/packnet). In each layer the k = round(p n) smallest of the n weights that the phase has
trained are set to zero: all whose magnitude is at most that of the k-th. What stays is trained
again, with the zeros held, and belongs to the phase from then on: no later phase moves a bit of it.
A domain is tested with what belongs to its phase and to earlier ones, so it must be named then.

Differs: all weights begin free and untrained, where the paper packs into a pre-trained network
(init_from gives one). Domains share one output layer, the embedding. It and everything else that is
no weight of a linear (positions, norms, biases) is trained in the first phase and held afterwards,
as the code does with biases and batch norms. A phase keeps its number of steps: `retrain` is a
share of it. Pruning ranks the live weights of the whole matrix, whatever its split over tp.

A domain that comes again takes new weights, and is tested with those of its last phase and all
before. One that has not been trained is tested with the network as it stands.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from sparsecl.errors import UserError
from sparsecl.methods.base import Method
from sparsecl.methods.cl.config import RETRAIN, PackNetConfig
from sparsecl.methods.context import MethodContext, SliceTensors
from sparsecl.methods.model_side import ModelSide
from sparsecl.sparse.linear import SparseLinear


class PackNet(Method):
    """Owners of weights, as slices: 0 = nobody, p + 1 = phase p. Absent weights have none."""

    name = "packnet"
    config: PackNetConfig

    def __init__(self, config: PackNetConfig) -> None:
        super().__init__(config)
        self.linears: dict[str, SparseLinear] = {}
        self.owner: SliceTensors = {}
        """int16; empty until the first phase has taken its weights."""

        self.phases: dict[str, int] = {}
        """Domain -> the last phase that has taken weights for it."""

    def attach(self, model: ModelSide, num_phases: int) -> None:
        self.linears = {f"{name}.weight": layer for name, layer in model.linears().items()}

    def phase_start(self, context: MethodContext) -> None:
        self._hold(context)

    def resumed(self, context: MethodContext) -> None:
        self._hold(context)

    def stage_start(self, context: MethodContext) -> None:
        if context.progress.stage == RETRAIN:
            self._take(context)
            self._hold(context)

    def began_anew(self, context: MethodContext) -> None:
        # It would train what earlier phases own, or what this one has pruned.
        if context.progress.phase or context.progress.stage == RETRAIN:
            raise UserError(
                "methods.packnet: which weights belong to which phase is not known, so this run "
                "cannot go on. Resume it without --weights_only, or begin another."
            )

    def scoring(self, context: MethodContext, domain: str) -> AbstractContextManager[None]:
        phase = self.phases.get(domain)
        return nullcontext() if phase is None else context.hidden(self._unused(context, phase))

    @property
    def _taken(self) -> int:
        """The last phase that has taken its weights; -1 = none."""
        return max(self.phases.values(), default=-1)

    @torch.no_grad()
    def _take(self, context: MethodContext) -> None:
        """Prune what is free in every linear, and give what stays to this phase. Collective."""
        phase = context.progress.phase
        for name, shape in context.shapes().items():
            owner = context.whole(name, self.owner)
            free = (owner == 0) & self._live(name, shape).to(owner.device)
            if name in self.linears:
                weight = context.whole(name)
                cut = free & (weight.abs() <= self._threshold(context, name))
                context.write(name, weight.masked_fill(cut, 0.0))
                free &= ~cut
            owner[free] = phase + 1
            item = context.slices.find(name)
            if item is not None:
                self.owner[name] = item.part(owner).to(torch.int16)
        self.phases[context.domain] = phase

    def _threshold(self, context: MethodContext, name: str) -> float:
        """Largest magnitude that goes, over the global matrix; below 0 if none does. Collective."""
        matrix, owner = context.matrix(name), context.matrix(name, self.owner)
        free, topology = owner == 0, self.linears[name].topology
        if topology is not None:
            free &= torch.from_numpy(topology.mask()).to(free.device)
        found = matrix[free].abs()
        num = round(self.config.share(context.progress.phase) * found.numel())
        return float(found.kthvalue(num).values) if num else -1.0

    def _hold(self, context: MethodContext) -> None:
        """Hold what belongs to others, and what the phase has pruned. Collective."""
        phase = context.progress.phase
        for name, shape in context.shapes().items():
            owner = context.whole(name, self.owner)
            moves = owner == (phase + 1 if self._taken == phase else 0)
            held = ~moves & self._live(name, shape).to(owner.device)
            context.hold(name, held, owner=self.name)

    def _unused(self, context: MethodContext, phase: int) -> Iterator[tuple[str, torch.Tensor]]:
        """What belongs to no phase or to one after `phase`, linear by linear. Collective."""
        for name in self.linears:
            owner = context.whole(name, self.owner)
            yield name, (owner == 0) | (owner > phase + 1)

    def _live(self, name: str, shape: torch.Size) -> torch.Tensor:
        """bool of the tp-local parameter's shape."""
        layer = self.linears.get(name)
        if layer is None or layer.topology is None or layer.packed:
            return torch.ones(shape, dtype=torch.bool)
        return layer.live_mask()

    def state_dict(self) -> tuple[Mapping[str, SliceTensors], Mapping[str, Any]]:
        values = {"phases": dict(self.phases)}
        if not self.owner:
            return {}, values
        return {"owner": {name: part.float() for name, part in self.owner.items()}}, values

    def check_state(self, tensors: Collection[str], values: Mapping[str, Any]) -> None:
        super().check_state(tensors, values)
        phases = values["phases"]
        for domain, phase in phases.items():
            if type(phase) is not int or not 0 <= phase < 2**15 - 1:
                raise ValueError(f"phases: {domain!r:.40} has {phase!r:.40}, which is no phase")
        if set(tensors) != ({"owner"} if phases else set()):
            raise ValueError(f"phases: {len(phases)}, with {len(tensors)} owners of weights")

    def load_state_dict(
        self, tensors: Mapping[str, SliceTensors], values: Mapping[str, Any]
    ) -> None:
        owner = tensors.get("owner", {})
        self.owner = {name: part.to(torch.int16) for name, part in owner.items()}
        self.phases = dict(values["phases"])
