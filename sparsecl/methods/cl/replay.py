"""Experience replay: a few earlier sequences are trained beside the new ones in every batch.

Source: Chaudhry et al. 2019 (arXiv 1902.10486), with reservoir sampling (Vitter 1985): after t
sequences each of them is in the memory with probability capacity / t. Loss: the mean over new and
replayed sequences together; the step's new sequences enter the memory after the step. The memory
knows no phases, so a part of what is replayed is from the present one.

Differs: the papers keep the examples themselves, often one memory per process. Here the memory is
ONE list of names, the same on all ranks: a sequence is (phase, number in the phase), and its tokens
are read from the data again when it is replayed. So no text is stored twice, a batch does not
depend on the parallel layout, and a resume needs only the names and how many were seen.
"""

from sparsecl.methods.cl.again import new_rows, read, step_names
from sparsecl.methods.cl.config import ReplayConfig
from sparsecl.methods.cl.reservoir import Rehearsal
from sparsecl.methods.context import Batch, MethodContext


class Replay(Rehearsal):
    """Appends replayed sequences to every micro-batch. All ranks keep the same reservoir."""

    name = "replay"
    config: ReplayConfig

    def batch(self, context: MethodContext, batch: Batch) -> Batch:
        """Append this rank's part of the step's draw, share * S names whatever the layout; nothing
        while the memory is empty."""
        if not len(self.reservoir.names):
            return batch
        num = self.config.num_replayed(len(new_rows(context, batch)[0]))
        known = self.reservoir.names
        names = known[self.draw(context, known, num, "draw")]
        return batch.joined(read(context, names), names)

    def after_step(self, context: MethodContext, *, applied: bool) -> None:
        """Show the sequences of the step that has just been taken to the reservoir."""
        if not applied:
            return
        self.count_drawn()
        progress = context.progress
        names = step_names(context, progress.data_step - 1)
        self.reservoir.insert(names, context.generator("replay", "insert", progress.step))
