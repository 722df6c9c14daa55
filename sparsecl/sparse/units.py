"""Hidden units of a network: what they do, who feeds them and whom they feed.

n = units of a group, global; n_local = those of this tensor-parallel rank, a consecutive share. A
model may be many networks side by side (streams/): then what is said of the units has their number
in front, [networks, n].

A group is a module that passes activations on. It is in a model only if a method asked for it
before DeepSpeed took the model, and does nothing until it is armed or gated; both are tensor
operations that torch.compile takes into its graphs.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sparsecl import dist

FreshRows = Callable[[str, NDArray[np.int64], np.random.Generator], NDArray[np.float32]]
"""(parameter, units [k], stream) -> their incoming weights as a model begins, [k, inputs] of the
global matrix, zero where absent; [k] of a bias."""


class UnitGroup(nn.Module):
    """The units of one hidden layer, and a tap on what passes through it."""

    gate: Tensor | None
    """[n_local], 1 = open: multiplies the activations. None = all are open."""

    def __init__(
        self,
        num_units: int,
        *,
        incoming: Sequence[str],
        outgoing: Sequence[str],
        fresh: FreshRows,
        biases: Sequence[str] = (),
        networks: tuple[int, ...] = (),
        columns: int = 1,
    ) -> None:
        """Describe the group. Local.

        Args:
            num_units: n; the tp size divides it.
            incoming: names of the parameters whose rows belong to the units; biases may be among
                them.
            outgoing: names of the matrices whose columns do.
            biases: what is added to the products of `outgoing`, in that order; empty if nothing is.
            networks: (N,) where N networks are side by side in the model, each with such a layer.
            columns: of each matrix of `outgoing` that belong to a unit, side by side.
        """
        super().__init__()
        assert num_units % dist.tp_size() == 0 and len(biases) in (0, len(outgoing))
        self.num_units, self.fresh, self.networks = num_units, fresh, networks
        self.num_columns = columns
        self.incoming, self.outgoing, self.biases = (
            tuple(names) for names in (incoming, outgoing, biases)
        )
        self.armed, self.centred = False, False
        self.register_buffer("gate", None, persistent=False)
        # No buffers: a cast of the model to bf16 would take the sums along.
        shape = (*networks, self.num_local)
        self.sums = torch.zeros(len(SUMS), *shape, device=dist.device())
        self.centre = torch.zeros(shape, device=dist.device())
        self.thinned, self.factors = False, torch.empty(0, self.num_local, device=dist.device())

    @property
    def num_local(self) -> int:
        return self.num_units // dist.tp_size()

    @property
    def local(self) -> slice:
        """Where this rank's units are among all."""
        first = dist.tp_rank() * self.num_local
        return slice(first, first + self.num_local)

    def columns(self, units: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of the matrices of `outgoing`: those of units [k], in their order."""
        each = np.arange(self.num_columns)
        return (units[:, None] * self.num_columns + each).reshape(-1)

    def by_unit(self, of_columns: Tensor) -> Tensor:
        """`by_unit` of the columns of `outgoing`."""
        return by_unit(of_columns, self.num_columns)

    def add_gate(self) -> None:
        """Before DeepSpeed has the model; an open gate changes no bit."""
        if self.gate is None:
            self.gate = torch.ones(self.num_local)

    def arm(self, centre: Tensor | None = None) -> None:
        """From now on add up what passes, until `disarm`. Local.

        Args:
            centre: fp32 [n] of the values that distances are measured from; None = no distances.
        """
        self.armed, self.centred = True, centre is not None
        self.sums.zero_()
        if centre is not None:
            self.centre.copy_(centre[..., self.local])

    def thin(self, factors: Tensor) -> None:
        """In passes of the training mode multiply what passes, until `disarm`: each row of the
        batch by factors of its own, [B, n_local]. Local."""
        self.thinned = True
        if self.factors.shape != factors.shape:
            self.factors = torch.empty_like(factors, device=self.factors.device)
        self.factors.copy_(factors)

    def disarm(self) -> None:
        """What passes from now on is neither added nor thinned; the sums stay."""
        self.armed, self.thinned = False, False

    def forward(self, h: Tensor, spread: bool = False) -> Tensor:
        """Unchanged but for the gate and for thinning, which the tap does not see.

        Args:
            h: [B, ..., n_local], with the networks in front; if spread, [T, B, n_local].
        """
        if self.gate is not None:
            h = h * self.gate.to(h.dtype)  # DeepSpeed leaves buffers in fp32
        if self.armed:
            self._see(h.detach().flatten(len(self.networks), -2))
        if self.thinned and self.training:
            factors = self.factors.to(h.dtype)
            of_rows = 1 if spread else h.dim() - 1
            h = h * factors.view(*factors.shape[:1], *[1] * (of_rows - 1), -1)
        return h

    @torch.no_grad()
    def _see(self, h: Tensor) -> None:
        """h [tokens, n_local], with the networks in front. A pass that activation checkpointing
        makes again is seen again: tokens and sums alike, so means stay what they are."""
        self.sums[0].add_(h.shape[-2])
        self.sums[1].add_(h.sum(-2, dtype=torch.float32))
        self.sums[2].add_(h.abs().sum(-2, dtype=torch.float32))
        self.sums[3].add_((h > 0).sum(-2))
        if self.centred:
            self.sums[4].add_((h - self.centre.unsqueeze(-2)).abs().sum(-2))


def by_unit(of_columns: Tensor, columns: int) -> Tensor:
    """Sums over the `columns` that each unit has side by side: [..., columns * n] -> [..., n]."""
    return of_columns if columns == 1 else of_columns.unflatten(-1, (-1, columns)).sum(-1)


SUMS = ("tokens", "h", "|h|", "h > 0", "|h - centre|")
"""Rows of `UnitGroup.sums`."""


def unit_groups(model: nn.Module) -> dict[str, UnitGroup]:
    """The groups of a model in module order: layers.3.mlp for the module layers.3.mlp.units."""
    return {
        name.removesuffix(".units"): module
        for name, module in model.named_modules()
        if isinstance(module, UnitGroup)
    }
