"""tools/gpu_check.py: what fails is recorded, what is done is not done again."""

import json

import pytest
import torch

from sparsecl import command
from sparsecl.benchmarks import gpu_check, gpu_sections
from sparsecl.programs import gpu_check as program

# What stands in for gpu_sections: the name of a section says what becomes of it.
STAND_IN = """
import json, os, signal, sys, time
name, device, rows = sys.argv[1:]
with open(os.path.join(os.path.dirname(__file__), "begun"), "a") as file:
    file.write(name + " ")
with open(rows, "w") as file:
    file.write(json.dumps({"figure": 1.5}) + "\\n")
    if name == "bad":
        file.write(json.dumps({"problem": "losses differ"}) + "\\n")
if name == "hangs":
    time.sleep(1000)
if name == "dies":
    os.kill(os.getpid(), signal.SIGSEGV)
if name == "raises":
    raise RuntimeError("no such kernel")
"""
NAMES = ("good", "bad", "hangs", "dies", "raises", "last")


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Runs the check with sections of the stand-in; returns the record, and what was begun."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(gpu_check, "MODULE", "stand_in")
    sections = [gpu_check.Section(name, 1.0 if name == "hangs" else 60, "") for name in NAMES]
    monkeypatch.setattr(gpu_check, "SECTIONS", sections)
    machine = {"device": "a card", "commit": "1"}
    monkeypatch.setattr(gpu_check, "identity", lambda device: dict(machine))

    def run(*, minutes=8.0, commit="1"):
        machine["commit"] = commit
        begun = tmp_path / "begun"
        begun.unlink(missing_ok=True)
        gpu_check.check(
            tmp_path / "out", device="cpu", names=NAMES, minutes=minutes, say=lambda text: None
        )
        found = json.loads((tmp_path / "out" / "check.json").read_text())
        return found["sections"], begun.read_text().split() if begun.exists() else []

    return run


def test_what_fails_is_recorded_and_the_others_go_on(check, tmp_path):
    found, begun = check()
    assert begun == list(NAMES)
    states = {name: record["state"] for name, record in found.items()}
    assert states == dict.fromkeys(NAMES, "failed") | {"good": "ok", "last": "ok"}
    problems = [record["problems"] for record in found.values()]
    assert problems[:4] == [
        [],
        ["losses differ"],
        ["ended after 1 s"],
        ["exit code -11: no output"],
    ]
    assert problems[4] == ["exit code 1: RuntimeError: no such kernel"]
    assert all({"figure": 1.5} in record["rows"] for record in found.values())
    text = (tmp_path / "out" / "check.txt").read_text()
    assert "figure 1.5" in text and "problem: losses differ" in text

    assert check()[1] == list(NAMES[1:5])  # what is not "ok" is done again
    assert check(commit="2")[1] == list(NAMES)  # and other code has no record


def test_what_has_no_time_is_not_begun_and_done_by_the_next_call(check):
    found, begun = check(minutes=0.0)
    assert not begun and {record["state"] for record in found.values()} == {"not begun"}
    assert check()[1] == list(NAMES)


def said(capsys, *words):
    """Exit code and the line of a call that is refused."""
    code = program.main(words)
    return code, capsys.readouterr().err


def test_what_is_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = ("--out", str(tmp_path / "out"))
    code, line = said(capsys, *out)
    assert code == 64 and "--device cuda: torch finds no GPU here; use --device cpu" in line
    code, line = said(capsys, *out, "--sections", "sped")
    assert code == 64 and "--sections sped: there are environment, tests, losses" in line
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(gpu_check, "identity", lambda device: {})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "check.json").write_text("[]")
    code, line = said(capsys, *out)
    assert code == 65 and "check.json: no record of this program" in line


def test_curves_that_differ_are_a_problem():
    row = {"storage": "packed", "stage": 3}
    good = gpu_sections.compared(row, [6.0, 5.0], [6.0, 5.0005], 1e-3)
    assert "problem" not in good and good["last"] == 5.0
    bad = gpu_sections.compared(row, [6.0, 5.0], [6.0, 5.002], 1e-3)
    assert bad["problem"] == "packed 3: losses differ by 0.002, allowed are 0.001"
    nan = gpu_sections.compared(row, [float("nan"), 5.0], [6.0, 5.0], 1e-3)
    assert "problem" in nan


def test_every_section_has_its_function():
    names = [section.name for section in gpu_check.SECTIONS]
    assert [name for name in gpu_sections.SECTIONS if name in names] == names
    assert gpu_check.chosen(None) == names


@pytest.mark.slow
def test_all_sections_on_a_cpu(tmp_path, capsys, monkeypatch):
    """Their code, for real; nothing of a GPU. Left out: compiling takes half a minute and has its
    tests in tests/model/test_compiled.py, and `tests` would begin pytest within pytest."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the program sets both
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    names = ["environment", "losses", "repeat", "waits", "nccl", "speed"]
    words = ["--out", str(tmp_path / "out"), "--device", "cpu", "--minutes", "60"]
    assert command.report(lambda: program.main([*words, "--sections", *names])) == 0
    found = json.loads((tmp_path / "out" / "check.json").read_text())["sections"]
    assert len(found["losses"]["rows"]) == 9
    assert [row["largest difference"] for row in found["repeat"]["rows"]] == [0.0]
    assert {row["micro"] for row in found["speed"]["rows"]} == {1, 2}
    assert "not asked for" in capsys.readouterr().out
