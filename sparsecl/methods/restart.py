"""How Adam treats a weight that begins anew in the middle of a run, for methods that grow weights
or replace units.

With moments at zero and a step counter that is global, the bias correction has worn off: the first
step of a new weight is (1 - beta1) / sqrt(1 - beta2) times the learning rate, 3.16 for (0.9, 0.999)
and 0.447 for (0.9, 0.95), instead of 1. That is `global`, what the public codes do. `per_weight`
counts the correction from each weight's own birth (arXiv 2606.00888 keeps such a local step).

Differs: the warm-up and the scaled learning rate of that paper are left out.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from sparsecl.errors import UserError
from sparsecl.methods.context import MethodContext, SliceTensors
from sparsecl.methods.facts import AdamRestartKind
from sparsecl.optim.slice import Slice


class AdamRestart:
    """Owned by a method, which hands its hooks on and says which weights are new."""

    def __init__(self, kind: AdamRestartKind) -> None:
        self.kind = kind
        self.born: SliceTensors = {}
        """The optimizer's count of steps when a weight began; 0 = as old as the optimizer."""

    def mark(self, context: MethodContext, name: str, where: Tensor) -> None:
        """The weights of `where` (as in `context.hold`) begin now; their moments are zero. Between
        steps. Local."""
        item = context.slices.find(name)
        if self.kind == "global" or item is None:
            return
        count = context.slices.num_updates(item)
        born = self.born.setdefault(name, torch.zeros_like(item.master))
        born.masked_fill_(item.part(where).to(born.device), count)

    def phase_start(self, context: MethodContext) -> None:
        """An optimizer that was reset has no older weights."""
        self.born = {
            item.name: self.born[item.name]
            for item in context.slices
            if item.name in self.born and context.slices.num_updates(item)
        }

    def after_update(self, context: MethodContext, items: Collection[Slice]) -> None:
        """Turn the step that Adam has just made into that of a correction by age."""
        if not self.born:
            return
        slices = context.slices
        groups = {id(p): group for group in slices.optimizer.param_groups for p in group["params"]}
        for item in items:
            if item.name in self.born:
                count, group = slices.num_updates(item), groups[id(item.stepped)]
                self._correct(item, slices.moments(item), group, count)

    def _correct(
        self, item: Slice, moments: Mapping[str, Tensor], group: Mapping[str, Any], count: float
    ) -> None:
        born = self.born[item.name]
        if "exp_avg" not in moments or "exp_avg_sq" not in moments:
            raise UserError("adam_restart=per_weight needs Adam's moments; use global")
        if not group.get("bias_correction", True):
            return
        age = torch.where(born > 0, count - born, count)
        excess = _direction(moments, group, age) - _direction(moments, group, age.new_tensor(count))
        item.master.sub_(torch.where(born > 0, excess, 0.0), alpha=float(group["lr"]))

    def slice_tensors(self) -> Iterable[SliceTensors]:
        """A new weight at the place of an old one is not as old as that."""
        return () if self.kind == "global" else (self.born,)

    def state(self) -> Mapping[str, SliceTensors]:
        """The slice tensors that a resume needs."""
        return {"born": self.born} if self.born else {}

    def check_state(self, tensors: Collection[str]) -> None:
        """Raise ValueError unless `state` may have these names."""
        unknown = set(tensors) - ({"born"} if self.kind == "per_weight" else set())
        if unknown:
            raise ValueError(f"{', '.join(sorted(unknown))} is not known")

    def load_state(self, tensors: Mapping[str, SliceTensors]) -> None:
        """Take back what `state` gave."""
        self.born = dict(tensors.get("born", {}))


def _direction(moments: Mapping[str, Tensor], group: Mapping[str, Any], age: Tensor) -> Tensor:
    """Adam's step for a learning rate of 1, for weights of `age` steps."""
    first, second = (_correction(beta, age) for beta in group["betas"])
    return moments["exp_avg"] / first / ((moments["exp_avg_sq"] / second).sqrt() + group["eps"])


def _correction(beta: float, age: Tensor) -> Tensor:
    """1 - beta^age; in fp32 the difference itself would lose its digits for a beta near 1."""
    return -torch.expm1(age * (math.log(beta) if beta else -math.inf))
