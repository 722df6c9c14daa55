"""Continual backpropagation: at every step a few units that contribute least begin anew.

Source: Dohare et al. 2024 (https://doi.org/10.1038/s41586-024-07711-7), Eq. 1 and the public code
shibhansh/loss-of-plasticity. After each optimizer step, in each layer: ages grow by one; utilities
decay towards what this step's activations and the new weights say; of the units older than
`maturity` the share `rate` with the lowest utility gets fresh incoming weights, outgoing weights of
zero, and moments, utility and age of zero. So its function changes by its own contribution alone.

Differs: means of activations are over all tokens of the step. Means of weights are over all cells
of a unit's row or column, absent ones counted as zero; only live weights are drawn and reset. A
unit without any incoming weight is never chosen, since nothing can come of it. The distance of
activations from their running mean is measured from the mean before the step and scaled to be that
from the one after it, exact for one sample a step, as in the paper's streams: the mean after the
step is known when the activations are gone. In the public code of the multi-layer networks the
transfer to biases does nothing, because the running mean is cleared first; here `bias_transfer`
does it, off by default; only form gpt2 has biases there. A unit of a gated form (SwiGLU) has two
incoming rows, of gate and up, which begin anew together.

n = units of a group, global.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsecl import dist
from sparsecl.methods.context import MethodContext, SliceTensors
from sparsecl.methods.plasticity.config import CbpConfig
from sparsecl.methods.plasticity.renewal import Renewal
from sparsecl.methods.units import UnitFigures
from sparsecl.sparse.units import UnitGroup


@dataclass
class Traces:
    """What is known of the units of one group, the same on all ranks."""

    age: np.ndarray
    """int64 [n], steps since a unit began."""

    utility: Tensor
    """fp32 [n], running mean that began at zero."""

    mean: Tensor
    """fp32 [n], the same of h."""

    due: float = 0.0
    """Units that should have begun anew by now, and have not; below 1 after a step."""

    @classmethod
    def new(cls, num_units: int) -> "Traces":
        zero = torch.zeros(num_units, device=dist.device())
        return cls(np.zeros(num_units, dtype=np.int64), zero, zero.clone())


class Cbp(Renewal):
    """All ranks keep the same traces."""

    name = "cbp"
    config: CbpConfig

    def __init__(self, config: CbpConfig) -> None:
        super().__init__(config)
        self.groups: dict[str, Traces] = {}

    def step_start(self, context: MethodContext) -> None:
        for name, group in context.units.items():
            if name not in self.groups:
                self.groups[name] = Traces.new(group.num_units)
        measured = self.config.utility in DISTANCES
        context.arm_units(
            {name: self._corrected(t.mean, t.age) for name, t in self.groups.items()}
            if measured
            else {}
        )

    def after_step(self, context: MethodContext, *, applied: bool) -> None:
        if not applied:
            return
        figures = context.unit_figures()
        for name, group in context.units.items():
            traces = self.groups[name]
            self._update(context, name, traces, figures[name])
            num = self._num_due(context, name, traces)
            # Only where units are due does anybody wait for the device.
            if num:
                self._replace(context, name, group, figures[name], num)

    def _update(
        self, context: MethodContext, name: str, traces: Traces, figures: UnitFigures
    ) -> None:
        decay = self.config.decay
        traces.age += 1
        traces.mean.mul_(decay).add_(figures.mean, alpha=1.0 - decay)
        if self.config.utility == "random":
            rng = context.generator("cbp", "utility", name, context.progress.step)
            new = torch.from_numpy(rng.random(len(traces.age), dtype=np.float32))
            new = new.to(traces.utility.device)
        else:
            new = self._utility(figures, traces.age)
        traces.utility.mul_(decay).add_(new, alpha=1.0 - decay)

    def _utility(self, figures: UnitFigures, age: np.ndarray) -> Tensor:
        """What this step says of each unit, [n]; see UTILITIES."""
        kind = self.config.utility
        value = torch.ones_like(figures.mean)
        if kind in DISTANCES:
            decay, before = self.config.decay, age - 1
            # |h - mean after| = this share of |h - mean before|, the means corrected by age.
            share = decay * (1.0 - decay**before) / (1.0 - decay**age)
            value = figures.distance * torch.from_numpy(share).to(value)
        elif kind == "contribution":
            value = figures.mean_abs
        if kind in WEIGHED:
            value = value * figures.outgoing
        if kind in ADAPTABLE:
            value = torch.where(figures.incoming > 0, value / figures.incoming, 0.0)
        return value

    def _corrected(self, trace: Tensor, age: np.ndarray) -> Tensor:
        """A running mean that began at zero, as one of as many steps as it has seen."""
        weight = 1.0 - self.config.decay ** np.maximum(age, 1)
        return trace / torch.from_numpy(weight).to(trace)

    def _num_due(self, context: MethodContext, name: str, traces: Traces) -> int:
        """Units of a group that begin anew in this step."""
        mature = int((traces.age > self.config.maturity).sum())
        expected = self.config.rate * mature
        if self.config.accumulate:
            traces.due += expected
            num = int(traces.due)
            traces.due -= num
            return num
        if expected >= 1.0:
            return int(expected)
        rng = context.generator("cbp", "number", name, context.progress.step)
        return int(rng.random() < expected)

    def _replace(
        self, context: MethodContext, name: str, group: UnitGroup, figures: UnitFigures, num: int
    ) -> None:
        traces = self.groups[name]
        utility = self._corrected(traces.utility, traces.age).cpu().numpy()
        fed = figures.incoming.cpu().numpy() > 0
        able = np.flatnonzero((traces.age > self.config.maturity) & fed)
        units = np.sort(able[np.argsort(utility[able], kind="stable")[:num]])
        if not len(units):
            return
        if self.config.bias_transfer:
            self._transfer(context, group, traces, units)
        self.renew(context, name, group, units)
        chosen = torch.from_numpy(units).to(traces.utility.device)
        traces.age[units] = 0
        traces.utility[chosen], traces.mean[chosen] = 0.0, 0.0

    def _transfer(
        self, context: MethodContext, group: UnitGroup, traces: Traces, units: np.ndarray
    ) -> None:
        """Add what the units give on average to the biases behind them. Collective."""
        chosen = torch.from_numpy(units).to(traces.mean.device)
        mean = self._corrected(traces.mean, traces.age)[chosen]
        for matrix, bias in zip(group.outgoing, group.biases, strict=False):
            lost = context.matrix(matrix)[:, chosen] @ mean.to(torch.float32)
            value = context.matrix(bias) + lost
            context.write(bias, context.local_of(bias, value))

    def state_dict(self) -> tuple[Mapping[str, SliceTensors], Mapping[str, Any]]:
        groups = {
            name: {
                "age": t.age.tolist(),
                "utility": t.utility.tolist(),
                "mean": t.mean.tolist(),
                "due": t.due,
            }
            for name, t in self.groups.items()
        }
        return self.restart.state(), {"groups": groups, "num_replaced": self.num_replaced}

    def check_state(self, tensors: Collection[str], values: Mapping[str, Any]) -> None:
        super().check_state(tensors, values)
        self.restart.check_state(tensors)
        if values["num_replaced"] < 0:
            raise ValueError(f"num_replaced: {values['num_replaced']} is no count")
        for name, group in values["groups"].items():
            if not isinstance(group, dict) or set(group) != {"age", "utility", "mean", "due"}:
                raise ValueError(f"groups.{name} must have age, utility, mean and due")
            if not isinstance(group["due"], float) or not 0.0 <= group["due"] < 1.0:
                raise ValueError(f"groups.{name}.due: {group['due']!r:.40} is not in [0, 1)")
            ages = group["age"]
            for key, kind in (("age", int), ("utility", float), ("mean", float)):
                found = group[key]
                if not isinstance(found, list) or len(found) != len(ages):
                    raise ValueError(f"groups.{name}.{key} is not one value for each unit")
                wrong = [v for v in found if type(v) is not kind or not math.isfinite(v)]
                wrong += [v for v in found if key != "mean" and type(v) is kind and v < 0]
                if wrong:
                    raise ValueError(f"groups.{name}.{key}: {wrong[0]!r:.40}")

    def load_state_dict(
        self, tensors: Mapping[str, SliceTensors], values: Mapping[str, Any]
    ) -> None:
        self.restart.load_state(tensors)
        self.num_replaced = values["num_replaced"]
        self.groups = {}
        for name, group in values["groups"].items():
            traces = self.groups[name] = Traces.new(len(group["age"]))
            traces.age[:] = group["age"]
            traces.utility.copy_(torch.tensor(group["utility"]))
            traces.mean.copy_(torch.tensor(group["mean"]))
            traces.due = group["due"]


WEIGHED = ("contribution", "zero_contribution", "adaptable_contribution", "weight")
"""Utilities that count mean |outgoing weight|."""

DISTANCES = ("zero_contribution", "adaptable_contribution", "feature_by_input")
"""Those that count mean |h - running mean of h|."""

ADAPTABLE = ("adaptable_contribution", "feature_by_input", "adaptation")
"""Those that are divided by mean |incoming weight|."""
