"""WSCL, wake-sleep consolidated learning: as released, and as described.

Source: Sorrenti et al. 2024 (arXiv 2401.08623; IEEE TNNLS) and its public code (perceivelab/wscl),
which differ. Both stand on DER++ (alpha and beta; alpha 0 and beta 1 are plain replay).

variant released, the code: DER++ at every step. When a phase begins, copies of the model with more
and more blocks frozen are trained for a while, and the best one says how many stay frozen from then
on (trial.py). trial_steps 0 leaves that out, and DER++ is left.

variant described, the paper's prose; losses and rules are not given there, so this is our own
reading. A run is cut into cycles. Awake the model is trained on new sequences alone, while the
share `held` of the weights of each linear, those of largest |w|, is frozen; what it reads is its
short-term memory, and some of it enters the long-term memory of DER++, with its logits. Asleep
(NREM) the rows of a step are drawn from the short-term memory in the place of new ones, with the
two terms of DER++ beside them, and all weights move. Then weak weights are scaled down.

Differs: there is no dreaming (REM) in either. It trains classes of another data set on outputs that
no task uses yet, and a language model has no unused outputs: every token is of every domain. A
block is one of a transformer, where the code has residual ones; the last block is never frozen, nor
the embedding, which is the output layer too. A trial is a few steps of SGD, where the code trains
an epoch. What is frozen has moments of zero, so Adam begins anew when it is let go.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsecl.methods.brain import trial
from sparsecl.methods.brain.config import WsclConfig
from sparsecl.methods.brain.down_scaling import DownScaling
from sparsecl.methods.cl.again import new_rows, no_way_on, read
from sparsecl.methods.cl.derpp import Derpp
from sparsecl.methods.context import Batch, MethodContext, Outputs, SliceTensors
from sparsecl.methods.model_side import ModelSide
from sparsecl.optim.slice import Slice


class Wscl(Derpp):
    """What is frozen is a number of blocks (released), or 0/1 for each weight (described)."""

    name = "wscl"
    config: WsclConfig

    def __init__(self, config: WsclConfig) -> None:
        super().__init__(config)
        self.frozen = 0
        """Blocks, for good."""

        self.holding = False
        """Weights are frozen for as long as this wake lasts."""

        self.held: SliceTensors = {}
        """1.0 where one of them is, of the linears; empty while none are."""

        self.recent: list[list[int]] = []
        """[phase, data_step] of the steps of this cycle's wake: the short-term memory."""

        self.cycles = config.described
        amount = config.down_scaling if self.cycles else 0.0
        self.scaling = DownScaling(amount, config.protected)
        self._asleep = False  # the step at hand

    def attach(self, model: ModelSide, num_phases: int) -> None:
        self.scaling.attach(model)

    # Released: blocks are frozen when a phase begins.

    def phase_start(self, context: MethodContext) -> None:
        """Collective over the world."""
        known = self.reservoir.names
        if not self.cycles and context.progress.phase and self.config.trial_steps and len(known):
            self.frozen, _ = trial.choose(context, self.config, self.frozen, known)
            self._hold(context)

    def resumed(self, context: MethodContext) -> None:
        self._hold(context)

    def began_anew(self, context: MethodContext) -> None:
        if context.progress.phase and not self.cycles:
            raise no_way_on(self.name, "how many blocks are frozen")

    def _hold(self, context: MethodContext) -> None:
        """Hold what is frozen. Collective over dp."""
        blocks = trial.held_blocks(context, self.frozen) if self.frozen else {}
        for name in context.shapes():
            where = blocks.get(name)
            if self.holding and name in self.scaling.linears:
                where = context.whole(name, self.held) > 0
            context.hold(name, where, owner=self.name)

    # Described: wake and sleep.

    def step_start(self, context: MethodContext) -> None:
        """Wake up, or fall asleep. Collective over the world then."""
        super().step_start(context)
        if not self.cycles:
            return
        progress = context.progress
        self._asleep = self.config.is_asleep(progress) and len(self.recent) > 0
        self.scaling.step_start(context, due=self.config.ends(progress))
        if self._asleep:
            self._slots[:] = -1  # nothing is new, so nothing is remembered
        elif progress.step % self.config.every == 0:
            self.recent = []
        holding = not self._asleep and self.config.held > 0
        if holding != self.holding:
            strong = self.scaling.strongest(context, self.config.held) if holding else {}
            self.holding, self.held = holding, {n: part.float() for n, part in strong.items()}
            self._hold(context)

    def batch(self, context: MethodContext, batch: Batch) -> Batch:
        if not self.cycles:
            return super().batch(context, batch)
        if not self._asleep:
            return batch
        rows, _ = new_rows(context, batch)
        batch, names = super().batch(context, batch), self._short_term(context)
        names = names[self.draw(context, names, len(rows), "recent")]
        return batch.replaced(rows, read(context, names), names)

    def _short_term(self, context: MethodContext) -> NDArray[np.int64]:
        """Names [n, 2] of what was read in this cycle."""
        steps, size = np.array(self.recent, dtype=np.int64), context.batch_sequences
        numbers = steps[:, 1:] * size + np.arange(size)
        return np.stack([np.repeat(steps[:, 0], size), numbers.reshape(-1)], axis=1)

    def _see(self, context: MethodContext, batch: Batch, outputs: Outputs) -> None:
        if not self._asleep:
            super()._see(context, batch, outputs)

    def after_update(self, context: MethodContext, items: Collection[Slice]) -> None:
        self.scaling.after_update(context, items)

    def after_step(self, context: MethodContext, *, applied: bool) -> None:
        if self._asleep:
            if applied:
                self.count_drawn()
            return
        super().after_step(context, applied=applied)
        if applied and self.cycles:
            progress = context.progress
            self.recent.append([progress.phase, progress.data_step - 1])

    def figures(self, context: MethodContext) -> Mapping[str, float]:
        """`frozen`: blocks that are frozen by now."""
        return {} if self.cycles else {"frozen": float(self.frozen)}

    def state_dict(self) -> tuple[Mapping[str, SliceTensors], Mapping[str, Any]]:
        own = {
            "frozen": self.frozen,
            "holding": self.holding,
            "recent": [list(step) for step in self.recent],
        }
        return {"held": self.held} if self.holding else {}, {**own, **super().state_dict()[1]}

    def check_state(self, tensors: Collection[str], values: Mapping[str, Any]) -> None:
        super().check_state((), values)
        if set(tensors) != ({"held"} if values["holding"] else set()):
            raise ValueError(f"holding: {values['holding']}, with {len(tensors)} slice tensors")
        if values["holding"] and not self.cycles:
            raise ValueError("holding: True is of variant described")
        if not 0 <= values["frozen"] < 2**31 or (self.cycles and values["frozen"]):
            raise ValueError(f"frozen: {values['frozen']} is no number of blocks")
        recent = values["recent"]
        if len(recent) > (self.config.every if self.cycles else 0):
            raise ValueError(f"recent: {len(recent)} steps in one cycle")
        for step in recent:
            whole = isinstance(step, list) and [type(part) for part in step] == [int, int]
            if not whole or not all(0 <= part < 2**62 for part in step):
                raise ValueError(f"recent: {step!r:.40} is no [phase, step]")

    def load_state_dict(
        self, tensors: Mapping[str, SliceTensors], values: Mapping[str, Any]
    ) -> None:
        super().load_state_dict({}, values)
        self.frozen, self.holding = values["frozen"], values["holding"]
        self.recent = [list(step) for step in values["recent"]]
        self.held = dict(tensors.get("held", {}))
