"""Self-generated replay: token by token from cumulative probabilities, with the method's draws."""

import torch

from sparsecl import seeding
from tests.distributed.references.run import ReferenceRun


class SelfReplayReference(ReferenceRun):
    def phase_end(self) -> None:
        options, num = self.config.methods.self_replay, self.config.batch.sequences
        rng = seeding.stream(self.config.seed, "self_replay", "prompts", self.phase)
        read = rng.integers(0, num * (self.phase_step + 1), size=options.sequences)
        self.prompts = self.rows(self.phase, read)[:, : options.prompt]  # of two phases, the first

    @torch.no_grad()
    def phase_start(self) -> None:
        self.own: torch.Tensor | None = None
        if self.phase:
            options, seen = self.config.methods.self_replay, self.prompts
            rng = seeding.stream(self.config.seed, "self_replay", "write", self.phase)
            numbers = torch.from_numpy(rng.random((options.sequences, 17 - options.prompt)))
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
