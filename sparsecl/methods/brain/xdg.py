"""XdG, context-dependent gating: each domain works with its own random part of the hidden units.

Source: Masse, Grant & Freedman 2018 (PNAS 115, E10467), and the public code
nmasse/Context-Dependent-Gating. For each domain and hidden layer every unit is closed with the
probability `closed`, once and for all: its activation is multiplied by 0, those of the others by 1,
without a factor that makes up for it, as in the code. A weight that a closed unit reads or is read
through gets no gradient; two domains share the share (1 - closed)^2 of the units. All weights are
trained in all domains. The paper adds Synaptic Intelligence to it: methods may stand side by side.

Differs: in a GPT the units are those of the feed-forward parts; attention, embedding and the stream
between the blocks are shared by all domains. The code begins each task with new optimizer moments,
which is phases.optimizer_state: reset; with moments kept, and with weight decay, weights of closed
units still move.

The gates belong to the domain, not to the phase, so one that comes again finds its own. Without the
domain's name (`matrix` in results.json) the units of the domain that was trained last are open.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from sparsecl.methods.base import Method
from sparsecl.methods.brain.config import XdgConfig
from sparsecl.methods.context import MethodContext
from sparsecl.methods.model_side import ModelSide


class Xdg(Method):
    """Gates are drawn anew from the domain's name, so there is no state to keep."""

    name = "xdg"
    config: XdgConfig

    def attach(self, model: ModelSide, num_phases: int) -> None:
        model.units(gated=True)

    def phase_start(self, context: MethodContext) -> None:
        self._open(context, context.domain)

    def resumed(self, context: MethodContext) -> None:
        self._open(context, context.domain)

    def began_anew(self, context: MethodContext) -> None:
        self._open(context, context.domain)

    def scoring(self, context: MethodContext, domain: str) -> AbstractContextManager[None]:
        return self._scoring(context, domain)

    @contextmanager
    def _scoring(self, context: MethodContext, domain: str) -> Iterator[None]:
        self._open(context, domain)
        try:
            yield
        finally:
            self._open(context, context.domain)

    def _open(self, context: MethodContext, domain: str) -> None:
        """Open the units of a domain, and close all others. Local; ranks draw the same."""
        for name, group in context.units.items():
            rng = context.generator(self.name, domain, name)
            opened = torch.from_numpy(rng.random(group.num_units) >= self.config.closed)
            assert group.gate is not None
            group.gate.copy_(opened[group.local])
