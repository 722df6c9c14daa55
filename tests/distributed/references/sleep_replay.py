"""Sleep replay in plain PyTorch: a voltage for each unit, and one weight after another."""

import math

import numpy as np
import torch
from torch import Tensor

from sparsecl import seeding
from tests.distributed.references.run import ReferenceRun


class SleepReplayReference(ReferenceRun):
    @torch.no_grad()
    def phase_end(self) -> None:
        config, plain = self.config.methods.sleep_replay, self.model.linear
        seen: dict[str, tuple[Tensor, Tensor]] = {}

        def linear(x: Tensor, name: str) -> Tensor:
            seen[name] = x.flatten(0, 1), plain(x, name).flatten(0, 1)
            return seen[name][1].view(*x.shape[:2], -1)

        rows = self.rows(self.phase, np.arange(config.sequences))
        self.model.linear = linear
        self.model.loss(rows[:, :-1], rows[:, 1:])
        self.model.linear = plain
        self.means = getattr(self, "means", {})
        found = []
        for i in range(self.model.layers):
            name = f"layers.{i}.mlp"
            x, (h, y) = seen[f"{name}.up"][0], seen[f"{name}.down"]
            self.means[name] = self.means.get(name, 0.0) + x.abs().mean(0)
            found.append(self.sleep(name, self.means[name], [1.0, float(h.max()), float(y.max())]))
        self.trace.figures.append(
            {"sleep_replay": {key: float(np.mean([f[key] for f in found])) for key in found[0]}}
        )

    def sleep(self, name: str, mean: Tensor, sizes: list[float]) -> dict[str, float]:
        config, params = self.config.methods.sleep_replay, self.params
        num = round(config.steps * (1 + config.longer * self.phase))
        draws = seeding.stream(self.config.seed, "sleep_replay", self.phase, name)
        draws = torch.from_numpy(draws.random((num, len(mean)), dtype=np.float32))
        betas = (config.hidden_threshold, config.output_threshold)
        both = [f"{name}.up.weight", f"{name}.down.weight"]
        weights, masks = [params[one].detach() for one in both], [self.masks[one] for one in both]
        begun = [weight.clone() for weight in weights]
        units = [float(begun[i][masks[i]].square().mean().sqrt()) for i in (0, 1)]
        sizes = [sizes[0], *(max(sizes[i + 1], float(begun[i].max())) for i in (0, 1))]
        volts, spikes = [torch.zeros(len(weight)) for weight in weights], [0, 0]
        for drawn in draws:
            x = (drawn < config.rate * mean / mean.max()).float()
            for i, weight in enumerate(weights):
                alpha = config.scale * sizes[i] / sizes[i + 1]
                volts[i] = config.decay * volts[i] + alpha * (weight @ x)
                y = (volts[i] >= betas[i]).float()
                volts[i] = volts[i] * (1 - y)
                change = config.increase * x - config.decrease * (1 - x)
                moves = 2 / (1 + torch.exp(weight / (config.sign_width * units[i])))
                weight += units[i] * y[:, None] * change * moves * masks[i]
                x, spikes[i] = y, spikes[i] + int(y.sum())
        moved = sum(float((weights[i] - begun[i]).square().sum()) for i in (0, 1))
        moved = math.sqrt(moved / sum(float(one.square().sum()) for one in begun))
        rates = [spikes[i] / (num * len(volts[i])) for i in (0, 1)]
        return {"hidden": rates[0], "outputs": rates[1], "moved": moved}
