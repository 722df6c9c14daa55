"""What the run writes: text for people, scalars.jsonl for tools, TensorBoard for the browser.

Only rank 0 writes. scalars.jsonl is the single source of every figure of a report; TensorBoard is
a picture of it. After a resume both continue where the checkpoint left them: lines written after
the checkpoint are cut off, so a resumed run has the same records as one that never stopped.

No failure here stops training. A picture or a line of text that cannot be written is lost, with one
warning; a record waits in memory and is written, in order, as soon as that works again. Only
`sync`, which a checkpoint asks for, says no while records wait: a checkpoint may not claim them.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sparsecl.config_nodes import one_line
from sparsecl.errors import CannotCreateError, DataError, reason, warn
from sparsecl.files import cannot_write, writing
from sparsecl.opening import plain
from sparsecl.seal import Extent, seal
from sparsecl.tensor_board import TensorBoard
from sparsecl.wandb_run import WandbRun

# Lines kept in memory because no fsync has covered them yet; then one is done between checkpoints.
MAX_UNSYNCED = 4096


class RunLog:
    """The writers of one run folder, on rank 0."""

    def __init__(
        self,
        folder: Path,
        *,
        resume_at: Extent | None = None,
        purge_tokens: int = 0,
        wandb: WandbRun | None = None,
    ) -> None:
        """Open the logs.

        Args:
            folder: the run folder; it exists.
            resume_at: what scalars.jsonl held at the checkpoint; None = begin anew.
            purge_tokens: TensorBoard drops events after this many tokens (resume only).
            wandb: gets every curve too; whoever made it closes it.

        Raises:
            DataError: if scalars.jsonl is not what it was at the checkpoint.
            CannotCreateError: if it cannot be opened.
        """
        self.folder = folder
        self.path = folder / "scalars.jsonl"
        self.wandb = wandb
        self._warned: set[str] = set()
        if resume_at is None:
            # Events of an attempt that reached no checkpoint would be drawn over the new ones.
            shutil.rmtree(folder / "tb", ignore_errors=True)
        self._records = RecordFile(self.path, keep=resume_at)
        self._board = TensorBoard(
            folder / "tb", purge=None if resume_at is None else purge_tokens + 1
        )

    def say(self, text: str = "") -> None:
        """Print on stdout, without tearing a progress bar, and append to log.txt."""
        tqdm.write(text)
        sys.stdout.flush()
        try:
            path = self.folder / "log.txt"
            with open(path, "a", encoding="utf-8", opener=plain) as file:
                file.write(text + "\n")
        except (OSError, ValueError) as error:
            self._warn_once(str(self.folder / "log.txt"), error)

    def record(self, kind: str, *, sealed: bool = False, **values: Any) -> None:
        """Append one line to scalars.jsonl. Values are JSON-safe and finite.

        Args:
            sealed: the line vouches for all lines before it; see seal.py.
        """
        line = json.dumps({"kind": kind, **values}, allow_nan=False)
        self._records.append(line.encode() + b"\n", sealed=sealed)
        if self._records.problem is not None:
            what = f"{self.path} (records wait in memory)"
            self._warn_once(what, self._records.problem)

    @property
    def num_waiting(self) -> int:
        """Records that are not in scalars.jsonl yet. Figures made from the file would lack them."""
        return self._records.num_waiting

    @property
    def extent(self) -> Extent:
        """What scalars.jsonl must hold, once no record waits."""
        return self._records.extent

    def scalars(self, values: Mapping[str, float], *, tokens: int, rare: bool = False) -> None:
        """Draw points `group/name` at `tokens`, the run's common axis.

        Args:
            rare: a curve of a few points, of which none may be taken for an outlier.
        """
        self._board.scalars(values, tokens, rare=rare)
        if self.wandb:
            self.wandb.scalars(values, tokens)

    def image(self, tag: str, pixels: np.ndarray, *, tokens: int) -> None:
        """Write a TensorBoard picture [height, width] of numbers in [0, 1]."""
        self._board.draw(
            lambda writer: writer.add_image(tag, pixels[None], tokens, dataformats="CHW")
        )

    def text(self, tag: str, markdown: str, *, tokens: int) -> None:
        """Write a card of TensorBoard's TEXT page."""
        self._board.draw(lambda writer: writer.add_text(tag, markdown, tokens))

    def layout(self, charts: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """Arrange TensorBoard's CUSTOM SCALARS page.

        Args:
            charts: category -> title of a chart -> the tags in it, each a pattern that matches from
                the beginning of a tag on.
        """
        layout = {
            category: {title: ["Multiline", list(tags)] for title, tags in content.items()}
            for category, content in charts.items()
        }
        self._board.draw(lambda writer: writer.add_custom_scalars(layout))

    def hparams(self, config: Mapping[str, Any], metrics: Sequence[str]) -> None:
        """Write this run's row of the HPARAMS table.

        Args:
            config: hyper-parameter -> value.
            metrics: tags of scalars; the table shows the last value of each.
        """
        self._board.hparams(config, metrics)

    def sync(self) -> Extent:
        """Make everything durable. Returns what scalars.jsonl holds.

        Raises:
            StorageError, CannotCreateError: while records cannot be written, or the file is gone.
                They are kept: a later call may succeed.
        """
        self._board.flush()
        try:
            return self._records.sync()
        except OSError as error:
            waiting = f"; {self.num_waiting} records wait" if self.num_waiting else ""
            way_out = ". Mend that and give the same command: it goes on from the last checkpoint."
            raise cannot_write(self.path, error, more=waiting + way_out) from None

    def close(self) -> None:
        """Flush and close all writers. Raises as `sync` does, after closing."""
        try:
            self.sync()
        finally:
            self._board.close()
            self._records.close()

    def _warn_once(self, what: str, error: Exception) -> None:
        if what not in self._warned:
            self._warned.add(what)
            warn(f"{what}: cannot be written ({reason(error)}); the run goes on")


class RecordFile:
    """Whole lines at the end of one file; what cannot be written waits, in order.

    Law: the file holds a prefix of the appended lines and nothing else, whenever a call returns.
    Where even cutting a torn line fails, it is cut before the next write.
    """

    def __init__(self, path: Path, *, keep: Extent | None) -> None:
        """Open `path` behind the lines `keep`; None = behind none. They are read once.

        Raises:
            DataError: the file does not begin with them.
            CannotCreateError, StorageError: it cannot be opened.
        """
        self.path = path
        size = keep.num_bytes if keep else 0
        # Of all lines, those that wait included: the file becomes what they are.
        self._digest = check_prefix(path, keep) if keep else hashlib.sha256()
        with writing(path):
            self._handle = plain(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.ftruncate(self._handle, size)
        self._size = self._synced_size = size  # of the whole lines in the file; all that last
        self._torn = False  # something lies behind them
        self._unsynced: list[bytes] = []
        self._waiting: deque[bytes] = deque()
        self.problem: OSError | None = None
        """Why lines wait; None if none does."""

    @property
    def num_waiting(self) -> int:
        """Lines that are not in the file yet."""
        return len(self._waiting)

    @property
    def extent(self) -> Extent:
        """What the file must hold, once no line waits."""
        waiting = sum(map(len, self._waiting))
        return Extent(self._size + waiting, self._digest.hexdigest())

    def append(self, line: bytes, *, sealed: bool = False) -> None:
        """Write a line, behind those that wait; never raises for what a disk does.

        Args:
            sealed: seal it (it is a JSON object then).
        """
        if sealed:
            line = seal(line, self._digest)
        self._digest.update(line)
        self._waiting.append(line)
        self._write_waiting()
        if len(self._unsynced) >= MAX_UNSYNCED:
            with contextlib.suppress(OSError):
                self.sync()

    def sync(self) -> Extent:
        """Make all lines durable. Returns what the file holds.

        Raises:
            OSError: lines wait, or the file is not the one that the path names any more.
        """
        self._write_waiting()
        if self.problem is not None:
            raise self.problem
        try:
            os.fsync(self._handle)
        except OSError as error:
            # The kernel forgets the pages that it could not write: a second fsync would succeed
            # and say nothing. So the lines themselves have to be written again.
            self._waiting.extendleft(reversed(self._unsynced))
            self._unsynced.clear()
            self._size, self._torn, self.problem = self._synced_size, True, error
            raise
        self._synced_size = self._size
        self._unsynced.clear()
        mine = os.fstat(self._handle)
        try:
            named = os.lstat(self.path)
        except FileNotFoundError:
            raise OSError(errno.ESTALE, "removed or renamed while the run wrote it") from None
        if (mine.st_ino, mine.st_dev, mine.st_size) != (named.st_ino, named.st_dev, self._size):
            raise OSError(errno.ESTALE, "replaced or changed while the run wrote it")
        return self.extent

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._handle)

    def _write_waiting(self) -> None:
        while self._waiting:
            try:
                self._write(self._waiting[0])
            except OSError as error:
                self.problem = error
                with contextlib.suppress(OSError):
                    self._cut()  # a reader may come before the next write
                return
            self._size += len(self._waiting[0])
            self._unsynced.append(self._waiting.popleft())
        self.problem = None

    def _write(self, line: bytes) -> None:
        self._cut()
        self._torn = True
        while line:  # a disk that fills up takes a part
            line = line[os.write(self._handle, line) :]
        self._torn = False

    def _cut(self) -> None:
        """Remove what lies behind the last whole line."""
        if self._torn:
            os.ftruncate(self._handle, self._size)
            self._torn = False


def check_prefix(path: Path, keep: Extent) -> "hashlib._Hash":
    """Check that a record file begins with what it held at a checkpoint.

    Returns:
        The sha256 of that, to be continued.

    Raises:
        DataError: it does not.
        CannotCreateError: it cannot be read.
    """
    digest, left = hashlib.sha256(), keep.num_bytes
    try:
        with open(path, "rb", opener=plain) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            while left and (part := file.read(min(left, 2**20))):
                digest.update(part)
                left -= len(part)
    except FileNotFoundError:
        size = 0
    except OSError as error:
        raise CannotCreateError(f"{path}: cannot be read ({reason(error)})") from None
    problem = ""
    if size < keep.num_bytes:
        problem = f"{size} bytes, but {keep.num_bytes} at the checkpoint"
    elif digest.hexdigest() != keep.sha256:
        problem = f"its first {keep.num_bytes} bytes are not those of the checkpoint (sha256 "
        problem += "differs)"
    if problem:
        raise DataError(
            one_line(f"{path}: {problem}. Restore the file from a copy, or start in another ")
            + "--run_dir; with --set init_from=CHECKPOINT it begins with the weights of this run."
        )
    return digest
