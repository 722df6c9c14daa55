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

n = units of a group, global. Where networks are side by side (context.networks) their number is in
front of everything, and each chooses among its own units.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsecl import dist
from sparsecl.methods.context import MethodContext, SliceTensors
from sparsecl.methods.many_steps import ManySteps, Watch
from sparsecl.methods.plasticity.config import CbpConfig
from sparsecl.methods.plasticity.renewal import Renewal
from sparsecl.methods.units import UnitFigures
from sparsecl.sparse.units import UnitGroup


@dataclass
class Traces:
    """What is known of the units of one group, the same on all ranks."""

    age: np.ndarray
    """int64 [..., n], steps since a unit began."""

    utility: Tensor
    """fp32 [..., n], running mean that began at zero."""

    mean: Tensor
    """fp32 [..., n], the same of h."""

    due: Any
    """fp64 [...]: units that should have begun anew by now, and have not; below 1 after a step."""

    @classmethod
    def new(cls, *shape: int) -> "Traces":
        zero = torch.zeros(shape, device=dist.device())
        return cls(np.zeros(shape, dtype=np.int64), zero, zero.clone(), np.zeros(shape[:-1])[()])


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
                self.groups[name] = Traces.new(*context.networks, group.num_units)
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
        for name in context.units:  # all, before the first one gets other weights
            self._update(context, name, self.groups[name], figures[name])
        for name, group in context.units.items():
            num = self._num_due(context, name, self.groups[name])
            # Only where units are due does anybody wait for the device.
            for network in np.ndindex(context.networks) if num.any() else ():
                if num[network]:
                    self._replace(context, name, group, figures[name], int(num[network]), network)

    def _update(
        self, context: MethodContext, name: str, traces: Traces, figures: UnitFigures
    ) -> None:
        decay = self.config.decay
        traces.age += 1
        traces.mean.mul_(decay).add_(figures.mean, alpha=1.0 - decay)
        if self.config.utility == "random":
            drawn = np.empty(traces.age.shape, dtype=np.float32)
            for network in np.ndindex(context.networks):
                names = ("cbp", "utility", name, context.progress.step)
                rng = context.network_generator(network, *names)
                rng.random(dtype=np.float32, out=drawn[network])
            new = torch.from_numpy(drawn).to(traces.utility.device)
        else:
            new = self._utility(figures, traces.age)
        traces.utility.mul_(decay).add_(new, alpha=1.0 - decay)

    def _utility(self, figures: UnitFigures, age: np.ndarray) -> Tensor:
        """What this step says of each unit, [..., n]; see UTILITIES."""
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

    def _num_due(self, context: MethodContext, name: str, traces: Traces) -> Any:
        """Units of a group that begin anew in this step, int64 [...]."""
        mature = (traces.age > self.config.maturity).sum(-1)
        expected = self.config.rate * mature
        if self.config.accumulate:
            due = traces.due + expected
            num = due.astype(np.int64)
            traces.due = due - num
            return num
        drawn = np.empty(expected.shape)
        for network in np.ndindex(context.networks):
            names = ("cbp", "number", name, context.progress.step)
            drawn[network] = context.network_generator(network, *names).random()
        return np.where(expected >= 1.0, expected.astype(np.int64), drawn < expected)

    def _replace(
        self,
        context: MethodContext,
        name: str,
        group: UnitGroup,
        figures: UnitFigures,
        num: int,
        network: tuple[int, ...],
    ) -> None:
        traces = self.groups[name]
        age = traces.age[network]
        utility = self._corrected(traces.utility[network], age).cpu().numpy()
        fed = figures.incoming[network].cpu().numpy() > 0
        able = np.flatnonzero((age > self.config.maturity) & fed)
        units = np.sort(able[np.argsort(utility[able], kind="stable")[:num]])
        if not len(units):
            return
        if self.config.bias_transfer:
            self._transfer(context, group, traces, units, network)
        self.renew(context, name, group, units, network)
        chosen = torch.from_numpy(units).to(traces.utility.device)
        age[units] = 0
        traces.utility[network][chosen], traces.mean[network][chosen] = 0.0, 0.0

    def _transfer(
        self,
        context: MethodContext,
        group: UnitGroup,
        traces: Traces,
        units: np.ndarray,
        network: tuple[int, ...],
    ) -> None:
        """Add what the units give on average to the biases behind them. Collective."""
        chosen = torch.from_numpy(units).to(traces.mean.device)
        mean = self._corrected(traces.mean[network], traces.age[network])[chosen]
        for matrix, bias in zip(group.outgoing, group.biases, strict=False):
            lost = context.matrix(matrix)[network][:, chosen] @ mean.to(torch.float32)
            value = context.matrix(bias).clone()
            value[network] += lost
            context.write(bias, context.local_of(bias, value))

    def many_steps(self, context: MethodContext) -> ManySteps | None:
        config, kind = self.config, self.config.utility
        # Draws of every step are made by its hooks.
        drawn = kind == "random" or not config.accumulate
        if drawn or not self.groups or self.restart.kind != "global":
            return None
        figures = context.unit_figures

        def replace(name: str, network: int, num: int) -> None:
            self._replace(context, name, context.units[name], figures()[name], num, (network,))

        return ManySteps(
            watch=Watch(
                self.groups,
                decay=config.decay,
                rate=config.rate,
                maturity=config.maturity,
                of="distance" if kind in DISTANCES else "size" if kind == "contribution" else "one",
                weighed=kind in WEIGHED,
                adaptable=kind in ADAPTABLE,
                replace=replace,
            )
        )

    def state_dict(self) -> tuple[Mapping[str, SliceTensors], Mapping[str, Any]]:
        groups = {
            name: {
                "age": t.age.tolist(),
                "utility": t.utility.tolist(),
                "mean": t.mean.tolist(),
                "due": t.due.tolist(),
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
            for due in _leaves(group["due"]):
                if not isinstance(due, float) or not 0.0 <= due < 1.0:
                    raise ValueError(f"groups.{name}.due: {due!r:.40} is not in [0, 1)")
            shape = _shape(group["age"])
            for key, kind in (("age", int), ("utility", float), ("mean", float)):
                found = list(_leaves(group[key]))
                if not shape or shape[:-1] != _shape(group["due"]) or _shape(group[key]) != shape:
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
            traces = self.groups[name] = Traces.new(*np.shape(group["age"]))
            traces.age[:] = group["age"]
            traces.utility.copy_(torch.tensor(group["utility"]))
            traces.mean.copy_(torch.tensor(group["mean"]))
            traces.due = np.asarray(group["due"])[()]


WEIGHED = ("contribution", "zero_contribution", "adaptable_contribution", "weight")
"""Utilities that count mean |outgoing weight|."""

DISTANCES = ("zero_contribution", "adaptable_contribution", "feature_by_input")
"""Those that count mean |h - running mean of h|."""

ADAPTABLE = ("adaptable_contribution", "feature_by_input", "adaptation")
"""Those that are divided by mean |incoming weight|."""


def _leaves(value: Any) -> Iterator[Any]:
    """The entries of lists in lists."""
    for item in value if isinstance(value, list) else ():
        yield from _leaves(item)
    if not isinstance(value, list):
        yield value


def _shape(value: Any) -> tuple[int, ...] | None:
    """Of lists in lists; None = they are not of one length."""
    if not isinstance(value, list):
        return ()
    inner = {_shape(item) for item in value}
    one = inner.pop() if len(inner) == 1 else None
    return None if one is None else (len(value), *one)
