"""Faults on purpose: what `launch/train.py --inject SPEC` makes happen, and where.

A run passes named points (POINTS below). A SPEC says what goes wrong at one of them:

    ACTION[=ARG]@POINT[:N | :N-M | ~P][/rank=R]

    kill@save.shard_written:2/rank=1   SIGKILL, the second time that rank 1 has written a shard
    nan@gradient:7                     one gradient of step 7 becomes NaN, on every rank
    nan@gradient:7-9                   the same in steps 7, 8 and 9
    sleep=30@step:5/rank=0             rank 0 does nothing for 30 s before step 5
    full@save.shard                    the disk is full at the first shard
    kill@*~0.01                        SIGKILL at any point, each time with probability 0.01

N counts the passages of a point from 1, in each process anew; at a point that belongs to an
optimizer step it is that step. Without N, the first passage. A fault with one N, or without,
happens once; those of a range and random ones (~P) each time. POINT may end in `*`: all points
that begin so and can have this fault; N then counts their passages together. Without /rank it
happens on every rank.

What is drawn (which passage, tensor, element, bit) comes from the seed, the rank and the SPEC. So a
process that is started again with the same seed draws the same; give each start its own.
Not armed, a point costs one comparison.
"""

import errno
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from sparsecl.config_nodes import suggest
from sparsecl.errors import UserError
from sparsecl.seeding import stream

# Point -> where it is.
POINTS: dict[str, str] = {
    "step": "before an optimizer step",
    "batch": "a batch has been read",
    "loss": "the loss of a batch is known (tensors)",
    "gradient": "gradients are complete, before the optimizer uses them (tensors)",
    "weights": "the optimizer has stepped (tensors)",
    "evaluate": "before an evaluation",
    "phase_end": "a phase is over, its results not yet written",
    "save.begin": "a save begins, nothing is on disk",
    "save.shard": "a rank is about to write a file (rank 0 writes the topologies first)",
    "save.shard_written": "a rank has written a file, which is not yet synced (file)",
    "save.synced": "a rank's file is synced (file)",
    "save.reported": "every rank has told size and digest of its files (file)",
    "save.manifest": "the manifest is written and synced, the folder still temporary (file)",
    "save.renamed": "the folder has its name; `latest` does not know it yet (file)",
    "save.latest": "`latest` names it; nothing old has been removed (file)",
    "save.retained": "what retention gives up is gone (file)",
}
TENSOR_POINTS = frozenset({"loss", "gradient", "weights"})
FILE_POINTS = frozenset(
    f"save.{name}"
    for name in ("shard_written", "synced", "reported", "manifest", "renamed", "latest", "retained")
)
SAVE_POINTS = frozenset(name for name in POINTS if name.startswith("save."))
_EVERYWHERE = frozenset(POINTS)

_GRAMMAR = re.compile(
    r"(?P<action>[a-z0-9]+)(=(?P<argument>[^@]*))?@(?P<point>[a-z_.]*\*?)"
    r"(:(?P<first>\d{1,18})(-(?P<last>\d{1,18}))?|~(?P<chance>[^/]*))?"
    r"(/rank=(?P<rank>\d{1,9}))?"
)
_SHAPE = "ACTION[=ARG]@POINT[:N | :N-M | ~P][/rank=R], for example nan@gradient:7/rank=0"


class InjectedError(RuntimeError):
    """What `raise` raises: a bug in the middle of a run."""


@dataclass(frozen=True)
class Action:
    """One kind of fault."""

    meaning: str
    points: frozenset[str]
    """Where it can happen."""

    argument: str = ""
    """What ARG is; empty: there is none."""

    default: float | None = None
    """ARG if it is left out; None: it must be given. May lie outside, to tell "left out"."""

    low: float = 0.0
    high: float = 0.0
    """ARG must lie in [low, high]."""

    whole: bool = False
    """ARG must be a whole number."""


ACTIONS: dict[str, Action] = {
    "kill": Action("SIGKILL to itself", _EVERYWHERE),
    "stop": Action("SIGSTOP to itself: it hangs", _EVERYWHERE),
    "term": Action("SIGTERM to itself", _EVERYWHERE),
    "usr1": Action("SIGUSR1 to itself", _EVERYWHERE),
    "hup": Action("SIGHUP to itself", _EVERYWHERE),
    "int": Action("SIGINT to itself", _EVERYWHERE),
    "exit": Action("end at once, without cleaning up", _EVERYWHERE, "exit code", 1, 0, 255, True),
    "raise": Action("an exception that nobody expects", _EVERYWHERE),
    "sleep": Action("do nothing for a while", _EVERYWHERE, "seconds", None, 0, 1e6),
    "nan": Action("one element becomes NaN", TENSOR_POINTS),
    "inf": Action("one element becomes infinite", TENSOR_POINTS),
    "spike": Action("one element is multiplied", TENSOR_POINTS, "factor", 1000, -1e30, 1e30),
    # Without ARG, a bit that is drawn.
    "flip": Action("one bit of one element flips", TENSOR_POINTS, "bit", -1, 0, 63, True),
    "truncate": Action("a file loses its end", FILE_POINTS, "share that stays", 0.5, 0, 1),
    "full": Action("the disk is full (ENOSPC)", SAVE_POINTS),
    "eio": Action("the disk fails (EIO)", SAVE_POINTS),
}
_SIGNALS = {
    "kill": signal.SIGKILL,
    "stop": signal.SIGSTOP,
    "term": signal.SIGTERM,
    "usr1": signal.SIGUSR1,
    "hup": signal.SIGHUP,
    "int": signal.SIGINT,
}
_OS_ERRORS = {"full": errno.ENOSPC, "eio": errno.EIO}


