"""Run folders and studies of somebody else: their records are data, in terminals and in pages."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from markupsafe import escape

from sparsecl.engine import run
from sparsecl.errors import UserError
from sparsecl.experiments.findings.collect import collect, status_text
from sparsecl.experiments.report import write, write_report
from sparsecl.experiments.running.runner import steps_done
from sparsecl.metrics.records import read_records
from sparsecl.metrics.summary import summarize
from sparsecl.metrics.table import report
from tests.experiments.fake_study import FakeArm, write_study
from tests.metrics.fake_run import header, write_run
from tests.security.canary import harmless, refused

SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(2)>'\"&"


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_run(tmp_path / "run", domains=("a", "b"), every=0)


def show(folder: Path) -> str:
    """All that a terminal shows of a run."""
    return report(summarize(read_records(folder)))


def replace_line(folder: Path, number: int, line: bytes) -> None:
    lines = (folder / "scalars.jsonl").read_bytes().splitlines()
    lines[number] = line
    (folder / "scalars.jsonl").write_bytes(b"\n".join(lines) + b"\n")


def test_lines_that_are_none(folder, canary):
    for line in (
        canary.pickle(0).replace(b"\n", b" "),
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"kind": "train", "step": ' + b"9" * 5000 + b"}",
        b"\x80\x04\x95",
        b'"text"',
        b"x" * (8 << 20),
    ):
        replace_line(folder, 3, line)
        assert "scalars.jsonl:4: not a JSON object" in refused(lambda: show(folder), canary, 65)


@pytest.mark.fault("C14")
def test_a_whole_file_that_is_a_pickle(folder, canary):
    (folder / "scalars.jsonl").write_bytes(canary.pickle())
    refused(lambda: show(folder), canary, 65)


VALUES: list[Any] = [None, True, "1", -1, 10**30, 10**400, 1e308, [1], {"a": 1}, "\x1b[2J", ""]


@pytest.mark.parametrize("kind", ["eval", "train", "audit", "end"])
def test_records_with_odd_values(folder, canary, kind):
    """Refused, or shown as what they are: a number is a number, text has no control characters."""
    whole = (folder / "scalars.jsonl").read_bytes()
    lines = whole.splitlines()
    number = next(k for k, line in enumerate(lines) if json.loads(line)["kind"] == kind)
    record = json.loads(lines[number])
    for key in record:
        for value in [*VALUES, float("nan"), float("inf")]:
            (folder / "scalars.jsonl").write_bytes(whole)
            replace_line(folder, number, json.dumps({**record, key: value}).encode())
            found = harmless(lambda: show(folder), canary)
            assert isinstance(found, UserError) or "\x1b" not in found


def test_headers_with_odd_values(folder, canary):
    record = {**header(("a", "b"), (0, 1)), "entropy_rate": {"a": 1.0}}
    for key in record:
        for value in VALUES:
            inner = {**record[key], "x": value} if isinstance(record[key], dict) else value
            for changed in (value, inner, {"masked": value, "live": value, "topology": value}):
                replace_line(folder, 0, json.dumps({**record, key: changed}).encode())
                found = harmless(lambda: show(folder), canary)
                assert isinstance(found, UserError) or "\x1b" not in found


@pytest.mark.fault("R2")
def test_results_of_a_finished_run_are_computed_not_believed(folder, canary, capsys):
    wanted = show(folder)
    for content in (canary.pickle(), b"[" * 100_000, b'{"name": "\\u001b[2J"}', b""):
        (folder / "results.json").write_bytes(content)
        assert run._show_finished(SimpleNamespace(path=folder)) == summarize(read_records(folder))
        assert json.loads((folder / "results.json").read_bytes()) == summarize(read_records(folder))
        assert wanted in capsys.readouterr().out
    assert not canary.sang


@pytest.mark.parametrize("tail", [b"[" * 9000, b'{"step": 1e999}', b'{"step": "x"}', b"\xff" * 99])
def test_the_progress_of_a_run_is_a_number(tmp_path, tail):
    (tmp_path / "scalars.jsonl").write_bytes(b'{"step": 7}\n' + tail + b"\n")
    assert steps_done(tmp_path) in (0, 7)


@pytest.mark.slow
def test_text_in_records_is_text_in_the_report(tmp_path, canary, monkeypatch):
    for name in ("save_png", "save_pdf"):  # only the SVG in the page is text that a browser reads
        monkeypatch.setattr(write, name, lambda *_: None)
    changes = {
        "name": SCRIPT,
        "versions": {"torch": SCRIPT},
        "config": {"seed": 0, "topology": SCRIPT, SCRIPT: SCRIPT},
    }
    arms = [FakeArm(name="dense", extra=changes), FakeArm(name="er", extra=changes)]
    domains = (f"a{SCRIPT}", "b&lt;", "c")
    reason = f"{SCRIPT} {canary.command}"
    study = write_study(
        tmp_path / "study", arms, seeds=(0, 1), domains=domains, failed={("er", 1): reason}
    )
    for place in study.glob("runs/*/*"):
        environment = {"commit": SCRIPT, "versions": {"torch": SCRIPT, SCRIPT: "1"}}
        (place / "environment.json").write_text(json.dumps(environment))
    (study / "runs" / "er" / "seed0" / "environment.json").write_text("[" * 100_000)
    page = write_report(collect(study), study / "report").read_text()
    assert escape(SCRIPT) in page
    for text in ("<script", "<img src=x", "onerror=alert(2)>'\""):
        assert text not in page
    assert not canary.sang


def test_a_failure_that_is_none(tmp_path, canary):
    study = write_study(
        tmp_path / "study", [FakeArm(name="dense")], seeds=(0,), failed={("dense", 0): "x"}
    )
    for content in (canary.pickle(), b"[" * 100_000, b"[]", b'{"reason": ["\\u001b"]}'):
        (study / "failures" / "dense-seed0.json").write_bytes(content)
        text = status_text(study, collect(study).plan)
        assert "1 failed" in text and "\x1b" not in text
    assert not canary.sang
