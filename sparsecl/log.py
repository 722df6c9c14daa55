"""What the run writes: text for people, scalars.jsonl for tools, TensorBoard for the browser.

Only rank 0 writes. scalars.jsonl is the single source of every figure of a report; TensorBoard is
a picture of it. After a resume both continue where the checkpoint left them: lines written after
the checkpoint are cut off, so a resumed run has the same records as one that never stopped.
"""

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sparsecl.errors import DataError


class RunLog:
    """The writers of one run folder, on rank 0."""

    def __init__(
        self, folder: Path, *, resume_at: int | None = None, purge_tokens: int = 0
    ) -> None:
        """Open the logs.

        Args:
            folder: the run folder; it exists.
            resume_at: size in bytes that scalars.jsonl had at the checkpoint; None = begin anew.
            purge_tokens: TensorBoard drops events after this many tokens (resume only).

        Raises:
            DataError: if scalars.jsonl is shorter than it was at the checkpoint.
        """
        from torch.utils.tensorboard import SummaryWriter  # slow import, wanted on rank 0 only

        self.folder = folder
        self.path = folder / "scalars.jsonl"
        if resume_at is None:
            # Events of an attempt that reached no checkpoint would be drawn over the new ones.
            shutil.rmtree(folder / "tb", ignore_errors=True)
        else:
            size = self.path.stat().st_size if self.path.exists() else 0
            if size < resume_at:
                raise DataError(
                    f"{self.path}: {size} bytes, but {resume_at} at the checkpoint; the record "
                    "cannot be continued. Restore the file, or start in another --run_dir."
                )
            os.truncate(self.path, resume_at)
        # Line by line, so that a reader sees every record when it is written.
        mode = "w" if resume_at is None else "a"
        self._jsonl = open(self.path, mode, buffering=1, encoding="utf-8")
        purge = None if resume_at is None else purge_tokens + 1

        def writer(curve: str = "") -> SummaryWriter:
            return SummaryWriter(str(folder / "tb" / curve), purge_step=purge, flush_secs=30)

        self.tensorboard = writer()
        self._writer, self._curves = writer, dict[str, SummaryWriter]()

    def say(self, text: str = "") -> None:
        """Print on stdout, without tearing a progress bar, and append to log.txt."""
        tqdm.write(text)
        with open(self.folder / "log.txt", "a", encoding="utf-8") as file:
            file.write(text + "\n")

    def record(self, kind: str, **values: Any) -> None:
        """Append one line to scalars.jsonl. Values are JSON-safe and finite."""
        line = json.dumps({"kind": kind, **values}, allow_nan=False)
        self._jsonl.write(line + "\n")

    def scalars(self, values: Mapping[str, float], *, tokens: int) -> None:
        """Write TensorBoard scalars `group/name` at `tokens`, the run's common axis."""
        for tag, value in values.items():
            self.tensorboard.add_scalar(tag, value, tokens, walltime=time.time())

    def chart(self, tag: str, curves: Mapping[str, float], *, tokens: int) -> None:
        """Write one point of every curve of a chart that holds several.

        TensorBoard gives a chart's curves different colours only if they come from different
        folders, so each curve has its own.
        """
        for curve, value in curves.items():
            if curve not in self._curves:
                self._curves[curve] = self._writer(curve)
            self._curves[curve].add_scalar(tag, value, tokens, walltime=time.time())

    def image(self, tag: str, pixels: np.ndarray, *, tokens: int) -> None:
        """Write a TensorBoard picture [height, width] of numbers in [0, 1]."""
        self.tensorboard.add_image(tag, pixels[None], tokens, dataformats="CHW")

    def text(self, tag: str, markdown: str, *, tokens: int) -> None:
        """Write a card of TensorBoard's TEXT page."""
        self.tensorboard.add_text(tag, markdown, tokens)

    def hparams(self, config: Mapping[str, Any], metrics: Sequence[str]) -> None:
        """Write this run's row of the HPARAMS table.

        Args:
            config: hyper-parameter -> value.
            metrics: tags of scalars; the table shows the last value of each.
        """
        from torch.utils.tensorboard.summary import hparams

        # Not SummaryWriter.add_hparams: it writes every metric once more, at step 0, and the
        # scalar pages then begin with cards of a single dot.
        for summary in hparams(dict(config), dict.fromkeys(metrics, 0.0)):
            self.tensorboard.file_writer.add_summary(summary)  # pyright: ignore

    def sync(self) -> int:
        """Make everything durable. Returns the size of scalars.jsonl in bytes."""
        self._jsonl.flush()
        os.fsync(self._jsonl.fileno())
        for writer in (self.tensorboard, *self._curves.values()):
            writer.flush()
        return self.path.stat().st_size

    def close(self) -> None:
        """Flush and close all writers."""
        self.sync()
        self._jsonl.close()
        for writer in (self.tensorboard, *self._curves.values()):
            writer.close()
