"""One bar for a whole piece of work, with the time that is left.

A terminal shows a bar that is redrawn; a log file gets a line every 15 seconds.
"""

import contextlib
import sys
from collections.abc import Mapping

from tqdm import tqdm

WIDTH = 100  # columns of a bar in a log file


class ProgressBar:
    """A bar on stderr over all steps of some work."""

    def __init__(self, label: str, *, total: int, done: int = 0, show: bool = True) -> None:
        """Args:
        total: steps of the whole work.
        done: those that lie behind (resume): the time left is reckoned without them.
        show: False on ranks other than 0.
        """
        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            desc=label,
            total=total,
            initial=done,
            unit="step",
            disable=not show,
            mininterval=0.1 if terminal else 15.0,
            dynamic_ncols=terminal,
            ncols=None if terminal else WIDTH,
            file=None if terminal else _Lines(),
        )

    @property
    def done(self) -> int:
        """Steps that lie behind."""
        return int(self._bar.n)

    def begin(self, label: str, *, total: int, done: int) -> None:
        """A part of the work begins; what lies behind and what is left may be other than planned
        (an early end, a return to an earlier step)."""
        self._bar.total = total
        self._bar.n = done
        self._bar.set_description(label, refresh=False)

    def advance(self, figures: Mapping[str, str] | None = None, *, steps: int = 1) -> None:
        """Some steps more, with figures to show."""
        if figures:
            self._bar.set_postfix(figures, refresh=False)
        self._bar.update(steps)

    def close(self) -> None:
        """Leave the bar on the screen as it is."""
        self._bar.close()


class _Lines:
    """A stream for tqdm where there is no terminal: whole lines instead of one rewritten line."""

    def write(self, text: str) -> None:
        if text.strip():
            with contextlib.suppress(OSError):  # no bar is worth a run
                sys.stderr.write(text.strip() + "\n")

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
