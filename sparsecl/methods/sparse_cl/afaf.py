"""AFAF: a domain adds links between few hidden units, re-uses units of earlier domains, and leaves
its most important units fixed.

Source: Sokar, Mocanu & Pechenizkiy 2022 (ECML-PKDD, https://arxiv.org/abs/2110.05329) and its
public code (GhadaSokar/AFAF). A phase allocates units: the share `reuse` of them from fixed ones
that matter to the new domain, the others from free ones. New links run between allocated units, and
never into a fixed one; links of earlier domains are read and stay as they are. While a phase
trains, a link's score is the sum of |dw g| over its steps. Every `every` steps the share
`drop_fraction` of the new links of a layer, those of lowest score, goes; as many come where the
product of the importance of both their ends is largest, a unit's importance being the sum of the
scores of its outgoing links. When the phase ends its links are frozen, and the share `fix` of its
units that are most important is fixed.

Own reading for a GPT. Units are the hidden units of the feed-forward parts. Features of the stream
between blocks are ends of links too: their importance is the sum over all parts that read them;
they are neither allocated nor fixed, since every block writes to all of them. So up (and gate) gets
rows of free units, down gets columns of allocated ones. Attention, embedding, output layer and
norms are trained in the first phase and re-used in full afterwards, as are the feed-forward parts
below `first_block`. The first phase trains the graph of `topology` and may use all units; a later
one adds as many links to each matrix, times `links`. Which fixed units matter to a new domain is
read from the first `sequences` of its text, the sum of |w g| over a unit's outgoing links, where
the code asks for the classes that are most alike. The public code has no momentum; ours is the
optimizer's.

At drop_fraction 0 the first phase is plain training, bit for bit.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsecl.errors import UserError
from sparsecl.methods.context import MethodContext, SliceTensors
from sparsecl.methods.dst.base import LayerView
from sparsecl.methods.model_side import ModelSide
from sparsecl.methods.sparse_cl.config import AfafConfig
from sparsecl.methods.sparse_cl.isolated import Isolated, packed, unpacked


class Afaf(Isolated):
    """Units by group, bool [n], on the CPU and the same on all ranks."""

    name = "afaf"
    config: AfafConfig

    def __init__(self, config: AfafConfig) -> None:
        super().__init__(config)
        self.fixed: dict[str, Tensor] = {}
        """Units that nothing new may lead to."""

        self.allocated: dict[str, Tensor] = {}
        """Of this phase."""

        self.scores: SliceTensors = {}
        """Of links, fp32 [numel], since the phase began."""

        # From the gradients of a step to its end: g, and the weights before it.
        self._gradient: SliceTensors = {}
        self._before: SliceTensors = {}
        # While the graph moves: scores as matrices [O, I], and of the ends of their links.
        self._matrices: dict[str, Tensor] = {}
        self._units: dict[str, Tensor] = {}
        self._stream = torch.empty(0)
        self._counts: dict[str, int] = {}  # units of each group, as a checkpoint has them

    def attach(self, model: ModelSide, num_phases: int) -> None:
        model.units()

    def began_anew(self, context: MethodContext) -> None:
        super().began_anew(context)
        self.begin(context)  # the rest of the first phase is all that it will see

    def _parts(self, context: MethodContext) -> Iterator[tuple[str, str, bool]]:
        """(parameter, group, whether its rows are the units) of what is on a topology and may get
        new links in this phase."""
        sparse = context.sparse
        for block, (group, units) in enumerate(context.units.items()):
            if self.graphs and block < self.config.first_block:
                continue
            for names, reads in ((units.incoming, True), (units.outgoing, False)):
                yield from ((name, group, reads) for name in names if name in sparse)

    def moving(self, context: MethodContext) -> Iterable[str]:
        return [name for name, *_ in self._parts(context)]

    def begin(self, context: MethodContext) -> Mapping[str, Tensor]:
        self.scores = {}
        for name in self.moving(context):
            item = context.slices.find(name)
            if item is not None:
                self.scores[name] = torch.zeros_like(item.master)
        if not self.graphs:
            for group, units in context.units.items():
                self.fixed[group] = torch.zeros(units.num_units, dtype=torch.bool)
                self.allocated[group] = torch.ones(units.num_units, dtype=torch.bool)
            return {}
        chosen = self._allocate(context)
        found = {}
        for name, group, reads in self._parts(context):
            frozen = self.frozen(context, name)
            open_cells = self._open(chosen[group], self.fixed[group], frozen, reads)
            places = open_cells.view(-1).nonzero().view(-1)
            first = int(unpacked(self.graphs[0][name], frozen.shape).sum())
            num = max(1, round(self.config.links * first))
            if num > len(places):
                raise UserError(
                    f"methods.afaf: phase {context.progress.phase} ({context.domain}) adds {num} "
                    f"links to {name}, and {len(places)} cells are left between its units. Raise "
                    "allocate, or lower links or topology.density."
                )
            rng = context.generator(self.name, "links", context.progress.phase, name)
            mask = frozen.clone()
            drawn = rng.choice(len(places), size=num, replace=False)
            mask.view(-1)[places[torch.from_numpy(drawn)]] = True
            found[name] = mask
        self.allocated = chosen
        return found

    def _allocate(self, context: MethodContext) -> dict[str, Tensor]:
        """Units of a later phase. Collective over the world."""
        phase, found = context.progress.phase, dict(self.allocated)
        reuses = phase >= self.config.reuse_from and self.config.reuse > 0.0
        matter = self._matter(context) if reuses else {}
        for group in dict.fromkeys(group for _, group, _ in self._parts(context)):
            fixed = self.fixed[group]
            some, free = fixed.nonzero().view(-1), (~fixed).nonzero().view(-1)
            num_again, num_new = self.config.num_units(phase, len(fixed), len(some))
            importance = matter.get(group, torch.zeros(len(fixed)))[some]
            again = some[importance.argsort(stable=True, descending=True)[:num_again]]
            rng = context.generator(self.name, "units", phase, group)
            drawn = free[torch.from_numpy(rng.choice(len(free), size=num_new, replace=False))]
            found[group] = torch.zeros_like(fixed)
            found[group][torch.cat([again, drawn])] = True
        return found

    def _matter(self, context: MethodContext) -> dict[str, Tensor]:
        """How much the loss on the new domain depends on each unit, fp32 [n]. Collective."""
        progress = context.progress
        num = min(self.config.sequences, progress.phase_steps * context.batch_sequences)
        gradient = context.mean_gradients(context.rows(progress.phase, np.arange(num)))
        sizes = {
            item.name: (item.master * gradient[item.name].to(item.master.device)).abs()
            for item in context.slices
            if item.name in self.scores
        }
        found: dict[str, Tensor] = {}
        for name, group, reads in self._parts(context):
            if not reads:
                found[group] = context.matrix(name, sizes).cpu().sum(0)
        return found

    def _open(self, units: Tensor, fixed: Tensor, frozen: Tensor, reads: bool) -> Tensor:
        """bool [O, I]: where a matrix may get new links."""
        if reads:
            return (units & ~fixed)[:, None] & ~frozen
        return units[None, :] & ~frozen

    def after_backward(self, context: MethodContext) -> None:
        self._gradient, self._before = {}, {}
        for item in context.slices:
            gradient = context.gradient(item) if item.name in self.scores else None
            if gradient is not None:
                self._gradient[item.name] = gradient.to(item.master.device)
                self._before[item.name] = item.master.clone()

    def after_step(self, context: MethodContext, *, applied: bool) -> None:
        for item in context.slices if applied else ():
            if item.name in self._gradient:
                moved = self._before[item.name].sub_(item.master)
                self.scores[item.name] += moved.mul_(self._gradient[item.name]).abs_()
        self._gradient, self._before = {}, {}
        if applied and self.is_due_after(context):
            self._weigh(context)
            super().after_step(context, applied=applied)
        self._matrices, self._units = {}, {}

    def _weigh(self, context: MethodContext) -> None:
        """Take the scores of links, and the importance of units and features. Collective."""
        self._matrices = {n: context.matrix(n, self.scores).cpu() for n in self.moving(context)}
        parts = list(self._parts(context))
        self._units = {g: self._matrices[n].sum(0) for n, g, reads in parts if not reads}
        readers = [self._matrices[name].sum(0) for name, _, reads in parts if reads]
        self._stream = torch.stack(readers).sum(0) if readers else torch.empty(0)

    def drop(self, context: MethodContext, choice: LayerView) -> Tensor:
        own = choice.places[~self.frozen(context, choice.name).view(-1)[choice.places]]
        num = int(self.fraction(context.progress) * len(own))
        score = self._matrices[choice.name].view(-1)[own]
        return own[score.argsort(stable=True)[:num]]

    def grow(self, context: MethodContext, choice: LayerView, num: int) -> Tensor:
        group, reads = next((g, r) for n, g, r in self._parts(context) if n == choice.name)
        frozen = self.frozen(context, choice.name)
        allowed = self._open(self.allocated[group], self.fixed[group], frozen, reads).view(-1)
        allowed &= ~choice.live
        units = self._units.get(group, torch.ones(len(self.fixed[group])))
        stream = self._stream if len(self._stream) else torch.ones(choice.shape[0])
        product = torch.outer(units, stream) if reads else torch.outer(stream, units)
        score = product.view(-1).masked_fill(~allowed, -1.0)
        order = score.sort(stable=True, descending=True).indices
        return order[: min(num, int(allowed.sum()))]

    def phase_end(self, context: MethodContext) -> None:
        """Fix the units that matter most. Collective over the world."""
        self._weigh(context)
        for group, importance in self._units.items():
            able = (self.allocated[group] & ~self.fixed[group]).nonzero().view(-1)
            order = importance[able].argsort(stable=True, descending=True)
            self.fixed[group][able[order[: round(self.config.fix * len(able))]]] = True
        self._matrices, self._units = {}, {}
        super().phase_end(context)

    def slice_tensors(self) -> Iterable[SliceTensors]:
        return (*super().slice_tensors(), self.scores)

    def state_dict(self) -> tuple[Mapping[str, SliceTensors], Mapping[str, Any]]:
        tensors, values = super().state_dict()
        num = {group: len(units) for group, units in self.fixed.items()}
        own = {"scores": self.scores} if self.scores else {}
        return {**tensors, **own}, {**values, "units": num}

    def check_state(self, tensors: Collection[str], values: Mapping[str, Any]) -> None:
        super().check_state(sorted(set(tensors) - {"scores"}), values)
        for group, num in values["units"].items():
            if type(num) is not int or not 0 < num < 2**31:
                raise ValueError(f"units.{group}: {num!r:.40} is no number of units")

    def load_state_dict(
        self, tensors: Mapping[str, SliceTensors], values: Mapping[str, Any]
    ) -> None:
        super().load_state_dict(tensors, values)
        self.scores = dict(tensors.get("scores", {}))
        self._counts = dict(values["units"])

    def arrays(self) -> Mapping[str, Tensor]:
        found = dict(super().arrays())
        for kind, kept in self._own().items():
            found |= {f"{kind}.{group}": packed(units) for group, units in kept.items()}
        return found

    def _own(self) -> dict[str, dict[str, Tensor]]:
        return {"fixed": self.fixed, "allocated": self.allocated}

    def check_arrays(self, arrays: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        if values["phases"] and not values["units"]:
            raise ValueError("units: none, after a phase that has ended")
        wanted = {
            f"{k}.{group}": num for k in self._own() for group, num in values["units"].items()
        }
        for key, num in wanted.items():
            if key not in arrays:
                raise ValueError(f"{key} is missing")
            bits = arrays[key]
            if bits.dtype != torch.uint8 or bits.shape != (-(-num // 8),):
                raise ValueError(f"{key}: {bits.dtype} {list(bits.shape)} are no {num} units")
        super().check_arrays({k: v for k, v in arrays.items() if k not in wanted}, values)

    def load_arrays(self, arrays: Mapping[str, Tensor]) -> None:
        super().load_arrays(arrays)
        for kind, kept in self._own().items():
            kept.clear()
            for group, num in self._counts.items():
                kept[group] = unpacked(arrays[f"{kind}.{group}"], torch.Size([num]))
