"""Self-generated replay: token by token from cumulative probabilities, with the method's draws."""

import torch

from sparsecl import seeding
from tests.distributed.references.run import ReferenceRun

CONTEXT, END_OF_TEXT = 16, 256


class SelfReplayReference(ReferenceRun):
    @torch.no_grad()
    def phase_start(self) -> None:
        self.own: torch.Tensor | None = None
        if self.phase:
            options = self.config.methods.self_replay
            rng = seeding.stream(self.config.seed, "self_replay", "write", self.phase)
            numbers = torch.from_numpy(rng.random((options.sequences, CONTEXT)))
            seen = torch.full((options.sequences, 1), END_OF_TEXT)
            for u in numbers.T:
                p = (self.model.logits(seen)[:, -1].double() / options.temperature).softmax(-1)
                token = torch.searchsorted(p.cumsum(-1), u[:, None].contiguous(), right=True)
                seen = torch.cat([seen, token], dim=1)
            self.own = seen

    def loss(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.own is not None:
            num = round(self.config.methods.self_replay.share * len(rows))
            rng = seeding.stream(self.config.seed, "self_replay", "draw", self.step)
            rows = torch.cat([rows, self.own[rng.integers(0, len(self.own), size=num)]])
        return super().loss(rows)
