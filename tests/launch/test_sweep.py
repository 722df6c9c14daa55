"""launch/sweep.py as a user starts it: real runs, stopped in the middle, and mistakes."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from sparsecl import signals
from sparsecl.experiments.findings.collect import collect
from sparsecl.programs import sweep
from tests.events import HANG

ROOT = Path(__file__).resolve().parents[2]

STUDY = """
name: small
ds_config: {root}/ds_configs/zero2.json
base:
  model: {{preset: null, layers: 1, width: 32, heads: 4, context: 16}}
  tokenizer: {{kind: bytes}}
  data:
    cache_dir: {cache}
    domains:
      - {{name: a, source: synthetic, synthetic: {{train_tokens: 4000, validation_tokens: 200}}}}
      - {{name: b, source: synthetic, synthetic: {{train_tokens: 4000, validation_tokens: 200}}}}
  phases: {{steps: 30}}
  batch: {{sequences: 4}}
  eval: {{every: 10}}
  log: {{every: 1}}
  checkpoint: {{every: 10, keep: 1}}
seeds: 1
arms:
  dense: {{topology: {{kind: dense}}}}
  sparse: {{topology: {{density: 0.25}}}}
  broken: {{optimizer: {{lr: 1.0e+9}}}}
controls: {{stopped_early: [sparse]}}
"""


@pytest.fixture
def study(tmp_path, shared_cache):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.format(root=ROOT, cache=shared_cache))
    return path


def start(study, folder):
    words = [sys.executable, str(ROOT / "launch" / "sweep.py"), str(study)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    return subprocess.Popen(
        [*words, "--study_dir", str(folder), "--jobs", "2"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines(folder):
    return sum(len(path.read_bytes().splitlines()) for path in folder.rglob("scalars.jsonl"))


def stop_after(process, folder, num_lines, how):
    """Send a signal as soon as the runs have written so many more lines."""
    target, end = lines(folder) + num_lines, time.monotonic() + 120
    while process.poll() is None and lines(folder) < target:
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(how)
    return process.communicate(timeout=HANG)


@pytest.mark.slow
def test_a_study_that_is_stopped_ends_as_one_that_is_not(study, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    out, err = start(study, whole).communicate(timeout=HANG)
    assert "3 of 4 runs done, 1 failed" in err and "not finite" in err
    table = out.partition("study small: ")[2].partition("Report ")[0]
    assert {"dense", "sparse", "sparse.stopped_early", "broken"} <= set(table.split())

    first = start(study, cut)
    _, err = stop_after(first, cut, 20, signal.SIGHUP)
    assert first.returncode == 130 and err.endswith("the same command goes on from here\n")
    stop_after(start(study, cut), cut, 35, signal.SIGKILL)
    last = start(study, cut)
    out, _ = last.communicate(timeout=HANG)
    assert last.returncode == 1  # a run has failed
    assert out.partition("study small: ")[2].partition("Report ")[0] == table

    matrices = [
        {r.run.name: r.matrix.loss.tolist() for r in collect(folder).results if r.matrix}
        for folder in (whole, cut)
    ]
    assert matrices[0] == matrices[1] and len(matrices[0]) == 3
    log = (cut / "logs" / "dense-seed0.txt").read_text()
    assert "resumed from step_" in log  # and did not begin anew
    assert (whole / "report" / "report.html").stat().st_size > 10_000
    check_pairs(whole)


def check_pairs(folder):
    """Equal data and order in both arms; the stopped arm aims at the other's loss in each phase."""
    found = {r.run.arm: r.records for r in collect(folder).results if r.records}
    digests = [found[arm].header["digests"] for arm in ("dense", "sparse")]
    assert digests[0]["data"] == digests[1]["data"]
    needed = found["sparse"].evaluations
    own = {(0, "phase_end", "a"), (1, "phase_end", "b")}
    losses = [e.loss for e in needed if (e.phase, e.at, e.domain) in own]
    config = yaml.safe_load((folder / "runs/sparse.stopped_early/seed0/config.yaml").read_text())
    assert config["phases"]["until_loss"] == losses and len(losses) == 2


@pytest.mark.fault("X6")
@pytest.mark.parametrize("number", signals.STOP_SIGNALS)
def test_a_study_is_stopped_by_any_signal(study, monkeypatch, number):
    def work(options):
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(signal.SIGTERM)  # while it stops its runs
        return 0

    monkeypatch.setattr(sweep, "sweep", work)
    signals.listen()
    try:
        assert sweep.main([str(study)]) == 130
    finally:
        signals.forget()


@pytest.mark.fault("J1")
def test_two_runners_do_not_share_a_folder(study, tmp_path, capsys):
    from sparsecl.locks import lock_folder

    with lock_folder(tmp_path / "held", "--study_dir"):
        code = sweep.main([str(study), "--study_dir", str(tmp_path / "held")])
    assert code == 73
    assert re.search(
        r"sparsecl: --study_dir .*held: in use by process \d+", capsys.readouterr().err
    )


def test_dry_run_writes_nothing(study, tmp_path, capsys):
    folder = tmp_path / "none"
    assert sweep.main([str(study), "--study_dir", str(folder), "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "4 arms x 1 seeds = 4 runs" in out and str(folder) in out
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["missing.yaml"], 66, "missing.yaml"),
        (["STUDY", "--scale", "huge"], 64, "--scale huge"),
        (["STUDY", "--set", "model.widht=3"], 64, "model.widht: unknown key"),
        (["STUDY", "--jobs", "0"], 64, "--jobs and --threads must be >= 1"),
        (["STUDY", "--set", "model.heads=5"], 64, "heads=5 does not divide"),
    ],
)
def test_mistakes_end_before_any_work(study, tmp_path, capsys, arguments, code, message):
    words = [str(study) if word == "STUDY" else word for word in arguments]
    folder = tmp_path / "none"
    assert sweep.main([*words, "--study_dir", str(folder)]) == code
    err = capsys.readouterr().err
    assert err.startswith("sparsecl: ") and message in err and len(err.splitlines()) == 1
    assert not folder.exists()
