"""Sleep replay consolidation (SRC), a port: after each phase the feed-forward parts sleep.

Source: Tadros, Krishnan, Ramyaa & Bazhenov 2022 (https://doi.org/10.1038/s41467-022-34938-7), and
the public code tmtadros/SleepReplayConsolidation, from which the rule is taken; the paper's prose
could not be compared with it. No data is read while they sleep: units fire or do not, and W [O, I]
is changed in each time step, layer by layer, so that the next layer sees the spikes of this one (x
is 0 or 1 going in, y coming out):

    v <- decay v + alpha W x,   y = v >= beta,   v = 0 where y = 1
    where y = 1:  W <- W + increase sg(W) where x = 1,   W <- W - decrease sg(W) where x = 0

sg(w) = 2 / (1 + exp(w / width)) as coded, so weights below and near zero move. Whether that sign
was meant is not known: `sign` has its mirror, and 1 everywhere. alpha of layer l is scale s[l-1] /
s[l], s the larger of its largest weight and its largest activation, 1 for the input.

What is ported: the published method lets a bias-free MLP with ReLU sleep, whose input is an image.
Here each feed-forward part of a GPT (up, down) is such an MLP of its own. Attention, norms and
embedding stay as they are; biases and GELU take no part. Own reading, without a source:

- An input fires with the probability rate a / max(a), a = its mean |x| over all phases so far, as
  the mean image says it of a pixel. The moving window of the image is left out: inputs have no
  neighbours, and a window of inputs drawn at random is a lower rate.
- increase, decrease and width are in units of the matrix's own size (root mean square of what is
  live, as the sleep begins): the published numbers belong to weights drawn from +-0.01.
- A sleep is longer than the one before by a share of the first one.

Absent and held weights do not move. Moments stay as they are. The published W_inh is 0, and left
out. Each rank sleeps on whole matrices, and all do the same.

O = outputs, I = inputs (global).
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsecl import dist, watchdog
from sparsecl.methods.base import Method
from sparsecl.methods.brain.config import Sign, SleepReplayConfig
from sparsecl.methods.cl.again import no_way_on
from sparsecl.methods.context import MethodContext
from sparsecl.methods.model_side import ModelSide

TINY = 1e-30
BLOCK = 256
"""Time steps whose spikes of the input are drawn at once."""


@dataclass(frozen=True)
class Rule:
    """How much a weight moves when its unit has fired."""

    increase: float
    """From an input that has fired too."""

    decrease: float
    """From one that has not."""

    width: float
    """Of sg, > 0."""

    sign: Sign = "code"

    def moves(self, weight: Tensor) -> Tensor:
        """sg of weights, of their shape, in [0, 2]."""
        if self.sign == "none":
            return torch.ones_like(weight)
        return 2.0 * torch.sigmoid(weight / (-self.width if self.sign == "code" else self.width))

    def learn(self, weight: Tensor, free: Tensor, before: Tensor, after: Tensor) -> None:
        """Change a matrix [O, I] in place after one time step. Local.

        Args:
            free: bool [O, I]; all else keeps its bits.
            before: bool [I], who has fired before it.
            after: bool [O], who has fired after it.
        """
        units = after.nonzero().squeeze(1)
        if len(units):
            rows = weight[units]
            size = torch.where(before, self.increase, -self.decrease)
            weight[units] = torch.where(free[units], rows + size * self.moves(rows), rows)


@dataclass
class Asleep:
    """One layer while it sleeps."""

    weight: Tensor
    """fp32 [O, I], changed in place."""

    free: Tensor
    """bool [O, I], what may move."""

    rule: Rule
    gain: float
    """alpha."""

    threshold: float
    """beta."""

    def __post_init__(self) -> None:
        self.voltage = self.weight.new_zeros(len(self.weight))
        self.num_spikes = self.weight.new_zeros((), dtype=torch.int64)

    def step(self, before: Tensor, decay: float) -> Tensor:
        """One time step: who fires, bool [O], if `before` [I] has."""
        drive = self.weight @ before.to(self.weight.dtype)
        self.voltage.mul_(decay).add_(drive, alpha=self.gain)
        after = self.voltage >= self.threshold
        self.voltage.masked_fill_(after, 0.0)
        self.num_spikes += after.sum()
        self.rule.learn(self.weight, self.free, before, after)
        return after


def gains(weights: Sequence[Tensor], active: Sequence[float], scale: float) -> list[float]:
    """alpha of each layer of an MLP.

    Args:
        weights: [O, I] of each layer.
        active: its largest activation, >= 0.
    """
    found, before = [], 1.0
    for weight, largest in zip(weights, active, strict=True):
        size = max(float(weight.max()), largest, TINY)
        found.append(scale * before / size)
        before = size
    return found


def sleep(layers: Sequence[Asleep], shown: Iterable[Tensor], *, decay: float) -> int:
    """Let an MLP sleep, its layers in order.

    Args:
        shown: bool [I] for each time step, which inputs fire.

    Returns:
        The number of time steps.
    """
    num = 0
    for spikes in shown:
        num += 1
        for layer in layers:
            spikes = layer.step(spikes, decay)
    return num


class SleepReplay(Method):
    """Keeps what the inputs of each feed-forward part were on average, and no data."""

    name = "sleep_replay"
    config: SleepReplayConfig

    def __init__(self, config: SleepReplayConfig) -> None:
        super().__init__(config)
        self.parts: dict[str, int] = {}
        """layers.3.mlp, ... -> its inputs."""

        self.inputs: dict[str, Tensor] = {}
        """fp32 [I], the sum over phases of the mean |x| in each; the same on all ranks."""

        self.num_sleeps = 0
        self._figures: dict[str, float] = {}

    def attach(self, model: ModelSide, num_phases: int) -> None:
        for name, linear in model.linears().items():
            if linear.shape.kind == "up":
                self.parts[name.removesuffix(".up")] = linear.shape.in_features

    def phase_trained(self, context: MethodContext) -> None:
        """Let every feed-forward part sleep. Collective over the world."""
        if not (self.config.increase or self.config.decrease):
            return
        active = self._look(context)
        num_steps = round(self.config.steps * (1.0 + self.config.longer * self.num_sleeps))
        self.num_sleeps += 1
        found = [self._sleep(context, name, active[name], num_steps) for name in self.parts]
        self._figures = {key: float(np.mean([one[key] for one in found])) for key in found[0]}

    def figures(self, context: MethodContext) -> Mapping[str, float]:
        """Of the sleep at the end of the phase, means over the feed-forward parts.

        Returns:
            hidden, outputs: share of these units that fire in a time step; moved: how far both
            matrices have moved, over their norm. None if nobody sleeps.
        """
        return self._figures

    def _look(self, context: MethodContext) -> dict[str, tuple[float, float]]:
        """Take in the inputs of a phase. Collective over the world.

        Returns:
            The largest activation of the hidden units and of the outputs, by part.
        """
        rows = context.rows(context.progress.phase, np.arange(self.config.sequences))
        num_tokens, device = 0, dist.device()
        sums = {name: torch.zeros(num, device=device) for name, num in self.parts.items()}
        largest = torch.zeros(len(self.parts), 2, device=device)
        for inputs in context.linear_inputs(rows):
            for place, (name, total) in enumerate(sums.items()):
                x, h = inputs[f"{name}.up.weight"], inputs[f"{name}.down.weight"]
                total += x.abs().sum(0)
                y = h @ context.matrix(f"{name}.down.weight").T
                largest[place] = torch.maximum(largest[place], torch.stack([h.max(), y.max()]))
            num_tokens += len(x)
        # To the bit the same on all ranks, which then draw the same spikes.
        dist.all_reduce(largest, op="max")
        for name, total in sums.items():
            dist.all_reduce(total).div_(dist.world_size() * num_tokens)
            self.inputs[name] = self._seen(name, device) + total
        return {
            name: (float(hidden), float(out))
            for name, (hidden, out) in zip(sums, largest.tolist(), strict=True)
        }

    def _seen(self, name: str, device: torch.device) -> Tensor:
        """What the phases before have added, where the model is."""
        found = self.inputs.get(name)
        return torch.zeros(self.parts[name], device=device) if found is None else found.to(device)

    def _sleep(
        self, context: MethodContext, name: str, active: tuple[float, float], num_steps: int
    ) -> dict[str, float]:
        """Let one part sleep, and keep what has become of it. Collective over the world."""
        watchdog.beat(f"the sleep of {name}")
        names = [f"{name}.up.weight", f"{name}.down.weight"]
        begun = [context.matrix(one) for one in names]
        alphas = gains(begun, active, self.config.scale)
        betas = (self.config.hidden_threshold, self.config.output_threshold)
        layers = [
            Asleep(weight.clone(), _free(context, one), self._rule(weight), alpha, beta)
            for one, weight, alpha, beta in zip(names, begun, alphas, betas, strict=True)
        ]
        sleep(layers, self._shown(context, name, num_steps), decay=self.config.decay)
        moved = whole = 0.0
        for one, old, layer in zip(names, begun, layers, strict=True):
            moved += float((layer.weight - old).square().sum())
            whole += float(old.square().sum())
            context.write(one, context.local_of(one, layer.weight))
        rates = [float(one.num_spikes) / (num_steps * len(one.weight)) for one in layers]
        moved = math.sqrt(moved / max(whole, TINY))
        return {"hidden": rates[0], "outputs": rates[1], "moved": moved}

    def _rule(self, weight: Tensor) -> Rule:
        """In units of the weights that are not zero."""
        live = int(weight.count_nonzero())
        size = max(math.sqrt(float(weight.square().sum()) / max(live, 1)), TINY)
        config = self.config
        return Rule(
            config.increase * size, config.decrease * size, config.sign_width * size, config.sign
        )

    def _shown(self, context: MethodContext, name: str, num_steps: int) -> Iterator[Tensor]:
        """Which inputs of a part fire, bool [I] for each time step. Local; ranks draw the same."""
        seen = self.inputs[name]
        chance = self.config.rate * seen / seen.max().clamp(min=TINY)
        rng = context.generator(self.name, context.progress.phase, name)
        for first in range(0, num_steps, BLOCK):
            drawn = rng.random((min(BLOCK, num_steps - first), len(seen)), dtype=np.float32)
            yield from torch.from_numpy(drawn).to(seen.device) < chance

    def began_anew(self, context: MethodContext) -> None:
        if context.progress.phase:
            raise no_way_on(self.name, "what the inputs of earlier phases were")

    def state_dict(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        return {}, {"num_sleeps": self.num_sleeps}

    def check_state(self, tensors: Collection[str], values: Mapping[str, Any]) -> None:
        super().check_state(tensors, values)
        if values["num_sleeps"] < 0:
            raise ValueError(f"num_sleeps: {values['num_sleeps']} is no count")

    def load_state_dict(self, tensors: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        self.num_sleeps = values["num_sleeps"]

    def arrays(self) -> Mapping[str, Tensor]:
        return dict(self.inputs)

    def check_arrays(self, arrays: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        wanted = self.parts if values["num_sleeps"] else {}
        for key in [*arrays, *wanted]:
            if key not in arrays or key not in wanted:
                raise ValueError(f"{key} is {'missing' if key in wanted else 'not known'}")
        for key, value in arrays.items():
            if value.dtype != torch.float32 or value.shape != (wanted[key],):
                raise ValueError(f"{key}: {value.dtype} {list(value.shape)} is not its inputs")
            if (value < 0.0).any():
                raise ValueError(f"{key}: a mean of |x| is below zero")

    def load_arrays(self, arrays: Mapping[str, Tensor]) -> None:
        self.inputs = dict(arrays)


def _free(context: MethodContext, name: str) -> Tensor:
    """What may move of a parameter: bool [O, I], neither absent nor held. Collective."""
    item = context.slices.find(name)
    marks = {} if item is None else {name: torch.ones_like(item.master)}
    return context.matrix(name, context.movable(marks)) > 0.0
