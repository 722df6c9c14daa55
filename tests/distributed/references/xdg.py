"""Context-dependent gating on whole layers."""

import torch

from sparsecl import seeding
from tests.distributed.references.run import ReferenceRun


class XdgReference(ReferenceRun):
    def phase_start(self) -> None:
        closed, phase = self.config.methods.xdg.closed, self.schedule.phases[self.phase]
        domain = self.schedule.domain_name(phase)
        for i in range(self.model.layers):
            name = f"layers.{i}.mlp"
            draws = seeding.stream(self.config.seed, "xdg", domain, name)
            units = len(self.params[f"{name}.up.weight"])
            self.model.gates[name] = torch.from_numpy(draws.random(units) >= closed).float()
