"""Starts scripts as processes of their own in a tenth of the usual time.

A start costs seconds, nearly all of them for importing torch and DeepSpeed. A server process does
that once and forks for every start. So exit codes, stderr and SIGKILL are the real ones.
"""

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.events import HANG, free_port

ROOT = Path(__file__).resolve().parents[2]

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Done:
    """What a user sees of a process that has ended."""

    code: int
    """Exit code; -9 after SIGKILL."""

    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line of an error; fails if stderr holds anything else."""
        assert self.err.startswith("sparsecl: "), self.err
        assert len(self.err.splitlines()) == 1 and self.err.endswith("\n"), self.err
        assert "Traceback" not in self.out, self.out
        return self.err.removesuffix("\n")


class Job:
    """One running process of launch/train.py."""

    def __init__(self, process: Any, folder: Path) -> None:
        self.process, self.folder = process, folder

    @property
    def alive(self) -> bool:
        return self.process.is_alive()

    @property
    def stopped(self) -> bool:
        """Whether it has stopped itself (SIGSTOP). Linux only."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "T"

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        """SIGKILL, as the kernel does when memory is short."""
        self.process.kill()

    def wait(self, timeout: float = HANG) -> Done:
        """Its end; a process that has not ended by then is killed, and the test fails."""
        self.process.join(timeout)
        if self.alive:
            self.kill()
            self.process.join()
            raise AssertionError(f"no end within {timeout} s:\n{self._text('err')}")
        return Done(self.process.exitcode, self._text("out"), self._text("err"))

    def _text(self, name: str) -> str:
        return (self.folder / name).read_text(encoding="utf-8")


class Starter:
    """Starts jobs in a folder of the test, on data that all tests share."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache = folder, cache
        self.num_jobs = 0
        self.context: Any = multiprocessing.get_context("forkserver")

    def config(self, **changes: Any) -> Path:
        """A YAML file of two tiny domains; `changes` replace whole top-level keys."""
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump({**tiny(self.cache), **changes}), encoding="utf-8")
        return path

    def arguments(self, *more: str, config: Path | None = None, stage: str = "zero2") -> list[str]:
        """The command line for a run of this config under `ds_configs/<stage>.json`."""
        found = config or self.folder / "config.yaml"
        found = found if found.exists() else self.config()
        json = ROOT / "ds_configs" / f"{stage}.json"
        return ["--config", str(found), "--ds_config", str(json), *more]

    def start(
        self,
        arguments: Sequence[str],
        env: Mapping[str, str] | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> Job:
        """Start one process, in which `prepare`, a function of a module, is called first."""
        self.num_jobs += 1
        folder = self.folder / f"job_{self.num_jobs}"
        folder.mkdir()
        process = self.context.Process(
            target=_main, args=(list(arguments), dict(env or {}), str(folder), prepare)
        )
        process.start()
        return Job(process, folder)

    def run(self, *more: str, env: Mapping[str, str] | None = None, **kwargs: Any) -> Done:
        """Start one process with `arguments(*more, **kwargs)` and wait for its end."""
        return self.start(self.arguments(*more, **kwargs), env).wait()

    def start_ranks(self, arguments: Sequence[str], world_size: int) -> list[Job]:
        """Start the ranks of one run, as a launcher would."""
        port = free_port()
        places = [(rank, rank, world_size, "127.0.0.1", port) for rank in range(world_size)]
        return [
            self.start(arguments, dict(zip(RANK_VARIABLES, map(str, place), strict=True)))
            for place in places
        ]


def tiny(cache: Path) -> dict[str, Any]:
    """Two domains, 24 steps in all: about a second of work after the imports."""
    synthetic = {"train_tokens": 4000, "validation_tokens": 400, "num_symbols": 8}
    return {
        "name": "tiny",
        "model": {"preset": None, "layers": 2, "width": 32, "heads": 4, "context": 16},
        "topology": {"density": 0.25},
        "tokenizer": {"kind": "bytes"},
        "data": {
            "cache_dir": str(cache),
            "domains": [
                {"name": name, "source": "synthetic", "synthetic": {**synthetic}} for name in "ab"
            ],
        },
        "phases": {"steps": 12},
        "batch": {"sequences": 8},
        "optimizer": {"lr": 3.0e-3},
        "eval": {"every": 5, "tokens": 160},
        "audit": {"every": 5},
        "log": {"every": 1},
        "checkpoint": {"every": 4},
    }


def run_script(script: Path, arguments: Sequence[str], *, cwd: Path) -> Done:
    """What `python SCRIPT ARGUMENTS` does in the folder `cwd`, to its end."""
    with tempfile.TemporaryDirectory() as folder:
        words = (str(script), list(arguments), {}, folder, str(cwd))
        process = multiprocessing.get_context("forkserver").Process(target=_script, args=words)
        process.start()
        return Job(process, Path(folder)).wait()


def _main(
    arguments: list[str], env: dict[str, str], folder: str, prepare: Callable[[], None] | None
) -> None:
    """In the forked process: be what `python launch/train.py ...` is."""
    _script(str(ROOT / "launch" / "train.py"), arguments, env, folder, folder, prepare)


def _script(
    script: str,
    arguments: list[str],
    env: dict[str, str],
    folder: str,
    cwd: str,
    prepare: Callable[[], None] | None = None,
) -> None:
    """In the forked process: be what `python SCRIPT ...` is; its output goes into `folder`."""
    for name in ("out", "err"):
        handle = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(handle, {"out": 1, "err": 2}[name])
    os.environ.update(env)
    os.chdir(cwd)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run behind `&`
    sys.path.insert(0, str(ROOT))
    sys.argv = [script, *arguments]
    if prepare is not None:
        prepare()
    runpy.run_path(script, run_name="__main__")
