"""Sparse memory finetuning: later phases train a few slots of a memory, chosen at each step.

Source: Lin et al. 2025, "Continual learning via sparse memory finetuning",
https://arxiv.org/abs/2510.15103; no official code of the finetuning was found. The layer is that of
sparse/product_keys.py. It is there from the start: the first phase trains the whole model, memory
included. Later phases hold everything but the pool of values. At each step c_i counts how often the
step reads slot i, over all layers, heads and sequences; the `top` slots that it reads with the
largest score are trained, and every other value keeps its bits, moments and decay included:

    tfidf  c_i / sum_j c_j * log((B + 1) / (df_i + 1)), df_i of the B background batches read i
    kl     p_i log(p_i / q_i), p_i the share of i in the step's reads, q_i in the background's
           (arXiv 2604.05248)

Both rules are as third parties implement them; the papers' own text was not read. Own reading: the
background is `background` batches of every phase that has ended, read once more at its end; a slot
that it never reads counts half a time in q; of equal scores the lower slot comes first.

Differs: no pre-trained base, and the values' rate is the optimizer's (1e-3 in the layer's code).
`sgd` steps the chosen values by plain gradient descent in later phases, which is preferred to AdamW
in re-implementations; by default the run's optimizer does. Its moments of a slot are zero from the
step on that does not choose it, so under Adam a slot that comes back begins anew.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsecl.methods.adapters.config import MemoryConfig
from sparsecl.methods.base import Method, Order
from sparsecl.methods.cl.again import no_way_on
from sparsecl.methods.context import MethodContext, SliceTensors
from sparsecl.methods.model_side import ModelSide
from sparsecl.optim.moving import share
from sparsecl.optim.slice import Slice
from sparsecl.sparse.product_keys import ProductKeyMemory, ValuePool

# Values are drawn so many slots at a time.
DRAWN = 1 << 14


class Memory(Method):
    """Holds everything but the chosen slots, from the second phase on."""

    name = "memory"
    # Before other methods look at the gradient, or make passes of their own: those do not count.
    order = Order.OBSERVE
    config: MemoryConfig

    def __init__(self, config: MemoryConfig) -> None:
        super().__init__(config)
        self.values = ""
        """The pool's parameter."""

        self.batches = 0
        """Of the background, up to now."""

        slots = config.num_slots
        self.tables = {key: torch.zeros(slots, dtype=torch.int64) for key in TABLES}
        self._pool: ValuePool | None = None
        # Of the step at hand.
        self._read: Tensor | None = None
        self._chosen: Tensor | None = None
        self._before: Tensor | None = None

    @property
    def pool(self) -> ValuePool:
        assert self._pool is not None, "attach comes first"
        return self._pool

    def attach(self, model: ModelSide, num_phases: int) -> None:
        config, parts = self.config, model.feed_forwards()
        chosen = [list(parts)[block] for block in config.chosen(len(parts))]
        width = parts[chosen[0]]
        self._pool = ValuePool(config.num_slots, width)
        self.values = f"{chosen[0]}.parts.{self.name}.pool.weight"
        rng = model.generator(self.name, "values")
        with torch.no_grad():
            for rows in self._pool.weight.split(DRAWN):
                drawn = rng.standard_normal((len(rows), width), dtype=np.float32)
                rows.copy_(share(torch.from_numpy(drawn / math.sqrt(width)), 1))
        for at in chosen:
            part = ProductKeyMemory(
                width,
                self._pool,
                heads=config.heads,
                keys=config.keys,
                key_width=config.key_width,
                reads=config.reads,
            )
            if config.gate:
                part.add_gate()
            for name, parameter in part.named_parameters(recurse=False):
                dim = int(getattr(parameter, "partition_dim"))  # noqa: B009
                shape = list(parameter.shape)
                # Keys as in the public code; all else as torch draws a linear of W inputs.
                bound = (config.key_width if name == "keys" else width) ** -0.5
                if dim >= 0:
                    shape[dim] = width
                drawn = model.generator(self.name, at, name).uniform(-bound, bound, shape)
                part.fill({name: share(torch.from_numpy(drawn), dim)})
            model.add(at, self.name, part)

    # Phases

    def phase_start(self, context: MethodContext) -> None:
        tables = self.tables
        tables["before"] |= tables["updated"]
        tables["used"].zero_()
        tables["updated"].zero_()
        self.resumed(context)

    def began_anew(self, context: MethodContext) -> None:
        if context.progress.phase:
            raise no_way_on(self.name, "which slots the earlier phases read")

    def resumed(self, context: MethodContext) -> None:
        """Hold everything but the pool; its slots are held at each step."""
        if self._is_later(context):
            for name, shape in context.shapes().items():
                if name != self.values:
                    context.hold(name, torch.ones(shape, dtype=torch.bool), owner=self.name)

    def phase_end(self, context: MethodContext) -> None:
        """Count what the phase's text reads of the pool now. Collective over the world."""
        size = context.batch_sequences
        for batch in range(self.config.background):
            numbers = np.arange(batch * size, (batch + 1) * size)
            self.pool.arm()
            context.pass_forward(context.rows(context.progress.phase, numbers))
            self.pool.disarm()
            self.see(self.pool.num_reads())

    def see(self, counts: Tensor) -> None:
        """Take a batch into the background: reads of each slot, int64 [slots]."""
        self.batches += 1
        self.tables["batches_with"] += counts > 0
        self.tables["reads"] += counts

    def figures(self, context: MethodContext) -> Mapping[str, float]:
        """Of the phase that ends, in slots.

        Returns:
            used: slots that its training has read; and from the second phase on updated: those that
            it has trained. From the third on overlap: the share of these that an earlier domain had
            trained too.
        """
        tables = self.tables
        found = {"used": float(tables["used"].sum())}
        if self._is_later(context):
            num = found["updated"] = float(tables["updated"].sum())
            if context.progress.phase > 1:
                both = float((tables["updated"] & tables["before"]).sum())
                found["overlap"] = both / num if num else 0.0
        return found

    # Steps

    def step_start(self, context: MethodContext) -> None:
        self._read = self._chosen = self._before = None
        self.pool.arm()
        if self._is_later(context):  # all slots show their gradient, until some are chosen
            context.hold(self.values, None, owner=self.name)

    def after_backward(self, context: MethodContext) -> None:
        """Choose the slots of the step, and hold the others. Collective over the world."""
        self.pool.disarm()
        self._read = self.pool.num_reads()
        if not self._is_later(context):
            return
        self._chosen = self.choose(self._read)
        shape = context.shapes()[self.values]
        # Where the counts are: it is as large as the pool.
        held = ~self._chosen[:, None].to(self.pool.counts.device).expand(shape)
        context.hold(self.values, held, owner=self.name)
        item = context.slices.find(self.values)
        gradient = None if item is None else context.gradient(item)
        if item is not None and gradient is not None:
            closed = item.part(held).to(gradient.device)
            context.set_gradient(item, gradient.masked_fill_(closed, 0.0))
            self._before = None if self.config.sgd is None else item.master.clone()

    def choose(self, counts: Tensor) -> Tensor:
        """Slots to train, bool [slots], from the reads of each in a step. Local."""
        if self.config.rule == "kl":
            scores = kl_scores(counts, self.tables["reads"])
        else:
            scores = tfidf_scores(counts, self.tables["batches_with"], self.batches)
        return best_read(scores, counts, self.config.top)

    def after_update(self, context: MethodContext, items: Collection[Slice]) -> None:
        """In the place of the optimizer's step a plain one, with the gradient as it was clipped."""
        for item in items:
            stepped = item.stepped.grad
            if item.name == self.values and self._before is not None and stepped is not None:
                gradient = item.cut(stepped)
                item.master.copy_(self._before.add(gradient, alpha=-(self.config.sgd or 0.0)))
                for moment in context.slices.moments(item).values():
                    moment.zero_()

    def after_step(self, context: MethodContext, *, applied: bool) -> None:
        self.pool.disarm()
        if applied and self._read is not None:
            self.tables["used"] |= self._read > 0
            if self._chosen is not None:
                self.tables["updated"] |= self._chosen
        self._read = self._chosen = self._before = None

    def _is_later(self, context: MethodContext) -> bool:
        return context.progress.phase > 0

    # State

    def state_dict(self) -> tuple[Mapping[str, SliceTensors], Mapping[str, Any]]:
        return {}, {"batches": self.batches}

    def check_state(self, tensors: Collection[str], values: Mapping[str, Any]) -> None:
        super().check_state(tensors, values)
        if not 0 <= values["batches"] < 2**31:
            raise ValueError(f"batches: {values['batches']} is no count")

    def load_state_dict(
        self, tensors: Mapping[str, SliceTensors], values: Mapping[str, Any]
    ) -> None:
        self.batches = values["batches"]

    def arrays(self) -> Mapping[str, Tensor]:
        # Copies: a checkpoint is written while the run goes on.
        return {key: table.clone() for key, table in self.tables.items()}

    def check_arrays(self, arrays: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        for key in sorted(set(TABLES) ^ set(arrays)):
            raise ValueError(f"{key} is {'missing' if key in TABLES else 'not known'}")
        for key, value in arrays.items():
            if value.dtype != torch.int64 or list(value.shape) != [self.config.num_slots]:
                raise ValueError(f"{key}: {value.dtype} {list(value.shape)} is not of all slots")
            most = {"batches_with": values["batches"], "reads": 2**62}.get(key, 1)
            if not 0 <= int(value.min()) <= int(value.max()) <= most:
                raise ValueError(f"{key}: a count is not in 0..{most}")

    def load_arrays(self, arrays: Mapping[str, Tensor]) -> None:
        self.tables = {key: arrays[key].clone() for key in TABLES}


TABLES = ("used", "updated", "before", "batches_with", "reads")
"""One int64 for each slot: 1 if this phase has read it, or trained it, or an earlier one has
trained it; batches of the background that read it; reads of it in the background."""


def tfidf_scores(counts: Tensor, batches_with: Tensor, num_batches: int) -> Tensor:
    """How much a slot is of this step and not of the background, fp64 [slots].

    Args:
        counts: reads of each slot in the step, int64 [slots].
        batches_with: background batches that read it, int64 [slots].
        num_batches: of the background.
    """
    share = counts.double() / counts.sum().clamp(min=1)
    return share * ((num_batches + 1) / (batches_with.double() + 1)).log()


def kl_scores(counts: Tensor, background: Tensor) -> Tensor:
    """What each slot adds to KL(reads of the step || of the background), fp64 [slots]; reads of
    each slot in both, int64 [slots]."""
    p = counts.double() / counts.sum().clamp(min=1)
    q = background.double().clamp(min=0.5) / background.sum().clamp(min=1)
    return torch.where(counts > 0, p * (p / q).log(), 0.0)


def best_read(scores: Tensor, counts: Tensor, top: int) -> Tensor:
    """The `top` slots of largest score among those with a read, bool [slots]."""
    read = counts.nonzero().view(-1)
    order = scores[read].argsort(descending=True, stable=True)
    chosen = torch.zeros(len(counts), dtype=torch.bool)
    chosen[read[order[:top]]] = True
    return chosen
