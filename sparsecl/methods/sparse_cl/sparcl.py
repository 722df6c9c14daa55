"""SparCL: weights, sequences and gradients that matter little are left out.

Source: Wang et al. 2022 (NeurIPS, https://arxiv.org/abs/2209.09476) and its public code
(neu-spiral/SparCL). There it is trained beside DER++ or replay, which here are blocks of their own.

TDM, task-aware dynamic masking. A weight's importance is |w| + `gradient` |g|, g being the gradient
of the step, replayed sequences included. At the start of a phase each layer of N weights grows by
the share `band` of its cells; then every `every` steps the least important go, down to N less as
many, and random cells grow up to N; after the share `settle` of the phase it is pruned to N and
stays.

DGM, dynamic gradient masking. Of each layer's gradient the largest |g| are kept, the share `keep`
of its live weights, or of all its cells, absent ones too, as the code counts (`denominator`); with
those it does nothing where `keep` is at least the density. Which ones is chosen every `refresh`
steps and used in between. Under momentum or weight decay the others still move.

DDR, dynamic data removal, in a loss-based form. The paper counts how often an example goes from
right to wrong; a sequence has no such thing, so an event is a loss above that of the visit before.
At `portions` equal times in the first `remove_until` of a phase as many sequences, together the
share `remove`, are removed for the rest of it: those with fewest events, of these those of lowest
loss, of what has been visited twice; then counts begin again. A removed sequence has no weight in
the loss, and the others of its step make up for it; its forward and backward pass is made all the
same, so nothing of the paper's saving in FLOPs is seen. A phase that reads its text once removes
nothing.

Differs: counts are exact, where the code has percentiles with ties. Steps in place of epochs and
batches. The head is not masked to a domain's tokens. At band 0, keep 1 and remove 0 it is plain
training, bit for bit.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsecl import dist
from sparsecl.methods.base import Order
from sparsecl.methods.cl.again import new_rows, no_way_on, step_names
from sparsecl.methods.context import Batch, MethodContext, Outputs, SliceTensors
from sparsecl.methods.dst.base import LayerView, Rewirer, check_counts, look
from sparsecl.methods.sparse_cl.config import SparclConfig
from sparsecl.methods.sparse_cl.visits import Visits


class Sparcl(Rewirer):
    """Three parts that know nothing of each other."""

    name = "sparcl"
    order = Order.GATE
    config: SparclConfig

    def __init__(self, config: SparclConfig) -> None:
        super().__init__(config)
        self.start: dict[str, int] = {}
        """TDM: live weights of each matrix at the start."""

        self.open: SliceTensors = {}
        """DGM: 1 where a gradient is kept, fp32 [numel]; a rank without slices has none."""

        self.chosen = False
        """DGM: it is known what is kept, on all ranks."""

        self.visits = Visits()
        """DDR: of the sequences of this phase."""

        # Of the step at hand.
        self._sizes: dict[str, Tensor] = {}
        self._chunks: NDArray[np.int64] = np.empty(0, np.int64)
        self._losses: list[tuple[NDArray[np.int64], Tensor]] = []

    @torch.no_grad()
    def phase_start(self, context: MethodContext) -> None:
        super().phase_start(context)
        self.visits = Visits()
        if not self.config.band:
            return
        for name in context.sparse:
            choice = look(context, name).cpu()
            num = self.start.setdefault(name, len(choice.values))
            self._fill(context, choice, choice.live.clone(), num + self._band(choice))

    def began_anew(self, context: MethodContext) -> None:
        if self.config.band and context.progress.step:
            raise no_way_on(self.name, "the number of weights that the run began with")

    # DDR

    def step_start(self, context: MethodContext) -> None:
        if self.config.remove:
            names = step_names(context, context.progress.data_step)
            self._chunks = context.chunks(context.progress.phase, names[:, 1])
            self._losses = []

    def batch(self, context: MethodContext, batch: Batch) -> Batch:
        if not self.config.remove:
            return batch
        kept = ~self.visits.removed(self._chunks)
        if kept.all():
            return batch
        rows, places = new_rows(context, batch)
        weight = batch.weight.copy()
        weight[rows] *= kept[places] * np.float32(len(kept) / max(int(kept.sum()), 1))
        return replace(batch, weight=weight)

    def loss(self, context: MethodContext, batch: Batch, outputs: Outputs) -> Tensor | None:
        if self.config.remove:
            rows, places = new_rows(context, batch)
            losses = outputs.losses.detach().mean(dim=1)
            self._losses.append((places, losses[torch.from_numpy(rows).to(losses.device)]))
        return None

    def _visit(self, context: MethodContext) -> None:
        """Count the step's sequences, and remove some where it is time. Collective over dp."""
        total = torch.zeros(len(self._chunks), device=dist.device())
        for places, losses in self._losses:
            total[torch.from_numpy(places).to(total.device)] = losses.float()
        # One rank has the row, the others zeros: the sum is exact.
        dist.all_reduce(total, group=dist.dp_group())
        self.visits.count(self._chunks, total.cpu().numpy())
        if self.config.removes(context.progress):
            self.visits.remove(self.config.remove / self.config.portions)

    # DGM

    def after_backward(self, context: MethodContext) -> None:
        names = context.sparse
        sizes: SliceTensors = {}
        for item in context.slices:
            gradient = context.gradient(item) if item.name in names else None
            if gradient is not None:
                sizes[item.name] = gradient.abs()
        due, refresh = self._prunes(context), self._refreshes(context)
        for name in names if due or refresh else ():
            size = context.matrix(name, sizes).cpu()
            if due:
                self._sizes[name] = size
            if refresh:
                self._choose(context, name, size)
        self.chosen |= refresh
        for item in context.slices if self.config.keep < 1.0 else ():
            gradient = context.gradient(item) if item.name in self.open else None
            if gradient is not None:
                closed = self.open[item.name].to(gradient.device) == 0.0
                context.set_gradient(item, gradient.masked_fill_(closed, 0.0))

    def _refreshes(self, context: MethodContext) -> bool:
        step = context.progress.phase_step
        return self.config.keep < 1.0 and (not self.chosen or step % self.config.refresh == 0)

    def _choose(self, context: MethodContext, name: str, size: Tensor) -> None:
        live = torch.from_numpy(context.sparse[name].topology.mask())
        num = self.config.num_kept(int(live.sum()), live.numel())
        order = size.masked_fill(~live, -1.0).view(-1).sort(stable=True, descending=True).indices
        found = torch.zeros(live.numel())
        found[order[:num]] = 1.0
        part = context.slice_of(name, found.view(live.shape))
        item = context.slices.find(name)
        if part is not None and item is not None:
            self.open[name] = part.to(item.master.device).clone()

    # TDM

    def _prunes(self, context: MethodContext) -> bool:
        """Before a step: it will prune and grow once it is applied."""
        return bool(self.config.band) and self.is_due_before(context)

    def after_step(self, context: MethodContext, *, applied: bool) -> None:
        if applied and self.config.remove:
            self._visit(context)
        if applied and self._sizes:
            for name in context.sparse:
                self._prune(context, look(context, name).cpu())
        self._sizes = {}

    def _prune(self, context: MethodContext, choice: LayerView) -> None:
        num, band = self.start[choice.name], self._band(choice)
        left = num if self.config.settles(context.progress) else max(1, num - band)
        size = choice.values.abs()
        size += self.config.gradient * self._sizes[choice.name].view(-1)[choice.places]
        mask = choice.live.clone()
        gone = max(0, len(choice.values) - left)
        mask[choice.places[size.argsort(stable=True)[:gone]]] = False
        self._fill(context, choice, mask, num)

    def _fill(self, context: MethodContext, choice: LayerView, mask: Tensor, num: int) -> None:
        """Grow random cells that were absent until `num` live, as far as there are."""
        absent = choice.absent
        rng = context.generator(self.name, choice.name, context.progress.step)
        num = min(max(0, num - int(mask.sum())), len(absent))
        mask[absent[torch.from_numpy(rng.choice(len(absent), size=num, replace=False))]] = True
        if not torch.equal(mask, choice.live):
            self.set_live(context, choice.name, mask.view(choice.shape))

    def _band(self, choice: LayerView) -> int:
        return round(self.config.band * len(choice.live))

    # State

    def slice_tensors(self) -> Iterable[SliceTensors]:
        return (*super().slice_tensors(), self.open)

    def state_dict(self) -> tuple[Mapping[str, SliceTensors], Mapping[str, Any]]:
        tensors, values = super().state_dict()
        own = {"open": self.open} if self.open else {}
        return {**tensors, **own}, {**values, "start": dict(self.start), "chosen": self.chosen}

    def check_state(self, tensors: Collection[str], values: Mapping[str, Any]) -> None:
        super().check_state(sorted(set(tensors) - {"open"}), values)
        check_counts(values["start"])

    def load_state_dict(
        self, tensors: Mapping[str, SliceTensors], values: Mapping[str, Any]
    ) -> None:
        super().load_state_dict(tensors, values)
        self.open, self.chosen = dict(tensors.get("open", {})), values["chosen"]
        self.start = dict(values["start"])

    def arrays(self) -> Mapping[str, Tensor]:
        return self.visits.arrays()

    def check_arrays(self, arrays: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        Visits.check(arrays)

    def load_arrays(self, arrays: Mapping[str, Tensor]) -> None:
        self.visits = Visits.of(arrays)
