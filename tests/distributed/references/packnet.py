"""PackNet with dense masks: what does not move is put back after every step."""

import torch

from tests.distributed.references.run import ReferenceRun


class PackNetReference(ReferenceRun):
    owner: dict[str, torch.Tensor] = {}
    mine = 0
    """Owner of the weights that move."""

    def phase_start(self) -> None:
        if self.phase == 0:
            self.owner = {name: torch.zeros_like(p) for name, p in self.params.items()}
        self.mine = 0

    def loss(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        stage = self.schedule.phases[self.phase].stage(self.phase_step)
        if stage.name == "retrain" and stage.begin == self.phase_step:
            self.take()
        return super().loss(rows)

    @torch.no_grad()
    def take(self) -> None:
        self.mine = self.phase + 1
        for name, param in self.params.items():
            free = self.owner[name] == 0
            if name in self.masks:
                free &= self.masks[name]
                ranked = param[free].abs().sort().values
                num = round(self.config.methods.packnet.prune[self.phase] * len(ranked))
                cut = free & (param.abs() <= ranked[num - 1])
                param[cut] = 0.0
                free &= ~cut
            self.owner[name][free] = self.mine

    def after_backward(self) -> bool:
        self.before = {name: param.detach().clone() for name, param in self.params.items()}
        for name, param in self.params.items():
            param.grad[self.owner[name] != self.mine] = 0.0
        return True

    def after_update(self) -> None:
        for name, param in self.params.items():
            still = self.owner[name] != self.mine
            param[still] = self.before[name][still]
            for moment in ("exp_avg", "exp_avg_sq"):
                self.optimizer.state[param][moment][still] = 0.0
