"""The script that prepares data ahead of time."""

import subprocess
import sys
from pathlib import Path

import pytest

from sparsecl.programs import prepare_data

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "prepare_data.py"

pytestmark = pytest.mark.slow  # it imports the run config, and torch with it


def call(folder, *arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(SCRIPT.parents[1]), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )


def test_it_prints_a_table(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "tokenizer: {kind: bytes}\n"
        "data:\n"
        "  cache_dir: cache\n"
        "  domains:\n"
        "    - {name: chain, source: synthetic, synthetic: {validation_tokens: 5000}}\n"
    )
    found = call(tmp_path, "--config", "run.yaml")
    assert found.returncode == 0, found.stderr
    head, row, last, empty, leaks_head, leaks = found.stdout.splitlines()
    assert head.split()[:3] == ["domain", "documents", "MB"]
    assert row.split() == ["chain", "2", "0.20", "200,001", "5,001", "1.00"]
    assert last.startswith("tokenizer bytes, 257 ids, ")
    assert (empty, leaks_head.split()[:2]) == ("", ["domain", "duplicates"])
    assert leaks.split() == ["chain", "0", "0", "0", "-", "0"]


def test_it_tells_what_is_left_out_and_what_is_not(tmp_path):
    held_out = " ".join(f"w{n}" for n in range(20))
    (tmp_path / "a.txt").write_text(f"{held_out}|to be left out|TO BE left out|{'x' * 40}")
    (tmp_path / "b.txt").write_text(f"one|{held_out} and more|To be left out.")
    (tmp_path / "v.txt").write_text(f"{held_out} but other words|to be left out")
    (tmp_path / "run.yaml").write_text(
        "tokenizer: {kind: bytes}\n"
        "model: {preset: null, layers: 1, width: 32, heads: 4, context: 16}\n"
        "data:\n"
        "  cache_dir: cache\n"
        "  domains:\n"
        "    - {name: a, source: files, separator: '|', train: [a.txt], validation: [v.txt]}\n"
        "    - {name: b, source: files, separator: '|', train: [b.txt], validation: [a2.txt]}\n"
    )
    (tmp_path / "a2.txt").write_text("another text that is held out")
    found = call(tmp_path, "--config", "run.yaml")
    assert found.returncode == 0, found.stderr
    assert [line.split() for line in found.stdout.splitlines()[5:]] == [
        ["domain", "duplicates", "left", "out", "13-grams", "in", "training", "documents"],
        ["a", "1", "1", "11", "72.7%", "1"],
        ["b", "0", "1", "0", "-", "0"],
        "left out of a: 1 that a holds out".split(),
        "left out of b: 1 that a holds out".split(),
    ]


def test_a_mistake_is_one_line_and_an_exit_code(tmp_path):
    domains = "data.domains=[{name: a, source: files, train: [none.txt]}]"
    found = call(tmp_path, "--set", domains)
    assert found.returncode == 66
    assert found.stderr.splitlines()[-1].startswith("sparsecl: domain a: train: none.txt: ")


def test_the_unexpected_is_70_as_in_the_other_programs(monkeypatch, capsys):
    def fail(*_, **__):
        raise KeyError("odd")

    monkeypatch.setattr(prepare_data, "prepare", fail)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT)])
    assert prepare_data.main() == 70
    assert "KeyError: 'odd'" in capsys.readouterr().err


def test_what_a_dataset_raises_is_one_line(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "train.jsonl").write_text('{"text": "a"}\n{oops\n')
    done = call(tmp_path, "--set", "data.domains=[{name: a, source: hf, path: corpus}]")
    assert done.returncode == 65
    line = done.stderr.splitlines()[-1]
    assert line.startswith("sparsecl: domain a: corpus: split train: ") and "train.jsonl" in line
