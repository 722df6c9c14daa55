"""HST, a transformer that wakes and sleeps: what of it no other method has.

HST (Hippocampal Sparse Transformer) is a design of four parts that has not been published; this is
our own reading of it. Each part is a switch of its own, and each subset is a run config:

    sparse connection   topology: {kind: er_fixed, density: 0.1}, or any other
    rewiring            methods: {set: {every: 100}}, or any other of dst/
    wake and sleep      methods: {hst: {sleep: 0.2}}
    down-scaling        methods: {hst: {down_scaling: 0.05}}

Awake the model is trained as always, and the names of what it reads go to a reservoir, as in
replay. Asleep it reads nothing new: every row of a step is drawn from all that is remembered, the
present domain included. The new sequences of such a step are passed over, so a run with sleep has
trained less new text in as many steps, at the same cost. At the end of a cycle weights are scaled
down, with or without sleep; a graph that moves every `every` steps moves right after that.

With sleep and down_scaling 0 it is plain training, bit for bit.
"""

from collections.abc import Collection

from sparsecl.methods.brain.config import HstConfig
from sparsecl.methods.brain.down_scaling import DownScaling
from sparsecl.methods.cl.again import new_rows, read, step_names
from sparsecl.methods.cl.reservoir import Rehearsal
from sparsecl.methods.context import Batch, MethodContext
from sparsecl.methods.model_side import ModelSide
from sparsecl.optim.slice import Slice


class Hst(Rehearsal):
    """All ranks keep the same reservoir; there is nothing in it without sleep."""

    name = "hst"
    config: HstConfig

    def __init__(self, config: HstConfig) -> None:
        super().__init__(config)
        self.scaling = DownScaling(config.down_scaling, config.protected)
        self._asleep = False  # the step at hand

    def attach(self, model: ModelSide, num_phases: int) -> None:
        self.scaling.attach(model)

    def step_start(self, context: MethodContext) -> None:
        super().step_start(context)
        progress = context.progress
        # Whoever has read nothing yet, for all its steps were discarded, has nothing to dream of.
        self._asleep = self.config.is_asleep(progress) and len(self.reservoir.names) > 0
        self.scaling.step_start(context, due=self.config.ends(progress))

    def batch(self, context: MethodContext, batch: Batch) -> Batch:
        """Asleep: this rank's part of the step's draw in the place of what is new."""
        if not self._asleep:
            return batch
        rows, _ = new_rows(context, batch)
        known = self.reservoir.names
        names = known[self.draw(context, known, len(rows), "sleep")]
        return batch.replaced(rows, read(context, names), names)

    def after_update(self, context: MethodContext, items: Collection[Slice]) -> None:
        self.scaling.after_update(context, items)

    def after_step(self, context: MethodContext, *, applied: bool) -> None:
        """Remember what was read awake."""
        if not applied or not self.config.num_asleep:
            return
        if self._asleep:
            self.count_drawn()
            return
        progress = context.progress
        names = step_names(context, progress.data_step - 1)
        self.reservoir.insert(names, context.generator(self.name, "insert", progress.step))
