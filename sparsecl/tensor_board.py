"""TensorBoard's files of a run.

A run is one folder, so TensorBoard gives it one colour on every page, and a line for each of its
curves. Nothing here stops a run: the first failure is told, and then TensorBoard is off.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsecl.errors import reason, warn
from sparsecl.opening import make_folder

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

EVENTS = "events.out.tfevents."

# TensorBoard takes the lowest and the highest twentieth of the points of a card for outliers, and
# leaves them out of view: of three runs with two phase ends, the run that forgets most. It counts
# one point for each step, so a rare point is written at so many steps (tokens) up to its own: none
# is clipped while a card has fewer than 20 of them, and smoothing does not move it.
IN_VIEW = 20

# TensorBoard sorts its columns: those that are marked as different between runs first, the others
# behind them, by name.
FIRST_COLUMNS = ("topology", "seed")


class TensorBoard:
    """The event files of one run. The first failure, in whatever thread, turns it off."""

    def __init__(self, folder: Path, *, purge: int | None) -> None:
        """Args:
        purge: earlier events from this step on are void; None = there are none.
        """
        self.folder, self.purge = folder, purge
        self.is_on = True
        self._writer: SummaryWriter | None = None
        self._hook = threading.excepthook
        threading.excepthook = self._hear_thread
        # Wall time by the monotonic clock, from where the last attempt ended: a clock that is set
        # back gives no negative durations.
        self._begun, self._wall_begun = time.monotonic(), time.time()

        def start() -> None:
            from torch.utils.tensorboard import SummaryWriter  # slow, wanted on rank 0 only

            if purge is not None:
                self._wall_begun = max(self._wall_begun, _newest_change(folder))
                _put_before_now(folder)
            make_folder(folder)  # the library makes folders by name, and would follow links
            self._writer = SummaryWriter(str(folder), purge_step=purge, flush_secs=30)

        self._try(start)

    def draw(self, action: Callable[["SummaryWriter"], Any]) -> None:
        """Let `action` write."""
        self._try(lambda: action(self._writer) if self._writer else None)

    def scalars(self, values: Mapping[str, float], tokens: int, *, rare: bool = False) -> None:
        """Write one point of each curve.

        Args:
            rare: they must stay in view; see IN_VIEW.
        """
        wall = self._wall_begun + time.monotonic() - self._begun

        def write(writer: "SummaryWriter") -> None:
            for tag, value in values.items():
                for step in range(max(0, tokens - IN_VIEW + 1) if rare else tokens, tokens + 1):
                    writer.add_scalar(tag, value, step, walltime=wall)

        self.draw(write)

    def hparams(self, config: Mapping[str, Any], metrics: Sequence[str]) -> None:
        """Write the run's row of the HPARAMS table; see RunLog.hparams."""

        def write(writer: "SummaryWriter") -> None:
            from tensorboard.plugins.hparams.plugin_data_pb2 import (
                HParamsPluginData,  # pyright: ignore
            )
            from torch.utils.tensorboard.summary import hparams

            # Not SummaryWriter.add_hparams: it writes every metric once more, at step 0, and the
            # scalar pages then begin with cards of a single dot.
            columns, *session = hparams(dict(config), dict.fromkeys(metrics, 0.0))
            plugin = columns.value[0].metadata.plugin_data
            content = HParamsPluginData.FromString(plugin.content)
            for column in content.experiment.hparam_infos:
                column.differs = column.name in FIRST_COLUMNS
            plugin.content = content.SerializeToString()
            for summary in (columns, *session):
                writer.file_writer.add_summary(summary)  # pyright: ignore

        self.draw(write)

    def flush(self) -> None:
        """Hand everything to the operating system."""
        self.draw(lambda writer: writer.flush())

    def close(self) -> None:
        """Flush and close."""
        self._try(self._close)
        # Bound methods are new objects each time, so equality, not identity.
        if threading.excepthook == self._hear_thread:
            threading.excepthook = self._hook

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if writer:
            writer.close()

    def _try(self, action: Callable[[], Any]) -> None:
        if not self.is_on:
            return
        try:
            action()
        # Wide on purpose: the disk, protocol buffers and the writers' threads raise what they
        # like, and no picture is worth a run.
        except Exception as error:
            self.is_on = False
            why = reason(error)[:200]
            warn(f"TensorBoard is off from here on ({why}); scalars.jsonl has all of it")
            with contextlib.suppress(Exception):
                self._close()

    def _hear_thread(self, args: Any) -> None:
        """A writer's thread that dies prints no traceback: the writer's next call raises it."""
        if type(args.thread).__module__.startswith("tensorboard."):
            return
        self._hook(args)


def _newest_change(folder: Path) -> float:
    """When an event file was last written; 0 if there is none."""
    return max((path.stat().st_mtime for path in folder.glob(EVENTS + "*")), default=0.0)


def _put_before_now(folder: Path) -> None:
    """Rename event files that would sort behind those that are written now.

    A name begins with the second of its making, and TensorBoard reads a folder in the order of the
    names. If the clock was set back, the new events would be read first, and those that they
    replace would be drawn over them.
    """
    now = int(time.time())
    files = sorted(folder.glob(EVENTS + "*"))
    stamps = [path.name.removeprefix(EVENTS).partition(".")[0] for path in files]
    if not files or not all(map(str.isdecimal, stamps)) or int(stamps[-1]) < now:
        return
    for place, (path, stamp) in enumerate(zip(files, stamps, strict=True)):
        rest = path.name.removeprefix(EVENTS + stamp)
        path.rename(path.with_name(f"{EVENTS}{now - len(files) + place:010d}{rest}"))
