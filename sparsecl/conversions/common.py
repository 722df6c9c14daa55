"""What the commands share: finding the checkpoint, a bar, numbers for people."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:  # a mistyped flag must not cost the seconds that torch takes to import
    from sparsecl.checkpoint.canonical import Advance
    from sparsecl.checkpoint.find import Found
    from sparsecl.checkpoint.reader import Reader

CKPT_HELP = "checkpoint folder step_N, or a run folder: its newest valid checkpoint"


def open_checkpoint(path: Path) -> "tuple[Found, Reader]":
    """Find a checkpoint, check all its digests, open it; says on stderr what was chosen."""
    from sparsecl.checkpoint.find import find_checkpoint
    from sparsecl.checkpoint.reader import Reader

    found = find_checkpoint(path)
    for note in found.notes:
        print(note, file=sys.stderr)
    return found, Reader(found.folder)


@contextmanager
def progress(label: str, total: int) -> "Iterator[Advance]":
    """A bar on stderr, counting bytes. In a log file: a line every 15 seconds, if it takes long."""
    wait = 0.3 if sys.stderr.isatty() else 15.0
    with tqdm(
        desc=label,
        total=total,
        unit="B",
        unit_scale=True,
        leave=False,
        delay=wait,
        mininterval=max(0.1, wait if wait > 1 else 0.1),
    ) as bar:
        yield bar.update


def size_text(num_bytes: int) -> str:
    """1234567 -> "1.2 MB"."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes} bytes"
