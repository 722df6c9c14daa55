"""Weights & Biases: what reaches it, and what a failure of it does (nothing)."""

import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sparsecl import wandb_run
from sparsecl.errors import UserError
from sparsecl.log import RunLog
from sparsecl.seal import EMPTY
from sparsecl.wandb_run import WandbConfig, WandbRun, check_installed
from tests.events import HANG, wait_for

OFFLINE = WandbConfig(project="forgetting", mode="offline", group="er")
SETTINGS = {"name": "small", "seed": 3, "topology": {"kind": "er"}}


# ---- without the package -------------------------------------------------------------------------


def test_a_missing_package_is_told_before_any_work(monkeypatch):
    monkeypatch.setattr(wandb_run, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'^log\.wandb: .* pip install "sparsecl\[wandb\]"'):
        check_installed(OFFLINE)
    check_installed(None)
    check_installed(WandbConfig(mode="disabled"))


class Service:
    """Stands in for the package: `fails` at a call, or `waits` in it for ever."""

    def __init__(self, *, fails: str = "", waits: str = "") -> None:
        self.fails, self.waits, self.calls = fails, waits, []
        self.summary = SimpleNamespace(update=lambda values: self._call("summary"))
        self.Settings = dict

    def init(self, **_: Any) -> "Service":
        self._call("init")
        return self

    def log(self, values: Any, step: int) -> None:
        self._call("log")

    def finish(self) -> None:
        self._call("finish")

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.waits:
            threading.Event().wait()
        if name == self.fails:
            raise ConnectionError(f"no answer\nto {name}")


@pytest.mark.parametrize("call", ["init", "log", "summary", "finish"])
@pytest.mark.parametrize("how", ["fails", "waits"])
def test_no_failure_of_it_ends_or_stops_a_run(tmp_path, monkeypatch, capsys, how, call):
    service = Service(**{how: call})
    monkeypatch.setitem(sys.modules, "wandb", service)
    monkeypatch.setattr(wandb_run, "INIT_SECONDS", 0.5)
    monkeypatch.setattr(wandb_run, "FINISH_SECONDS", 0.5)
    begun = time.monotonic()
    log = RunLog(tmp_path, wandb=WandbRun(tmp_path, OFFLINE, SETTINGS, new=True))
    for step in range(3):
        log.scalars({"train/loss": 1.0}, tokens=step)
        log.record("train", step=step)
    log.close()
    assert log.wandb is not None
    log.wandb.results({"F_last": 1.0})
    log.wandb.close()
    assert call in service.calls and time.monotonic() - begun < 60.0
    assert len(log.path.read_text().splitlines()) == 3
    assert capsys.readouterr().err.count("Weights & Biases is off from here on (") == 1


def test_a_run_far_ahead_of_it_goes_on_without_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", Service(waits="init"))
    monkeypatch.setattr(wandb_run, "MAX_WAITING", 10)
    run = WandbRun(tmp_path, OFFLINE, SETTINGS, new=True)
    for step in range(100):
        run.scalars({"train/loss": 1.0}, step)
    run.close()
    assert capsys.readouterr().err.count("is off from here on (10 points wait for it)") == 1


# ---- with the package, offline -------------------------------------------------------------------


@pytest.fixture
def package() -> Iterator[None]:
    wandb = pytest.importorskip("wandb", reason="the extra `wandb` (75 MB) is not installed")
    yield
    wandb.teardown()  # ends its process


def stored(folder: Path) -> list[list[Any]]:
    """The records of all offline runs in a run folder, one list for each start.

    The file is a log of LevelDB behind a header of 7 bytes: blocks of 32 KiB, in them chunks with
    a checksum, a size and a kind (1 = whole, 2 = first, 3 = middle, 4 = last).
    """
    from wandb.proto import wandb_internal_pb2

    starts = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime):
        data, at, joined = path.read_bytes(), 7, b""
        starts.append([])
        while at + 7 <= len(data):
            left = 32768 - at % 32768
            if left < 7:
                at += left
                continue
            size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
            if at + 7 + size > len(data):
                break
            joined += data[at + 7 : at + 7 + size]
            at += 7 + size
            if kind in (1, 4):
                starts[-1].append(wandb_internal_pb2.Record.FromString(joined))
                joined = b""
    return starts


