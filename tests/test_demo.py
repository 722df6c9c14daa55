"""The demo from end to end, small: its table holds the numbers of the runs' own files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparsecl.metrics.by_domain import MEAN, by_domain, losses_by_domain
from sparsecl.metrics.records import read_records
from sparsecl.metrics.summary import summarize
from sparsecl.programs import demo
from tests.events import HANG
from tests.metrics.fake_run import write_run

ROOT = Path(__file__).resolve().parent.parent
DOMAINS = ("a", "b", "c")
SYNTHETIC = "{{name: {}, source: synthetic, synthetic: {{train_tokens: 2000}}}}"
SMALL = (
    "model={preset: null, layers: 1, width: 32, heads: 4, context: 16}",
    "tokenizer={kind: bytes}",
    "phases.steps=3",
    "batch={sequences: 4}",
    "log.every=1",
    "eval={every: 0, tokens: 64}",
    "data.cache_dir=cache",
    f"data.domains=[{', '.join(map(SYNTHETIC.format, DOMAINS))}]",
)


def run_demo(folder: Path, *settings: str) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    return subprocess.run(
        [sys.executable, "-m", "sparsecl", "demo", "--set", *SMALL, *settings],
        cwd=folder, env=env, capture_output=True, text=True, timeout=HANG,
    )  # fmt: skip


def losses_in(run: Path) -> dict[str, tuple[float, float]]:
    """Domain -> loss after its own phase and after the last, by the lines of scalars.jsonl."""
    lines = [json.loads(line) for line in (run / "scalars.jsonl").read_text().splitlines()]
    ends = {(x["phase"], x["domain"]): x["loss_sum"] / x["num_tokens"]
            for x in lines if x["kind"] == "eval" and x["at"] == "phase_end"}  # fmt: skip
    last = len(DOMAINS) - 1
    return {name: (ends[phase, name], ends[last, name]) for phase, name in enumerate(DOMAINS)}


@pytest.mark.slow
def test_the_table_is_that_of_the_files(tmp_path: Path) -> None:
    done = run_demo(tmp_path)
    assert done.returncode == 0, done.stderr
    found = [losses_in(tmp_path / "runs" / "demo" / name) for name in ("dense", "sparse")]
    rows = {words[0]: words[1:] for line in done.stdout.splitlines() if (words := line.split())}
    lost = []
    for name in DOMAINS:
        wanted = []
        for losses in found:
            learned, final = losses[name]
            rise = "-" if name == DOMAINS[-1] else f"{final - learned:.3f}"
            wanted += [f"{learned:.3f}", f"{final:.3f}", rise]
        assert rows[name] == wanted
    for losses in found:
        terms = [final - learned for learned, final in list(losses.values())[:-1]]
        lost.append(f"{sum(terms) / len(terms):.3f}")
    assert rows["mean"][2::3] == lost
    assert f"F_last {lost[1]} against {lost[0]} nats" in " ".join(done.stdout.split())
    assert done.stdout.rstrip().endswith("repeat it.")
    assert (tmp_path / "runs/demo/comparison.png").read_bytes().startswith(b"\x89PNG")
    # What DeepSpeed's launcher says is in the log alone; the bar has counted every step of both.
    assert "runner.py" in (tmp_path / "runs/demo/dense.log").read_text()
    assert "runner.py" not in done.stdout + done.stderr
    assert f"{6 * len(DOMAINS)}/{6 * len(DOMAINS)}" in done.stderr
    kind = [(tmp_path / "runs/demo" / n / "config.yaml").read_text() for n in ("dense", "sparse")]
    assert "kind: dense" in kind[0] and "kind: er_fixed" in kind[1]


@pytest.mark.slow
def test_an_error_of_a_run_stands_last(tmp_path: Path) -> None:
    done = run_demo(tmp_path, "precision=fp16")
    assert done.returncode == 64
    last = done.stderr.splitlines()[-1]
    assert last.startswith("sparsecl: dense: precision=fp16 needs a GPU"), done.stderr
    assert last.endswith("(all it printed: runs/demo/dense.log)")


def test_a_wrong_setting_is_told_before_any_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--set", "phases.stesp=3"]) == 64
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert "phases.stesp" in captured.err


def test_the_means_are_the_named_figures(tmp_path: Path) -> None:
    """By hand from the matrix, whose definitions are those of metrics/forgetting.py."""
    summary = summarize(read_records(write_run(tmp_path / "run")))
    loss, count = summary["matrix"]["loss"], len(summary["domains"])
    found = losses_by_domain(summary, summary["domains"], alike=True)
    for i, name in enumerate(summary["domains"]):
        assert found[name]["learned"] == loss[i + 1][i] and found[name]["final"] == loss[-1][i]
    assert found[MEAN]["forgotten"] == pytest.approx(summary["forgetting"]["F_last"])
    assert found[MEAN]["final"] == pytest.approx(sum(loss[-1]) / count)
    assert found[MEAN]["learned"] == pytest.approx(
        sum(loss[i + 1][i] for i in range(count)) / count
    )


@pytest.mark.parametrize(("now", "word"), [(0.5, "less"), (1.5, "more"), (1.0, "as much")])
def test_the_answer_says_what_the_numbers_say(
    now: float, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    means = {"forgotten": 1.0, "learned": 4.0, "final": 5.0}
    monkeypatch.setattr(demo, "losses_by_domain", lambda run, *_, **__: {MEAN: run["means"]})
    dense, sparse = (
        {"domains": [], "means": means | {"forgotten": value}, "density": {"masked": 0.1}}
        for value in (1.0, now)
    )
    assert f"the model forgot {word}: F_last" in " ".join(demo.answer(dense, sparse).split())


def test_many_runs_are_parted_into_blocks_that_fit(tmp_path: Path) -> None:
    runs = [summarize(read_records(write_run(tmp_path / n, name=n))) for n in "abcdefg"]
    text = by_domain(runs)
    assert max(map(len, text.splitlines())) <= 100 and text.count("forgotten\n") == 4 - 1
    with pytest.raises(ValueError, match="no domain in common"):
        other = summarize(read_records(write_run(tmp_path / "o", domains=("x", "y"))))
        by_domain([runs[0], other])
