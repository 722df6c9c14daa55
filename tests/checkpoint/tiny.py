"""A checkpoint of a few hundred bytes, written by one rank or by two, and what must be in it."""

import os
import signal
import traceback
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsecl import dist
from sparsecl.checkpoint.manifest import ParameterEntry, Piece, verify
from sparsecl.checkpoint.publish import LATEST, candidates, newest_valid, publish
from sparsecl.checkpoint.reader import Reader
from sparsecl.topology.layer import LayerTopology

# Six live weights of 32, one row without any.
TOPOLOGY = LayerTopology("up", 4, 8, np.array([0, 3, 9, 10, 24, 31]))
PARAMETERS = {
    "up.weight": ParameterEntry((4, 8), 0, True),
    "norm": ParameterEntry((3,), -1),
}


def parts(value: int, rank: int, num_ranks: int) -> tuple[dict[str, torch.Tensor], list[Piece]]:
    """What a rank writes: its share of the live weights, and rank 0 the norm."""
    live = torch.arange(6.0) + value
    size = 6 // num_ranks
    file = f"rank_{rank}.safetensors"
    tensors = {"master/up.weight": live[rank * size :][:size].clone()}
    pieces = [Piece(file, "master", "up.weight", 0, rank * size, size)]
    if rank == 0:
        tensors["master/norm"] = torch.full((3,), float(value))
        pieces.append(Piece(file, "master", "norm", 0, 0, 3))
    return tensors, pieces


def save(
    root: Path, step: int, value: int | None = None, *, keep: int = 9, num_ranks: int = 1
) -> Path:
    """Publish a checkpoint whose tensors are made of `value` (default: the step)."""
    value = step if value is None else value
    tensors, pieces = parts(value, dist.rank(), num_ranks)
    state = {"value": value}
    live = {"up.weight": TOPOLOGY}
    return publish(root, step, tensors, pieces, PARAMETERS, state, keep=keep, topologies=live)


def value_of(folder: Path) -> int:
    """The value that a whole checkpoint was made of; everything in it must agree."""
    value = verify(folder).state["value"]
    reader = Reader(folder)
    dense = torch.zeros(4, 8)
    dense[torch.from_numpy(TOPOLOGY.mask())] = torch.arange(6.0) + value
    assert torch.equal(reader.read("master", "up.weight"), dense)
    assert reader.read("master", "norm").tolist() == [value] * 3
    return value


def check_law(root: Path, allowed: set[int]) -> Path:
    """What must hold after any death: one newest checkpoint, whole, and none that is not.

    Args:
        allowed: the value of the newest is one of them.
    """
    found, notes = newest_valid(root)
    assert found is not None
    assert value_of(found) in allowed
    for folder in candidates(root):
        verify(folder)
    if (root / LATEST).exists():
        named = root / (root / LATEST).read_text().removesuffix("\n")
        # Between two renames of the same step, `latest` names what is not there for a moment.
        assert named.is_dir() or found.name == f"{named.name}.old", notes
    return found


def fork_ranks(num_ranks: int, body: Callable[[int], Any], log: Path) -> list[int]:
    """Run `body(rank)` in forked processes as the ranks of one run; their wait statuses.

    The ranks talk through pipes in place of a process group: a group costs a tenth of a second, a
    fork a hundredth, and what is tested here is the disk. A rank whose peer dies leaves with 76.
    """
    ends = Pipe() if num_ranks == 2 else ()
    children = []
    for rank in range(num_ranks):
        child = os.fork()
        if child == 0:
            _be_rank(rank, ends, body, log)
        children.append(child)
    for end in ends:
        end.close()
    return [os.waitpid(child, 0)[1] for child in children]


def _be_rank(rank: int, ends: Any, body: Callable[[int], Any], log: Path) -> None:
    def gather(value: Any, *, group: Any = None) -> list[Any]:
        if not ends:
            return [value]
        try:
            ends[rank].send(value)
            other = ends[rank].recv()
        except (EOFError, OSError):
            os._exit(76)
        return [value, other] if rank == 0 else [other, value]

    code = 1
    try:
        dist.rank = lambda: rank
        dist.gather_objects = gather
        if ends:
            ends[1 - rank].close()
        body(rank)
        code = 0
    except BaseException as error:
        code = getattr(error, "exit_code", 1)
        log.write_text(str(error) if code > 1 else traceback.format_exc())
    finally:
        os._exit(code)


def was_killed(status: int, by: signal.Signals = signal.SIGKILL) -> bool:
    """True if a process ended by that signal."""
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == by