@dataclass(frozen=True)
class Fault:
    """A parsed SPEC."""

    spec: str
    action: str
    argument: float
    points: frozenset[str]
    together: bool
    """`points` came from a pattern, so their passages are counted together."""

    first: int
    last: int
    """Passages (or steps) [first, last] at which it happens; 0, 0 = the first, whichever it is."""

    chance: float | None
    """Probability at each passage, in place of `first` and `last`."""

    rank: int | None
    """None = all."""

    @property
    def once(self) -> bool:
        """It happens at most once in a process."""
        return self.chance is None and self.first == self.last


def parse(spec: str) -> Fault:
    """Read one SPEC.

    Raises:
        UserError: with the part that is wrong and the way out.
    """
    found = _GRAMMAR.fullmatch(spec)
    if found is None:
        raise UserError(f"--inject {spec!r}: write {_SHAPE}")
    name, pattern = found["action"], found["point"]
    if name not in ACTIONS:
        raise UserError(f"--inject {spec}: unknown action {name}; {suggest(name, list(ACTIONS))}")
    first, last = int(found["first"] or 0), int(found["last"] or found["first"] or 0)
    if found["first"] is not None and first == 0:
        raise UserError(f"--inject {spec}: passages and steps are counted from 1")
    if last < first:
        raise UserError(f"--inject {spec}: the range {first}-{last} is empty; write {last}-{first}")
    chance = None
    if found["chance"] is not None:
        chance = _number(spec, "probability", found["chance"], 0.0, 1.0)
    return Fault(
        spec=spec,
        action=name,
        argument=_argument(spec, ACTIONS[name], found["argument"]),
        points=_points(spec, name, pattern),
        together=pattern.endswith("*"),
        first=first,
        last=last,
        chance=chance,
        rank=None if found["rank"] is None else int(found["rank"]),
    )


def arm(specs: Sequence[str], *, seed: int, rank: int) -> None:
    """Prepare the faults of this process, in place of those armed before. Local.

    Args:
        rank: world rank of this process; faults of other ranks are checked and left out.

    Raises:
        UserError: if a SPEC is wrong; then nothing changes.
    """
    global _armed
    faults = [parse(spec) for spec in specs]
    mine = [fault for fault in faults if fault.rank in (None, rank)]
    _armed = _Armed(mine, seed, rank) if mine else None


def disarm() -> None:
    """No faults from here on. Local."""
    global _armed
    _armed = None


def armed() -> bool:
    """Whether a fault can happen in this process: what only a fault needs may be left out else."""
    return _armed is not None


def point(name: str, **objects: Any) -> None:
    """Pass a named point; a fault armed for it happens here.

    Args:
        name: a key of POINTS.
        objects: what a fault can touch or needs. `step`: the optimizer step that N means;
            `tensors`: a mapping or a sequence of tensors, changed in place; `path`: a file.
    """
    if _armed is not None:
        _armed.passed(name, objects)


class _Armed:
    """The faults of one process and how often each point was passed.

    Points are also passed by the thread that saves in the background, hence the lock.
    """

    def __init__(self, faults: Sequence[Fault], seed: int, rank: int) -> None:
        self.rank = rank
        self.faults = [
            (fault, stream(seed, "fault", rank, place, fault.spec))
            for place, fault in enumerate(faults)
        ]
        self.passages: dict[str, int] = {}
        self.spent: set[int] = set()
        self.seen: dict[int, int] = {}
        self.lock = threading.Lock()

    def passed(self, name: str, objects: Mapping[str, Any]) -> None:
        """Count the passage and let happen what is due."""
        assert name in POINTS, name
        with self.lock:
            self.passages[name] = self.passages.get(name, 0) + 1
            place = f"passage {self.passages[name]} of {name}"
            due = [
                (fault, *_aim(fault, draws, objects))
                for key, (fault, draws) in enumerate(self.faults)
                if name in fault.points and self._due(key, fault, draws, objects.get("step"))
            ]
        if "step" in objects:
            place += f", step {objects['step']}"
        for fault, what, act in due:
            line = f"sparsecl: injected {fault.spec}: {what} at {place}, rank {self.rank}"
            print(line, file=sys.stderr, flush=True)
            act()

    def _due(self, key: int, fault: Fault, draws: np.random.Generator, step: int | None) -> bool:
        if fault.chance is not None:
            return bool(draws.random() < fault.chance)
        self.seen[key] = self.seen.get(key, 0) + 1
        if key in self.spent:
            return False
        number = self.seen[key] if step is None or fault.together else step
        happens = fault.last == 0 or fault.first <= number <= fault.last
        if happens and fault.once:
            self.spent.add(key)
        return happens