def history(starts: list[list[Any]]) -> dict[str, dict[int, float]]:
    """By tag: step -> value."""
    curves: dict[str, dict[int, float]] = defaultdict(dict)
    for record in itertools.chain(*starts):
        if record.WhichOneof("record_type") == "history":
            row = {i.key or "/".join(i.nested_key): i.value_json for i in record.history.item}
            values = {key: json.loads(value) for key, value in row.items()}
            step = values.pop("_step", record.history.step.num)
            for key, value in values.items():
                if not key.startswith("_"):
                    curves[key][step] = value
    return dict(curves)


def first(records: list[Any], kind: str) -> Any:
    return next(getattr(r, kind) for r in records if r.WhichOneof("record_type") == kind)


def write(folder: Path, points: list[tuple[int, float]], *, new: bool, summary: Any = None) -> None:
    wandb = WandbRun(folder, OFFLINE, SETTINGS, new=new)
    log = RunLog(folder, resume_at=None if new else EMPTY, wandb=wandb)
    for step, value in points:
        log.scalars({"train/loss": value, "progress/phase": 0.0}, tokens=step)
        log.scalars({"forgetting/F_last": value}, tokens=step, rare=True)
    log.close()
    if summary is not None:
        wandb.results(summary)
    wandb.close()
    assert wandb.is_on

    def written() -> bool:  # its own process writes the file, and may do so after it has answered
        starts = stored(folder)
        return bool(starts[-1]) and starts[-1][-1].WhichOneof("record_type") == "exit"

    wait_for(written, "the offline run")


def test_curves_config_and_results_reach_it(package, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef" * 3)
    write(tmp_path, [(0, 2.0), (128, 1.0)], new=True, summary={"forgetting": {"F_last": 0.5}})
    (records,) = stored(tmp_path)
    curve = {0: 2.0, 128: 1.0}
    assert history([records]) == {
        "train/loss": curve,
        "forgetting/F_last": curve,
        "progress/phase": {0: 0.0, 128: 0.0},
    }
    run = first(records, "run")
    assert (run.project, run.run_group, run.display_name) == ("forgetting", "er", "small")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert {key: config[key] for key in SETTINGS} == SETTINGS
    texts = [str(r.summary) for r in records if r.WhichOneof("record_type") == "summary"]
    assert any("F_last" in text and "0.5" in text for text in texts)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"0123456789abcdef" not in path.read_bytes(), path


def test_a_resumed_run_goes_on_in_the_same_one(package, tmp_path):
    write(tmp_path, [(0, 2.0), (128, 1.0)], new=True)
    made = (tmp_path / "wandb" / "id").read_text()
    write(tmp_path, [(128, 1.0), (256, 0.5)], new=False)
    starts = stored(tmp_path)
    assert [first(records, "run").run_id for records in starts] == [made, made]
    assert history(starts)["train/loss"] == {0: 2.0, 128: 1.0, 256: 0.5}
    write(tmp_path, [(0, 2.0)], new=True)
    assert (tmp_path / "wandb" / "id").read_text() != made


def test_a_service_that_never_answers(package, tmp_path):
    """Neither the run nor the end of its process waits for it."""
    script = f"""
import pathlib, time
from sparsecl import wandb_run
wandb_run.INIT_SECONDS = wandb_run.FINISH_SECONDS = 2.0
begun = time.monotonic()
run = wandb_run.WandbRun(pathlib.Path({str(tmp_path)!r}), wandb_run.WandbConfig(), {{}}, new=True)
run.scalars({{"train/loss": 1.0}}, 0)
print(time.monotonic() - begun < 1.0)  # training goes on at once
run.close()
"""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        env = {**os.environ, "WANDB_BASE_URL": url, "WANDB_API_KEY": "0123456789abcdef" * 3}
        done = subprocess.run(
            [sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=HANG
        )
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr
    assert done.stderr.count("Weights & Biases is off from here on (") == 1
