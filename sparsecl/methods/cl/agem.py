"""A-GEM: a step that would raise the loss on remembered sequences is bent until it does not.

Source: Chaudhry et al. 2019 (arXiv 1812.00420), equation 11. g is the gradient of the step, r that
of a random batch of earlier domains' sequences:

    g~ = g                     if g.r >= 0
    g~ = g - (g.r)/(r.r) r     otherwise, so that g~.r = 0

Every earlier phase has the same quota of memory, as in the paper (aimagelab/mammoth keeps one
mini-batch a task). Dot products are over all moving weights of the model.

Differs: the memory is a list of names, the same on all ranks, drawn at the end of a phase from all
sequences that it has read; the paper fills it on the way. The optimizer is any: only under plain
SGD is the step itself at a right angle to r. Clipping and weight decay come after the projection.

t = references, n = sequences of one batch.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsecl.methods.base import Order
from sparsecl.methods.cl.again import Again, check_names, no_way_on, read
from sparsecl.methods.cl.config import AgemConfig
from sparsecl.methods.context import MethodContext, SliceTensors


class Agem(Again):
    """A relative says which batches give the references, and how much of each is added."""

    name = "agem"
    order = Order.PROJECT
    config: AgemConfig

    def __init__(self, config: AgemConfig) -> None:
        super().__init__(config)
        self.names: NDArray[np.int64] = np.empty((0, 2), dtype=np.int64)
        """(phase, number) of what is remembered, `sequences` of each earlier phase."""

    # What a relative may change.

    def batches(self, rng: np.random.Generator) -> Sequence[NDArray[np.int64]]:
        """Names [n, 2] of each reference's batch: here one batch, of all earlier phases."""
        return [self.some_of(self.names, rng)] if len(self.names) else []

    def weights(self, gram: NDArray[np.float64], dots: NDArray[np.float64]) -> NDArray[np.float64]:
        """How much of each reference is added to g, one of which has a dot product below zero.

        Args:
            gram: r_i . r_j, [t, t].
            dots: r_i . g, [t].
        """
        with np.errstate(invalid="ignore"):  # inf / inf is NaN, and the step is discarded
            return -dots / gram.diagonal()

    # Hooks.

    def after_backward(self, context: MethodContext) -> None:
        """Project the gradient of the step. Collective over the world."""
        rng = context.generator(self.name, "draw", context.progress.step)
        self._drawn = list(self.batches(rng))
        if not self._drawn:
            return
        own = {}
        for item in context.slices:
            gradient = context.gradient(item)
            if gradient is not None:
                own[item.name] = gradient.to(item.master.device)
        references = [_reference(context, names) for names in self._drawn]
        dots = np.array([context.dot(own, reference) for reference in references])
        if (dots >= 0.0).all():
            return
        added = self.weights(_gram(context, references), dots)
        for item in context.slices:
            if item.name in own:
                for weight, reference in zip(added.tolist(), references, strict=True):
                    own[item.name].add_(reference[item.name], alpha=weight)
                context.set_gradient(item, own[item.name])

    def after_step(self, context: MethodContext, *, applied: bool) -> None:
        if applied:
            self.count_drawn()

    def phase_end(self, context: MethodContext) -> None:
        """Remember a part of what the phase has read, each sequence equally likely."""
        progress = context.progress
        num = progress.data_step * context.batch_sequences
        rng = context.generator(self.name, "remember", progress.phase)
        numbers = np.sort(rng.choice(num, size=min(self.config.sequences, num), replace=False))
        new = np.stack([np.full_like(numbers, progress.phase), numbers], axis=1)
        self.names = np.concatenate([self.names, new])

    def began_anew(self, context: MethodContext) -> None:
        if context.progress.phase:
            raise no_way_on(self.name, "which sequences of earlier phases were trained")

    def some_of(self, names: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """`sequences_per_step` of some names without replacement; all if there are no more."""
        num = min(self.config.sequences_per_step, len(names))
        return names[np.sort(rng.choice(len(names), size=num, replace=False))]

    def state_dict(self) -> tuple[Mapping[str, SliceTensors], Mapping[str, Any]]:
        return {}, {"names": self.names.tolist(), **super().state_dict()[1]}

    def check_state(self, tensors: Collection[str], values: Mapping[str, Any]) -> None:
        super().check_state(tensors, values)
        check_names(values["names"])
        counts = Counter(phase for phase, _ in values["names"])
        most = max(counts.values(), default=0)
        if most > self.config.sequences:
            raise ValueError(f"names: {most} of one phase, room {self.config.sequences}")

    def load_state_dict(
        self, tensors: Mapping[str, SliceTensors], values: Mapping[str, Any]
    ) -> None:
        super().load_state_dict(tensors, values)
        self.names = np.array(values["names"], dtype=np.int64).reshape(-1, 2)


def _reference(context: MethodContext, names: NDArray[np.int64]) -> SliceTensors:
    """The mean gradient on some sequences, on what may move. Collective over the world."""
    found = context.mean_gradients(read(context, names))
    # A pass leaves it on the GPU, and under offload the step's own is on the CPU.
    masters = {item.name: item.master for item in context.slices}
    return context.movable({name: g.to(masters[name].device) for name, g in found.items()})


def _gram(context: MethodContext, references: Sequence[SliceTensors]) -> NDArray[np.float64]:
    """Dot products of all pairs, [t, t], the same on all ranks. Collective over the world."""
    gram = np.empty((len(references), len(references)))
    for i, left in enumerate(references):
        for j, right in enumerate(references[: i + 1]):
            gram[i, j] = gram[j, i] = context.dot(left, right)
    return gram
