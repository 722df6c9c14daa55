"""OSFT: later phases train what the largest singular directions of every linear leave free.

Source: Nayak et al. 2025, "Sculpting Subspaces" (adaptive SVD, OSFT), arXiv 2504.07097, and its
public code (Red-Hat-AI-Innovation-Team: orthogonal-subspace-learning, mini_trainer). Before a new
domain W = U S V of every linear, of which the k largest directions are held and the rest is trained
at a right angle to them. G is the gradient:

    G  <- (I - U_k U_k^T) G (I - V_k^T V_k)
    W  <- U_k S_k V_k + (I - U_k U_k^T) W (I - V_k^T V_k)    after the optimizer's step

The second line is what mini_trainer does to parameters: under Adam a projected gradient gives no
projected step. It also undoes the weight decay of what is held, and no rounding adds up.

k = floor(r rank). Rule `fixed`: r = share. Rule `adaptive`: r = least + I (most - least), clamped
to [0, 1], I = |mean of cos(x, W x)| over tokens, divided by the mean over all linears; where x and
W x differ in length, their first min(O, I) entries, as in the code.

Differs: W is trained, not factors of it, so the optimizer sees the gradient of W and nothing is
added to the model. The first phase trains the base (`from_start` holds directions of init_from's
model in it too). Clipping comes after the projection of the gradient. Own reading: the samples are
tokens of the phase before; the magnitude of the mean is taken, since in small models signs differ
and there is no mean to divide by. `least` and `most` are from memory of the paper, unverified.

Dense models only. The projection needs the whole matrix, and ZeRO's ranks hold slices: so both
lines are collective, the second one in `after_step`, on masters of a step that was applied.

O = outputs, I = inputs (global), k = directions held.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsecl.methods.adapters.config import OsftConfig
from sparsecl.methods.base import Method, Order
from sparsecl.methods.cl.again import no_way_on
from sparsecl.methods.context import MethodContext
from sparsecl.methods.model_side import ModelSide


class Directions(NamedTuple):
    """What is held of a linear, fp32: U [O, k], S [k], V [k, I]; the same on all ranks."""

    u: Tensor
    s: Tensor
    v: Tensor

    def apart(self, matrix: Tensor) -> Tensor:
        """The part of a matrix [O, I] at a right angle to these on both sides."""
        left = matrix - self.u @ (self.u.T @ matrix)
        return left - (left @ self.v.T) @ self.v

    def beside(self, matrix: Tensor) -> Tensor:
        """What is held as it was, and a matrix [O, I] only where it is at a right angle to it."""
        return (self.u * self.s) @ self.v + self.apart(matrix)

    def moved(self, matrix: Tensor) -> float:
        """How far a matrix is from U^T W V^T = S, over the norm of S."""
        inside = self.u.T @ matrix @ self.v.T
        return float((inside - self.s.diag()).norm() / self.s.norm().clamp(min=1e-30))


class Osft(Method):
    """Holds the largest directions of the weights that a phase begins with."""

    name = "osft"
    order = Order.PROJECT
    config: OsftConfig

    def __init__(self, config: OsftConfig) -> None:
        super().__init__(config)
        self.ranks: dict[str, int] = {}
        """Parameter -> min(O, I), of every linear."""

        self.held: dict[str, Directions] = {}
        """Of the phase at hand; a linear without any trains freely. They must survive a resume bit
        for bit: the weights of the phase's begin, of which they were made, are gone."""

    def attach(self, model: ModelSide, num_phases: int) -> None:
        for layer, linear in model.linears().items():
            shape = linear.shape
            self.ranks[f"{layer}.weight"] = min(shape.out_features, shape.in_features)

    def phase_start(self, context: MethodContext) -> None:
        """Take the largest directions of every matrix. Collective over the world."""
        for name in self.held:
            context.hold(name, None, owner=self.name)
        self.held = {}
        if context.progress.phase == 0 and not self.config.from_start:
            return
        for name, share in self.shares(context).items():
            # 0.8 is 0.1 + (0.8 - 0.1) less a rounding.
            num = math.floor(share * self.ranks[name] + 1e-6)
            if num:
                self.held[name] = largest_directions(context.matrix(name), num)
        self.resumed(context)

    def resumed(self, context: MethodContext) -> None:
        """A matrix of which every direction is held does not move by a bit."""
        for name in self._whole():
            where = torch.ones(context.shapes()[name], dtype=torch.bool)
            context.hold(name, where, owner=self.name)

    def began_anew(self, context: MethodContext) -> None:
        progress = context.progress
        if progress.phase_step and (progress.phase or self.config.from_start):
            raise no_way_on(self.name, "which directions the weights had as the phase began")

    def after_backward(self, context: MethodContext) -> None:
        """Project the gradient of every linear. Collective over the world."""
        for name in self._projected():
            item = context.slices.find(name)
            gradient = None if item is None else context.gradient(item)
            matrix = context.matrix(name, {} if gradient is None else {name: gradient})
            part = context.slice_of(name, self._directions(name, matrix).apart(matrix))
            if item is not None and part is not None:
                context.set_gradient(item, part)

    def after_step(self, context: MethodContext, *, applied: bool) -> None:
        """Project what the optimizer has made of it. Collective over the world."""
        for name in self._projected() if applied else ():
            matrix = context.matrix(name)
            new = self._directions(name, matrix).beside(matrix)
            context.write(name, context.local_of(name, new))

    def figures(self, context: MethodContext) -> Mapping[str, float]:
        """Of the phase that ends.

        Returns:
            rank: directions held, the mean of the linears; capacity: these over all, summed over
            the linears; left: the rest; moved: how far what is held has moved, in norm over its
            own, of the linear in which it is most.
        """
        held = [len(one.s) for one in self.held.values()]
        capacity = sum(held) / sum(self.ranks.values())
        moved = [0.0]
        for name in self._projected():
            matrix = context.matrix(name)
            moved.append(self._directions(name, matrix).moved(matrix))
        return {
            "rank": sum(held) / len(self.ranks),
            "capacity": capacity,
            "left": 1.0 - capacity,
            "moved": max(moved),
        }

    def shares(self, context: MethodContext) -> dict[str, float]:
        """What each linear keeps of its rank. Collective over the world."""
        config = self.config
        if config.rule == "fixed":
            return dict.fromkeys(self.ranks, config.share)
        rows = context.rows(max(context.progress.phase - 1, 0), np.arange(config.sequences))
        sums = dict.fromkeys(self.ranks, 0.0)
        for inputs in context.linear_inputs(rows):
            for name in self.ranks:
                sums[name] += likeness(inputs[name], context.matrix(name))
        return adaptive_shares(sums, least=config.least, most=config.most)

    def _projected(self) -> Iterator[str]:
        """Linears of which some is held, and some is not; the same order on all ranks."""
        whole = set(self._whole())
        return (name for name in self.ranks if name in self.held and name not in whole)

    def _whole(self) -> list[str]:
        return [name for name, one in self.held.items() if len(one.s) == self.ranks[name]]

    def _directions(self, name: str, matrix: Tensor) -> Directions:
        """What is held, where the matrix is."""
        if self.held[name].u.device != matrix.device:  # as a checkpoint has given it
            self.held[name] = Directions(*(part.to(matrix.device) for part in self.held[name]))
        return self.held[name]

    def arrays(self) -> Mapping[str, Tensor]:
        return {
            f"{name}.{key}": part
            for name, directions in self.held.items()
            for key, part in directions._asdict().items()
        }

    def check_arrays(self, arrays: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        for key, value in arrays.items():
            name, _, part = key.rpartition(".")
            if part not in Directions._fields or not name:
                raise ValueError(f"{key} is not known")
            three = [arrays.get(f"{name}.{field}") for field in Directions._fields]
            if any(one is None for one in three):
                raise ValueError(f"{name}: u, s and v belong together, and one is missing")
            u, s, v = (one for one in three if one is not None)
            sizes = u.dim() == v.dim() == 2 and s.dim() == 1 and u.shape[1] == len(v) == len(s)
            if not sizes or not 0 < len(s) <= min(len(u), v.shape[1]):
                raise ValueError(f"{key}: {list(value.shape)} is not of a linear's directions")
            if value.dtype != torch.float32:
                raise ValueError(f"{key}: {value.dtype} is not fp32")

    def load_arrays(self, arrays: Mapping[str, Tensor]) -> None:
        names = dict.fromkeys(key.rpartition(".")[0] for key in arrays)
        self.held = {
            name: Directions(*(arrays[f"{name}.{key}"] for key in Directions._fields))
            for name in names
        }


def largest_directions(matrix: Tensor, num: int) -> Directions:
    """The `num` largest singular directions of a matrix [O, I], in fp32. Local."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    # Row by row, as a checkpoint gives them back: LAPACK's are column by column, and a product then
    # rounds otherwise.
    parts = (u[:, :num], s[:num], v[:num])
    return Directions(*(part.clone(memory_format=torch.contiguous_format) for part in parts))


def likeness(x: Tensor, matrix: Tensor) -> float:
    """Sum over tokens of cos(x, W x), x [tokens, I] and W [O, I]; of their first min(O, I)
    entries."""
    num = min(matrix.shape)
    found = F.cosine_similarity((x @ matrix.T)[:, :num], x[:, :num], dim=1)
    return float(found.sum(dtype=torch.float64))


def adaptive_shares(sums: Mapping[str, float], *, least: float, most: float) -> dict[str, float]:
    """Share of the rank that each linear keeps, in [0, 1].

    Args:
        sums: of `likeness`, each over the same number of tokens.
    """
    mean = sum(abs(one) for one in sums.values()) / len(sums)
    relative = {name: abs(one) / mean if mean else 1.0 for name, one in sums.items()}
    return {name: min(1.0, least + one * (most - least)) for name, one in relative.items()}
