"""Absent weights stay absent: projection after every step, and the audit that proves it.

Three lines of defence, each enough in exact arithmetic, all kept:

1. The gradient of an absent weight is removed inside the layer's backward (sparse/masked.py), so
   DeepSpeed reduces, clips and accumulates zeros. With zero moments, zero is then a fixed point of
   every elementwise optimizer (AdamW's decay: 0 - lr * wd * 0 = 0).
2. After each step of the optimizer, and before DeepSpeed copies masters to low precision, masters
   and moments are projected onto the topology, by selection (0 * NaN would be NaN).
3. The audit counts what is not zero in every copy, on every rank. It never repairs.

Packed storage keeps nothing absent: there is nothing to project, and the audit counts the matrices
that are made of packed values, where such a matrix is kept.

Weights that are held (optim/holding.py) go through the same three lines, with the value that they
had when the hold began in place of zero. Role `update` is a hold of all absent weights.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from sparsecl import dist
from sparsecl.errors import InvariantError
from sparsecl.optim.holding import Holds
from sparsecl.optim.slice import Slice
from sparsecl.optim.slices import Slices, is_counted
from sparsecl.optim.zeroing import BITS, zero_absent


@dataclass(frozen=True)
class _Guarded:
    """One slice with elements that are absent or held."""

    item: Slice
    dead: torch.Tensor  # bool [numel] on the master's device, True = may not move
    anchor: torch.Tensor | None  # fp32 [numel], the values of a hold; None = absent, so zero

    @property
    def mark(self) -> str:
        return "" if self.anchor is None else "held "

    def project(self, moments: Mapping[str, torch.Tensor]) -> None:
        master = self.item.master
        if self.anchor is None:
            zero_absent((master, *moments.values()), self.dead)
        else:
            torch.where(self.dead, self.anchor, master, out=master)
            zero_absent(moments.values(), self.dead)

    def count(self, tensor: torch.Tensor, anchored: bool) -> torch.Tensor:
        """Entries of `tensor` [numel] that differ from what they must be; NaN differs."""
        if anchored and self.anchor is not None:
            expected = self.anchor.to(device=tensor.device, dtype=tensor.dtype)
        else:
            expected = torch.zeros((), device=tensor.device, dtype=tensor.dtype)
        wrong = tensor != expected
        if anchored and self.anchor is not None:  # to the bit: -0 is not +0
            bits = BITS[tensor.element_size()]
            wrong = tensor.view(bits) != expected.view(bits)
        return (wrong & self.dead.to(tensor.device)).sum()


def _by_stepped(items: Iterable[Slice]) -> Iterable[list[Slice]]:
    """The slices of each tensor that the optimizer steps, in the order in which they lie there."""
    found: dict[int, list[Slice]] = {}
    for item in sorted(items, key=lambda item: item.stepped_start):
        found.setdefault(id(item.stepped), []).append(item)
    return found.values()


def _joined(
    items: Sequence[Slice], masks: Sequence[torch.Tensor]
) -> tuple[_Guarded, Sequence[torch.Tensor]]:
    """What lies between the first and the last of some slices of one tensor, as one slice, with its
    mask; and the views of it that are the masks of the slices.

    ZeRO steps all matrices of a group as one tensor. Its projection is then one kernel for each
    copy in place of one for each matrix, which are too small to keep a GPU busy; the price is the
    mask once more, a byte for each cell of this rank's shard.
    """
    first, last = items[0], items[-1]
    if first is last:
        return _Guarded(first, masks[0], None), masks
    begin = first.stepped_start
    size = last.stepped_start + last.numel - begin
    whole = torch.zeros(size, dtype=torch.bool, device=masks[0].device)
    places = (
        slice(item.stepped_start - begin, item.stepped_start - begin + item.numel) for item in items
    )
    parts = [whole[place].copy_(mask) for place, mask in zip(places, masks, strict=True)]
    return _Guarded(replace(first, numel=size), whole, None), parts


Edit = Callable[[Collection[Slice]], None]


class MaskGuard:
    """Keeps absent weights at zero and held ones as they are, and audits both."""

    def __init__(
        self,
        slices: Slices,
        dead: Mapping[str, torch.Tensor],
        *,
        count_expansions: Callable[[], Mapping[str, torch.Tensor]] = dict,
    ) -> None:
        """Take the masks and hook the optimizer. Local.

        Args:
            slices: this rank's slices.
            dead: parameter name -> bool [local shape], True = absent; dense and packed layers, of
                which nothing absent is kept, are left out.
            count_expansions: nonzero absent cells by parameter name of matrices that are kept
                beside packed values; asked at each audit.
        """
        self.slices = slices
        self.holds = Holds(slices)
        self.edits: list[Edit] = []
        """Called with the slices that have just stepped, before they are projected."""

        self.keeps_before = False
        """`edits` ask for masters as they were before the step."""

        self._before: dict[str, torch.Tensor] = {}
        self.checks = 0
        self.nonzero = 0
        """Entries that were not what they must be, of absent and of held weights."""

        self.held = 0
        """Weights of the model that were held at the last audit."""

        self._grad_counts: dict[tuple[str, str], torch.Tensor] = {}
        self._dead, self._count_expansions = dead, count_expansions
        self.refresh()
        self._hooks = (
            slices.optimizer.register_step_pre_hook(self._before_step),
            slices.optimizer.register_step_post_hook(self._after_step),
        )

    def refresh(self) -> None:
        """Take masks and holds again: one of them has changed. Local."""
        self._absent: list[_Guarded] = []
        self._joined: list[_Guarded] = []  # the same, what is stepped as one in one
        for items in _by_stepped(item for item in self.slices if item.name in self._dead):
            masks = [item.part(self._dead[item.name]).to(item.master.device) for item in items]
            whole, parts = _joined(items, masks)
            self._absent += [_Guarded(*each, None) for each in zip(items, parts, strict=True)]
            self._joined.append(whole)
        self._take_holds()

    def _take_holds(self) -> None:
        held = [_Guarded(*each) for each in self.holds]
        self._guarded, self._projected = self._absent + held, self._joined + held

    @torch.no_grad()
    def refresh_mask(self, name: str) -> None:
        """Take the mask of one parameter again, which has changed in place. Local."""
        for guarded in self._guarded:
            if guarded.item.name == name and guarded.anchor is None:
                guarded.dead.copy_(guarded.item.part(self._dead[name]))

    @torch.no_grad()
    def hold(self, name: str, where: torch.Tensor | None, owner: str) -> None:
        """Hold elements of a parameter where they are; see methods/context.py. Local.

        Args:
            where: bool, of the shape of the tp-local parameter, or None.
        """
        item = self.slices.find(name)
        if item is None:
            return
        part = None if where is None else item.part(where)
        self.holds.hold(item, part, owner)
        held = self.holds.find(name)
        if held is not None:
            zero_absent(self.slices.moments(item).values(), held)
        self._take_holds()

    def release(self) -> None:
        """End all holds of methods. Local."""
        self.holds.release()
        self._take_holds()

    @torch.no_grad()
    def still(self, *, absent: bool = False) -> bool:
        """Set the gradients of held elements to zero. Local; returns True if there are any.

        Args:
            absent: also of absent ones, and of those that the topology holds, which no backward
                pass reaches: a method has added to gradients.
        """
        found = False
        if absent:
            for guarded in self._guarded:
                gradient = self.slices.grad(guarded.item)
                if gradient is not None:
                    zero_absent((gradient,), guarded.dead.to(gradient.device))
            return bool(self._guarded)
        for item, held in self.holds.moved_by_gradient():
            gradient = self.slices.grad(item)
            if gradient is not None:
                zero_absent((gradient,), held.to(gradient.device))
                found = True
        return found

    @torch.no_grad()
    def clear(self, values: Mapping[str, torch.Tensor]) -> None:
        """Set to zero what is absent or held of other tensors, by name and of the slices' shape.
        Local."""
        for guarded in self._guarded:
            if guarded.item.name in values:
                value = values[guarded.item.name]
                zero_absent((value,), guarded.dead.to(value.device))

    @property
    def masks(self) -> list[torch.Tensor]:
        """bool, of absent weights, as they are projected."""
        return [guarded.dead for guarded in self._joined]

    def close(self) -> None:
        """Remove the hooks from the optimizer."""
        for hook in self._hooks:
            hook.remove()

    def before(self, item: Slice) -> torch.Tensor:
        """fp32 [numel], the master before the step; inside `edits` only. Local."""
        return self._before[item.name]

    def _stepped(self, optimizer: torch.optim.Optimizer) -> set[int]:
        """ids of the tensors of one step: ZeRO steps one group at a time."""
        return {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}

    @torch.no_grad()
    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self.keeps_before:
            stepped = self._stepped(optimizer)
            items = (item for item in self.slices if id(item.stepped) in stepped)
            self._before = {item.name: item.master.clone() for item in items}

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        stepped = self._stepped(optimizer)
        items = [item for item in self.slices if id(item.stepped) in stepped] if self.edits else []
        for edit in self.edits:
            edit(items)
        self._before = {}
        for guarded in self._projected:
            if id(guarded.item.stepped) in stepped:
                guarded.project(self.slices.moments(guarded.item))

    def _num_held(self) -> int:
        """Held weights that this rank counts: replicas over dp and tp count once."""
        slices = self.slices
        counts = slices.partitioned or dist.dp_rank() == 0
        return sum(self.holds.count(i) for i in slices if counts and is_counted(i.param))

    @torch.no_grad()
    def audit_gradients(self) -> None:
        """Count nonzero gradients of absent and held weights, for the next `audit`. Local.

        Call between backward and step: gradients do not exist at other times.
        """
        for guarded in self._guarded:
            gradient = self.slices.grad(guarded.item)
            if gradient is not None:
                key = (guarded.item.name, f"{guarded.mark}gradient")
                self._grad_counts[key] = guarded.count(gradient, anchored=False)

    @torch.no_grad()
    def counts(self) -> dict[tuple[str, str], torch.Tensor]:
        """By (parameter, copy): this rank's absent and held entries that are not what they must
        be, with those of the last `audit_gradients`. Local."""
        counts, self._grad_counts = self._grad_counts, {}
        for guarded in self._guarded:
            item, mark = guarded.item, guarded.mark
            counts[item.name, f"{mark}weight"] = guarded.count(item.weight, anchored=True)
            counts[item.name, f"{mark}master"] = guarded.count(item.master, anchored=True)
            for key, moment in self.slices.moments(item).items():
                counts[item.name, f"{mark}{key}"] = guarded.count(moment, anchored=False)
        counts |= {(name, "expansion"): n for name, n in self._count_expansions().items()}
        return counts

    @torch.no_grad()
    def audit(self, step: int) -> int:
        """Count absent and held entries that are not what they must be, in every copy and rank.

        Collective over the world.

        Returns:
            0, always.

        Raises:
            InvariantError: naming layer, copy and rank, if any entry is wrong.
        """
        counts = self.counts()
        total = torch.zeros(2, dtype=torch.int64, device=dist.device())
        for count in counts.values():
            total[0] += count.to(total.device)
        total[1] = self._num_held()
        nonzero, self.held = dist.all_reduce(total).tolist()
        self.checks += 1
        self.nonzero += nonzero
        if nonzero:
            here = [f"{name} ({copy}): {int(n)}" for (name, copy), n in counts.items() if n]
            found = [
                f"rank {rank}: {'; '.join(lines)}"
                for rank, lines in enumerate(dist.gather_objects(here))
                if lines
            ]
            raise InvariantError(
                f"audit at step {step}: {nonzero} entries are not what they must be: absent ones "
                "zero, held ones where they were. " + " | ".join(found)
            )
        return nonzero
