"""tools/report.py from the outside: what it writes, exit codes, and no torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparsecl.experiments.findings.collect import collect
from sparsecl.experiments.report import write, write_report
from sparsecl.programs import report
from tests.events import HANG
from tests.experiments.fake_study import FakeArm, write_study
from tests.tools.test_metrics import WITHOUT_TORCH

ROOT = Path(__file__).resolve().parents[2]
ARMS = (FakeArm(name="dense", kind="dense", density=1.0), FakeArm(name="er", forgets=0.2))


def tool(*arguments):
    blocked = "torch,deepspeed,megatron,datasets"
    command = [sys.executable, "-c", WITHOUT_TORCH, blocked, str(ROOT / "tools" / "report.py")]
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=HANG,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"},
    )


def test_another_process_writes_the_same_page_and_tables_without_torch(tmp_path, monkeypatch):
    folder = write_study(tmp_path / "study", ARMS, seeds=range(2), order=(0, 1), domains=("a", "b"))
    done = tool(folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"wrote {folder / 'report' / 'report.html'}\n"
    figures = [path.name for path in (folder / "report" / "figures").iterdir()]
    # PDF and PNG take most of the time; that they repeat is tested with one figure.
    for name in ("save_pdf", "save_png"):
        monkeypatch.setattr(write, name, lambda *_: None)
    write_report(collect(folder), tmp_path / "again")
    first, second = (
        {
            path.relative_to(place): path.read_bytes()
            for path in place.rglob("*.*")
            if path.is_file()
        }
        for place in (folder / "report", tmp_path / "again")
    )
    assert len(figures) == len(first) - len(second) == 14
    assert {path: first[path] for path in second} == second and len(second) > 20


def test_errors_are_one_line_with_their_exit_code(tmp_path, capsys):
    folder = write_study(tmp_path / "study", ARMS[:1], seeds=[0])
    (tmp_path / "file").write_text("")
    cases = [
        ([tmp_path], 66, "not the folder of a study"),
        ([tmp_path / "nowhere"], 66, "not the folder of a study"),
        ([folder, "--out", folder / "runs"], 73, "is not a report; name another folder"),
        ([folder, "--out", tmp_path / "file" / "x"], 73, "cannot be written"),
    ]
    for arguments, code, message in cases:
        assert report.main([str(argument) for argument in arguments]) == code
        shown = capsys.readouterr()
        assert shown.err.startswith("sparsecl: ") and message in shown.err
        assert shown.err.count("\n") == 1 and shown.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "study"]


def test_unknown_options_are_refused():
    with pytest.raises(SystemExit) as error:
        report.main(["study", "--format", "pdf"])
    assert error.value.code == 2
