"""Weights & Biases: the curves of a run once more, with its config and its results.

Optional: `pip install "sparsecl[wandb]"`. The library works in a thread of its own, so a service
that does not answer keeps nobody waiting but that thread. The first failure is told; then it is
off, and the run goes on.
"""

import queue
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from sparsecl.errors import UserError, reason, warn
from sparsecl.opening import make_folder, plain, read_plain

FOLDER = "wandb"  # in the run folder; the library wants this name
MAX_WAITING = 100_000  # calls; a run that is so far ahead of the library does without it
INIT_SECONDS, FINISH_SECONDS = 60.0, 60.0
_ID = re.compile(rb"[0-9a-f]{8}")


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Show the run in Weights & Biases too. Needs `pip install "sparsecl[wandb]"`; the key comes
    from `wandb login` or WANDB_API_KEY, never from here."""

    project: str = "sparsecl"
    """The project there."""

    mode: Literal["online", "offline", "disabled"] = "online"
    """online = sent while the run goes on; offline = kept in the folder `wandb` of the run, for
    `wandb sync`; disabled = as without this block."""

    name: str | None = None
    """Name of the run there; null = its `name`."""

    group: str | None = None
    """What the run belongs to there, as an arm of a study; null = nothing."""


def check_installed(config: WandbConfig | None) -> None:
    """Raise UserError if the package is wanted and missing."""
    if config and config.mode != "disabled" and find_spec("wandb") is None:
        raise UserError(
            "log.wandb: the package wandb is not installed. Install it by pip install "
            '"sparsecl[wandb]", or set log.wandb.mode=disabled.'
        )


class WandbRun:
    """One run there, on rank 0. No method raises, and none waits but `close`."""

    def __init__(
        self, folder: Path, config: WandbConfig, settings: Mapping[str, Any], *, new: bool
    ) -> None:
        """Args:
        folder: the run folder.
        settings: the resolved config of the run, as plain dicts.
        new: begin a run there; else go on with the one whose id is in the folder, if any.
        """
        self.is_on = True
        self._calls: queue.Queue[Callable[[Any], Any] | None] = queue.Queue(MAX_WAITING)
        self._step = 0
        self._thread = threading.Thread(
            target=self._work, args=(folder, config, settings, new), name="wandb", daemon=True
        )
        self._thread.start()

    def scalars(self, values: Mapping[str, float], tokens: int) -> None:
        """One point of each curve. The library takes rising steps only: what lies before the last
        (a run that went back to a checkpoint trains it again) is left out."""
        if tokens >= self._step:
            self._step = tokens
            self._put(lambda run: run.log(dict(values), step=tokens))

    def results(self, summary: Mapping[str, Any]) -> None:
        """What results.json has."""
        self._put(lambda run: run.summary.update(dict(summary)))

    def close(self) -> None:
        """Wait until all is handed over, or for a minute or two at most."""
        self._put(None)
        self._thread.join(INIT_SECONDS + FINISH_SECONDS if self.is_on else 0.0)
        if self._thread.is_alive():
            self._off("it does not come to an end")

    def _put(self, call: Callable[[Any], Any] | None) -> None:
        if not self.is_on:
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._off(f"{MAX_WAITING} points wait for it")

    def _work(
        self, folder: Path, config: WandbConfig, settings: Mapping[str, Any], new: bool
    ) -> None:
        # Wide on purpose: a library that talks to a service may fail in any way, and no picture is
        # worth a run.
        try:
            run = _init(folder, config, settings, _run_id(folder / FOLDER, new=new))
            while self.is_on and (call := self._calls.get()) is not None:
                call(run)
            run.finish()
        except Exception as error:
            self._off(reason(error)[:200])

    def _off(self, why: str) -> None:
        if self.is_on:
            self.is_on = False
            warn(f"Weights & Biases is off from here on ({why}); scalars.jsonl has all of it")


def begin_wandb(
    folder: Path, config: WandbConfig | None, settings: Mapping[str, Any], *, new: bool
) -> WandbRun | None:
    """The run there, if it is wanted; arguments as for WandbRun."""
    if config is None or config.mode == "disabled":
        return None
    return WandbRun(folder, config, settings, new=new)


def _init(folder: Path, config: WandbConfig, settings: Mapping[str, Any], run_id: str) -> Any:
    import wandb  # pyright: ignore[reportMissingImports]  # an extra

    return wandb.init(
        project=config.project,
        mode=config.mode,
        name=config.name or settings.get("name"),
        group=config.group,
        config=dict(settings),
        allow_val_change=True,
        id=run_id,
        resume="allow",
        dir=str(folder),
        settings=wandb.Settings(
            # Only what the run writes: no output, no code, nothing about the machine.
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            login_timeout=1.0,  # nobody answers questions here
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
            finish_timeout_raises=True,
        ),
    )


def _run_id(folder: Path, *, new: bool) -> str:
    """The id in the folder, or a new one that is kept there."""
    if new:
        shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)
    path = folder / "id"
    if path.exists():
        found = read_plain(path)
        if _ID.fullmatch(found):
            return found.decode()
    made = secrets.token_hex(4)
    with open(path, "w", encoding="utf-8", opener=plain) as file:
        file.write(made)
    return made
