"""What every guard can tell: how many absent entries are not zero, on all ranks.

It asks torch's process group and no other room of the package: a plain loop needs neither DeepSpeed
nor Megatron.
"""

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor

from sparsecl.errors import InvariantError

Counts = Mapping[tuple[str, str], Tensor]
"""(layer, copy) -> absent entries of this rank that are not zero."""


@dataclass(frozen=True)
class Audit:
    """Absent entries that are not zero (NaN is not), summed over all ranks: replicas count each."""

    weights: int
    """Of weights, and of the fp32 masters that DeepSpeed keeps."""

    gradients: int
    """Of gradients, where they exist when the audit is made: between backward and zero_grad; under
    DeepSpeed between the last backward and the step."""

    state: int
    """Of the optimizer's moments, and whatever else it keeps for each weight."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.state


class Guard(abc.ABC):
    """Keeps the absent weights of a model at zero until it is closed."""

    @abc.abstractmethod
    def close(self) -> None:
        """Take the guard off the optimizer. Masks, and the selection of gradients, stay."""

    @abc.abstractmethod
    def counts(self) -> Counts:
        """What this rank has that is not zero. Local."""

    @torch.no_grad()
    def audit(self, *, strict: bool = False) -> Audit:
        """Count absent entries that are not zero, in every copy. It repairs nothing.

        Collective over the world where there is a process group: call it on every rank.

        Args:
            strict: raise if there is any.

        Raises:
            InvariantError: naming rank, layer and copy.
        """
        counts = self.counts()
        total = torch.zeros(3, dtype=torch.int64, device=_device())
        for (_, copy), count in counts.items():
            total[_COLUMNS.get(copy, 2)] += count.to(total.device)
        if torch_dist.is_initialized():
            torch_dist.all_reduce(total)
        found = Audit(*total.tolist())
        if strict and found.total:
            here = [f"{name} ({copy}): {int(n)}" for (name, copy), n in counts.items() if n]
            places = [
                f"rank {rank}: {'; '.join(lines)}"
                for rank, lines in enumerate(_gathered(here))
                if lines
            ]
            raise InvariantError(
                f"audit: {found.total} absent entries are not zero. {' | '.join(places)}"
            )
        return found


_COLUMNS = {"weight": 0, "master": 0, "gradient": 1}  # every other copy is state


def _device() -> torch.device:
    """Where the process group can sum: NCCL knows no memory of the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _gathered(lines: list[str]) -> list[list[str]]:
    """The lines of every rank. Collective over the world."""
    if not torch_dist.is_initialized():
        return [lines]
    found: list[Any] = [None] * torch_dist.get_world_size()
    torch_dist.all_gather_object(found, lines)
    return found
