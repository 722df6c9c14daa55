"""Self-generated replay: the model writes text of what it knows, and trains it beside new domains.

Sources: Robins 1995, Catastrophic forgetting, rehearsal and pseudorehearsal (Connection Science 7);
for language models LAMOL (Sun et al. 2020, arXiv 1909.03329). At the start of each phase but the
first the model of that moment writes `sequences` sequences, drawn token by token at `temperature`;
these take the place of those that an earlier phase began with. Then `share` of them per new one
are trained as in replay: the loss is the mean over new and replayed sequences together.

Differs: no text of earlier domains is stored and none is marked. LAMOL trains tokens that name a
task and writes after them, from distributions cut to the most likely tokens; here a sequence begins
after an end-of-text and is the model's own mixture of all it has learned, in which domains count as
often as the model says them (own form).

The written sequences are no phase's data: their origin is (NO_PHASE, place in the memory). They
count as replayed tokens, and in no domain's passes over its text.

n = sequences written, T = tokens of a sequence.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparsecl.methods.cl.again import Again, new_rows, no_way_on
from sparsecl.methods.cl.config import SelfReplayConfig
from sparsecl.methods.context import NO_PHASE, Batch, MethodContext


class SelfReplay(Again):
    """Rows of the model's own, the same on all ranks; kept in checkpoints, never written twice."""

    name = "self_replay"
    config: SelfReplayConfig

    def __init__(self, config: SelfReplayConfig) -> None:
        super().__init__(config)
        self.rows: NDArray[np.int32] = np.empty((0, 0), dtype=np.int32)
        """[n, T + 1] token ids; empty in the first phase."""

    def phase_start(self, context: MethodContext) -> None:
        """Let the model write. Collective over the world."""
        phase = context.progress.phase
        if phase:
            rng = context.generator(self.name, "write", phase)
            rows = context.sample_sequences(
                self.config.sequences, rng, temperature=self.config.temperature
            )
            self.rows = rows.astype(np.int32)

    def began_anew(self, context: MethodContext) -> None:
        if context.progress.phase and context.progress.phase_step:
            raise no_way_on(self.name, "what the model wrote at the start of the phase")

    def batch(self, context: MethodContext, batch: Batch) -> Batch:
        """Append this rank's part of the step's draw; nothing in the first phase."""
        if not len(self.rows):
            return batch
        num = self.config.num_replayed(len(new_rows(context, batch)[0]))
        places = np.arange(len(self.rows))
        names = np.stack([np.full_like(places, NO_PHASE), places], axis=1)
        drawn = self.draw(context, names, num, "draw")
        return batch.joined(self.rows[drawn].astype(np.int64), names[drawn])

    def after_step(self, context: MethodContext, *, applied: bool) -> None:
        if applied:
            self.count_drawn()

    def arrays(self) -> Mapping[str, torch.Tensor]:
        return {"rows": torch.from_numpy(self.rows)} if len(self.rows) else {}

    def check_arrays(self, arrays: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        for key in sorted(set(arrays) - {"rows"}):
            raise ValueError(f"{key} is not known")
        rows = arrays.get("rows")
        if rows is None:
            if values["num_replayed"]:
                raise ValueError("rows is missing")
        elif rows.dtype != torch.int32 or rows.dim() != 2 or len(rows) != self.config.sequences:
            raise ValueError(
                f"rows: {list(rows.shape)} of {rows.dtype} are not {self.config.sequences} "
                "sequences of token ids"
            )
        elif (rows < 0).any():
            raise ValueError("rows: a token id is below 0")

    def load_arrays(self, arrays: Mapping[str, torch.Tensor]) -> None:
        if "rows" in arrays:
            self.rows = arrays["rows"].numpy()
