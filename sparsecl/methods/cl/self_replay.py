"""Self-generated replay: the model writes text of what it knows, and trains it beside new domains.

Sources: Robins 1995, Catastrophic forgetting, rehearsal and pseudorehearsal (Connection Science 7);
for language models LAMOL (Sun et al. 2020, arXiv 1909.03329). At the start of each phase but the
first the model of that moment writes `sequences` sequences, drawn token by token at `temperature`;
these take the place of those that an earlier phase began with. Then `share` of them per new one
are trained as in replay: the loss is the mean over new and replayed sequences together.

Differs (own form): LAMOL trains tokens that name a task and writes after them, from distributions
cut to the most likely tokens. Here each sequence goes on from the first `prompt` tokens of one that
an earlier phase has read, each phase as often as the others, and nothing is cut. A training
sequence begins anywhere in a document, so one token is a beginning that the model has seen; with
prompt 0 it is an end-of-text, nothing of the data is kept, and text that has few of them gives
nothing that is worth replaying.

The written sequences are no phase's data: their origin is (NO_PHASE, place in the memory). They
count as replayed tokens, and in no domain's passes over its text.

n = sequences written, T = tokens of a sequence, p = tokens of a prompt, k = phases that are over.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparsecl.methods.cl.again import Again, new_rows, no_way_on
from sparsecl.methods.cl.config import SelfReplayConfig
from sparsecl.methods.context import NO_PHASE, Batch, MethodContext, SliceTensors


class SelfReplay(Again):
    """Rows of the model's own, the same on all ranks; kept in checkpoints, never written twice."""

    name = "self_replay"
    config: SelfReplayConfig

    def __init__(self, config: SelfReplayConfig) -> None:
        super().__init__(config)
        self.rows: NDArray[np.int32] = np.empty((0, 0), dtype=np.int32)
        """[n, T + 1] token ids; empty in the first phase."""

        self.prompts: NDArray[np.int32] = np.empty((0, config.sequences, 0), dtype=np.int32)
        """[k, n, p] of each phase that is over."""

    def phase_start(self, context: MethodContext) -> None:
        """Let the model write. Collective over the world."""
        phase = context.progress.phase
        if not phase:
            return
        places = np.arange(self.config.sequences)
        rows = context.sample_sequences(
            self.prompts[places % phase, places].astype(np.int64),
            context.generator(self.name, "write", phase),
            temperature=self.config.temperature,
        )
        self.rows = rows.astype(np.int32)

    def phase_end(self, context: MethodContext) -> None:
        """Remember how sequences of this phase begin, each equally likely, with replacement."""
        progress = context.progress
        rng = context.generator(self.name, "prompts", progress.phase)
        read = progress.data_step * context.batch_sequences
        rows = context.rows(progress.phase, rng.integers(0, read, size=self.config.sequences))
        begun = rows[None, :, : self.config.prompt].astype(np.int32)
        known = self.prompts if len(self.prompts) else begun[:0]
        self.prompts = np.concatenate([known, begun])

    def began_anew(self, context: MethodContext) -> None:
        if context.progress.phase:
            raise no_way_on(self.name, "how earlier phases' sequences begin")

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
        found = {"rows": self.rows, "prompts": self.prompts}
        return {key: torch.from_numpy(value) for key, value in found.items() if value.size}

    def state_dict(self) -> tuple[Mapping[str, SliceTensors], Mapping[str, Any]]:
        return {}, {"num_phases": len(self.prompts), **super().state_dict()[1]}

    def check_arrays(self, arrays: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        num, prompt = self.config.sequences, self.config.prompt
        for key in sorted(set(arrays) - {"rows", "prompts"}):
            raise ValueError(f"{key} is not known")
        for key, needed in (
            ("rows", values["num_replayed"] > 0),
            ("prompts", values["num_phases"] > 0 and prompt > 0),
        ):
            if needed and key not in arrays:
                raise ValueError(f"{key} is missing")
        for key, value in arrays.items():
            dims = (num,) if key == "rows" else (values["num_phases"], num)
            if value.dim() != len(dims) + 1 or tuple(value.shape[:-1]) != dims:
                raise ValueError(f"{key}: {list(value.shape)} is not of {num} sequences")
            if value.dtype != torch.int32 or (value < 0).any():
                raise ValueError(f"{key}: no token ids")

    def check_state(self, tensors: Collection[str], values: Mapping[str, Any]) -> None:
        super().check_state(tensors, values)
        if not 0 <= values["num_phases"] < 2**31:
            raise ValueError(f"num_phases: {values['num_phases']} is no count")

    def load_state_dict(
        self, tensors: Mapping[str, SliceTensors], values: Mapping[str, Any]
    ) -> None:
        super().load_state_dict(tensors, values)
        empty = (values["num_phases"], self.config.sequences, 0)
        self.rows, self.prompts = np.empty((0, 0), np.int32), np.empty(empty, np.int32)

    def load_arrays(self, arrays: Mapping[str, torch.Tensor]) -> None:
        if "rows" in arrays:
            self.rows = arrays["rows"].numpy()
        if "prompts" in arrays:
            self.prompts = arrays["prompts"].numpy()
