"""Dark experience replay (DER++): earlier sequences are trained again on their labels, and on what
the model said of them when it first trained them.

Source: Buzzega et al. 2020 (arXiv 2004.07211), and the authors' code (aimagelab/mammoth, derpp):

    L = CE(f(x), y) + alpha MSE(f(x'), z') + beta CE(f(x''), y'')

x' and x'' are two independent draws from one reservoir of earlier sequences; z' are the logits of
x' in the forward pass that trained it as new. beta = 0 is DER. The step's new sequences enter the
memory after the step.

Differs, and so is DER++-topk: z' of a whole vocabulary cannot be kept; of each position the `top`
largest logits are, with their token ids and the logsumexp of all; the MSE is the mean over those
(own form: no paper has one for language models). `rest` adds the squared change of the logsumexp,
which holds the mass of all other tokens too. The memory is one, the same on all ranks, in place of
one per process. alpha and beta have no defaults in the authors' code; ours are those of SparCL's
script. The run's own loss is that of the new sequences.

n = rows of one draw, T = tokens, k = `top`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparsecl import dist
from sparsecl.methods.cl.again import new_rows, read, step_names
from sparsecl.methods.cl.config import DerppConfig
from sparsecl.methods.cl.reservoir import Rehearsal
from sparsecl.methods.context import Batch, MethodContext, Outputs

DTYPES = {"ids": torch.int32, "logits": torch.float32, "logsumexp": torch.float32}


class Derpp(Rehearsal):
    """Names as in replay, and beside each what the model said: (8 k + 4) bytes for every token of a
    remembered sequence, on the CPU of every rank."""

    name = "derpp"
    needs_outputs = True

    config: DerppConfig

    def __init__(self, config: DerppConfig) -> None:
        super().__init__(config)
        self.memory: dict[str, torch.Tensor] = {}
        """ids and logits [capacity, T, k], logsumexp [capacity, T], by slot."""

        # Of the step at hand: they count when it is applied.
        self._slots = np.empty(0, dtype=np.int64)
        self._seen: list[tuple[NDArray[np.int64], dict[str, torch.Tensor]]] = []

    def step_start(self, context: MethodContext) -> None:
        """Draw now which of the new sequences will be remembered: only those are looked at."""
        super().step_start(context)
        rng = context.generator("derpp", "insert", context.progress.step)
        self._slots = self.reservoir.slots(context.batch_sequences, rng)
        self._seen = []

    def batch(self, context: MethodContext, batch: Batch) -> Batch:
        """Append this rank's part of both draws; nothing while the memory is empty."""
        if not len(self.reservoir.names):
            return batch
        num = self.config.num_replayed(len(new_rows(context, batch)[0]))
        for purpose in ("logits", "labels"):
            if not self._weight(purpose):
                continue
            slots = self.draw(context, self.reservoir.names, num, purpose)
            names = self.reservoir.names[slots]
            rows = len(batch.rows) + np.arange(num)
            extra = {f"derpp.{purpose}": rows, f"derpp.{purpose}_slots": slots}
            batch = batch.beside(read(context, names), names)
            batch = replace(batch, extra={**batch.extra, **extra})
        return batch

    def _weight(self, purpose: str) -> float:
        return self.config.alpha if purpose == "logits" else self.config.beta

    def loss(self, context: MethodContext, batch: Batch, outputs: Outputs) -> torch.Tensor | None:
        self._see(context, batch, outputs)
        terms = []
        if "derpp.logits" in batch.extra:
            again = outputs.select(batch.extra["derpp.logits"])
            terms.append(
                self.config.alpha * self._distance(again, batch.extra["derpp.logits_slots"])
            )
        if "derpp.labels" in batch.extra:
            again = outputs.select(batch.extra["derpp.labels"])
            terms.append(self.config.beta * again.losses.mean())
        return torch.stack(terms).sum() if terms else None

    def _distance(self, again: Outputs, slots: NDArray[np.int64]) -> torch.Tensor:
        """How far the logits of rows have moved since they were remembered in `slots` [n]."""
        index, device = torch.from_numpy(slots), again.losses.device
        then = {key: value[index].to(device) for key, value in self.memory.items()}
        found = (again.logits(then["ids"].long()) - then["logits"]).square().mean()
        if self.config.rest:
            moved = again.logsumexp - then["logsumexp"]
            found = found + self.config.rest * moved.square().mean()
        return found

    @torch.no_grad()
    def _see(self, context: MethodContext, batch: Batch, outputs: Outputs) -> None:
        """Take the logits of the new sequences that will be remembered."""
        rows, places = new_rows(context, batch)
        slots = self._slots[places]
        kept = slots >= 0
        new = outputs.select(rows[kept])
        ids, _ = new.top(self.config.top)
        found = {"ids": ids, "logits": new.logits(ids), "logsumexp": new.logsumexp}
        found = {key: value.detach().to(DTYPES[key]) for key, value in found.items()}
        self._seen.append((slots[kept], found))

    def after_step(self, context: MethodContext, *, applied: bool) -> None:
        """Remember what the step has trained. Collective over dp: every rank has seen its rows."""
        if not applied:
            return
        self.count_drawn()
        self._remember()
        self.reservoir.fill(step_names(context, context.progress.data_step - 1), self._slots)

    def _remember(self) -> None:
        taken = np.sort(self._slots[self._slots >= 0])
        if not len(taken):
            return
        for key in DTYPES:
            parts = [found[key] for _, found in self._seen]
            of_all = parts[0].new_zeros(len(taken), *parts[0].shape[1:])
            for (slots, _), part in zip(self._seen, parts, strict=True):
                of_all[torch.from_numpy(np.searchsorted(taken, slots)).to(part.device)] = part
            # One rank has the row, the others zeros: the sum is exact.
            dist.all_reduce(of_all, group=dist.dp_group())
            if key not in self.memory:
                shape = (self.config.sequences, *of_all.shape[1:])
                self.memory[key] = torch.zeros(shape, dtype=of_all.dtype)
            self.memory[key][torch.from_numpy(taken)] = of_all.cpu()

    def arrays(self) -> Mapping[str, torch.Tensor]:
        return {key: value[: len(self.reservoir.names)] for key, value in self.memory.items()}

    def check_arrays(self, arrays: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        num = len(values["names"])
        wanted = set(DTYPES) if num else set()
        for key in sorted(wanted ^ set(arrays)):
            raise ValueError(f"{key} is {'missing' if key in wanted else 'not known'}")
        if not num:
            return
        ids = arrays["ids"]
        for key, value in arrays.items():
            dims = 2 if key == "logsumexp" else 3
            if value.dim() != dims or value.shape != ids.shape[:dims] or len(value) != num:
                raise ValueError(f"{key}: {list(value.shape)} is not of {num} sequences")
            if value.dtype != DTYPES[key]:
                raise ValueError(f"{key}: {value.dtype} is not {DTYPES[key]}")
        if not 1 <= ids.shape[2] <= self.config.top or bool((ids < 0).any()):
            raise ValueError(f"ids: no {self.config.top} token ids")

    def load_arrays(self, arrays: Mapping[str, torch.Tensor]) -> None:
        self.memory = {}
        for key, value in arrays.items():
            shape = (self.config.sequences, *value.shape[1:])
            self.memory[key] = torch.zeros(shape, dtype=value.dtype)
            self.memory[key][: len(value)] = value