_armed: _Armed | None = None


def _number(spec: str, what: str, text: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise UserError(f"--inject {spec}: {what} {text!r} must be a number in [{low:g}, {high:g}]")
    return value


def _argument(spec: str, action: Action, text: str | None) -> float:
    if not action.argument:
        if text is not None:
            raise UserError(f"--inject {spec}: this action takes no =ARG; leave ={text} out")
        return 0.0
    if text is None:
        if action.default is None:
            raise UserError(f"--inject {spec}: write =ARG after the action ({action.argument})")
        return action.default
    value = _number(spec, action.argument, text, action.low, action.high)
    if action.whole and value != int(value):
        raise UserError(f"--inject {spec}: {action.argument} {text} must be a whole number")
    return value


def _points(spec: str, name: str, pattern: str) -> frozenset[str]:
    """The points that `pattern` means for action `name`."""
    possible = ACTIONS[name].points
    if pattern.endswith("*"):
        named = frozenset(point for point in POINTS if point.startswith(pattern[:-1]))
    else:
        named = frozenset({pattern} & set(POINTS))
    if not named:
        raise UserError(f"--inject {spec}: no point {pattern}; {suggest(pattern, list(POINTS))}")
    if not named & possible:
        known = ", ".join(point for point in POINTS if point in possible)
        raise UserError(f"--inject {spec}: {name} cannot happen there; points for it: {known}")
    return named & possible


def _aim(
    fault: Fault, draws: np.random.Generator, objects: Mapping[str, Any]
) -> tuple[str, Callable[[], Any]]:
    """What will happen, in words, and the function that does it."""
    name, argument = fault.action, fault.argument
    meaning = ACTIONS[name].meaning
    if name in _SIGNALS:
        return meaning, lambda: os.kill(os.getpid(), _SIGNALS[name])
    if name == "exit":
        return f"{meaning}, code {argument:g}", lambda: os._exit(int(argument))
    if name == "sleep":
        return f"{meaning}, {argument:g} s", lambda: time.sleep(argument)
    if name == "raise":
        return meaning, lambda: _raise(InjectedError(f"injected by {fault.spec}"))
    if name in _OS_ERRORS:
        code = _OS_ERRORS[name]
        return meaning, lambda: _raise(OSError(code, os.strerror(code)))
    if name == "truncate":
        return _plan_truncation(argument, objects.get("path"))
    return _plan_change(fault, draws, objects.get("tensors", ()))


def _raise(error: Exception) -> NoReturn:
    raise error


def _plan_truncation(share: float, path: Path | None) -> tuple[str, Callable[[], Any]]:
    if path is None or not Path(path).is_file():
        return "no file to truncate", lambda: None
    size = Path(path).stat().st_size
    kept = int(size * share)
    return f"{path} from {size} to {kept} bytes", lambda: os.truncate(path, kept)


def _plan_change(
    fault: Fault, draws: np.random.Generator, tensors: Any
) -> tuple[str, Callable[[], Any]]:
    """One element, each of all tensors as likely as any other."""
    named = tensors.items() if isinstance(tensors, Mapping) else enumerate(tensors)
    listed = [(key, tensor) for key, tensor in named if tensor.numel()]
    if not listed:
        return "no element to change", lambda: None
    number = int(draws.integers(sum(tensor.numel() for _, tensor in listed)))
    while number >= listed[0][1].numel():
        number -= listed.pop(0)[1].numel()
    key, tensor = listed[0]
    index = tuple(int(k) for k in np.unravel_index(number, tensor.shape)) if tensor.dim() else ()
    bit = int(draws.integers(8 * tensor.element_size()))
    if fault.action == "flip" and fault.argument >= 0:
        bit = int(fault.argument) % (8 * tensor.element_size())
    old = tensor.detach()[index].clone()
    new = _changed(old, fault, bit)
    what = f"element {list(index)} of tensor {key} from {old.item():.6g} to {new.item():.6g}"
    return what, lambda: tensor.detach().__setitem__(index, new)


def _changed(old: Any, fault: Fault, bit: int) -> Any:
    """The new value of an element, a tensor [] of its dtype."""
    import torch  # here, so that a script can check its SPECs without waiting for torch

    if fault.action != "flip":
        new = {"nan": math.nan, "inf": math.inf, "spike": fault.argument * old.item()}
        return torch.full_like(old, new[fault.action])
    raw = old.reshape(1).cpu().view(torch.uint8).clone()
    raw[bit // 8] ^= 1 << (bit % 8)
    return raw.view(old.dtype).reshape(()).to(old.device)
