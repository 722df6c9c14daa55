"""tools/metrics.py from the outside: output, exit codes, and no torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparsecl.metrics.records import read_records
from sparsecl.metrics.summary import summarize
from tests.events import HANG
from tests.metrics.fake_run import header, write_lines, write_run

ROOT = Path(__file__).resolve().parents[2]

# Nothing that needs a compiled deep-learning stack may be asked for; without --plot not even
# matplotlib. Not by None in sys.modules, which SciPy takes for a module.
WITHOUT_TORCH = """
import runpy, sys
blocked = sys.argv.pop(1).split(",")
class Blocker:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def tool(*arguments, blocked="torch,deepspeed,megatron,datasets,matplotlib"):
    command = [sys.executable, "-c", WITHOUT_TORCH, blocked, str(ROOT / "tools" / "metrics.py")]
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=HANG,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_one_run_without_torch_or_matplotlib(tmp_path):
    done = tool(write_run(tmp_path / "run", name="my-run"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "run my-run: 5 of 5 phases finished" in done.stdout
    assert "audit: 60 checks, 0 nonzero absent entries" in done.stdout


def test_json_equals_the_summary(tmp_path):
    folder = write_run(tmp_path / "run")
    assert json.loads(tool(folder, "--json").stdout) == summarize(read_records(folder))


def test_several_runs_side_by_side(tmp_path):
    runs = [write_run(tmp_path / name, name="same", seed=k) for k, name in enumerate("ab")]
    done = tool(*runs)
    assert done.returncode == 0
    assert done.stdout.count("Validation loss") == 2
    comparison = done.stdout.split("=" * 100)[-1]
    assert "F_last" in comparison
    listed = json.loads(tool(*runs, "--json").stdout)
    # Runs of one name are told apart by their paths.
    assert [run["name"] for run in listed] == [f"same ({folder})" for folder in runs]


@pytest.mark.parametrize("num_runs", [1, 2])
def test_plot_needs_matplotlib_only(tmp_path, num_runs):
    runs = [write_run(tmp_path / str(k), domains=("code", "math")) for k in range(num_runs)]
    picture = tmp_path / "new" / "plot.png"
    done = tool(*runs, "--plot", picture, blocked="torch,deepspeed,megatron,datasets")
    assert (done.returncode, done.stderr) == (0, f"wrote {picture}\n")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_errors_are_one_line_with_their_exit_code(tmp_path):
    empty, unscored = tmp_path / "empty", tmp_path / "unscored"
    empty.mkdir()
    unscored.mkdir()
    (empty / "scalars.jsonl").write_text("")
    write_lines(unscored / "scalars.jsonl", [header(["code"], [0])])
    cases = [
        ((tmp_path / "nowhere",), 66, "no such run folder"),
        ((tmp_path,), 66, "not a run folder"),
        ((empty,), 65, "the file is empty"),
        ((unscored,), 65, "no evaluations yet"),
        ((write_run(tmp_path / "a"), "--plot", "plot.pdf"), 64, "end the name in .png"),
    ]
    for arguments, code, message in cases:
        done = tool(*arguments)
        assert done.returncode == code
        assert done.stderr.startswith("sparsecl: ") and message in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_plot_that_cannot_be_written(tmp_path):
    run = write_run(tmp_path / "run", domains=("code", "math"))
    (tmp_path / "file").write_text("")
    done = tool(run, "--plot", tmp_path / "file" / "plot.png", blocked="torch")
    assert done.returncode == 73 and "cannot be written" in done.stderr


def test_runs_with_nothing_in_common(tmp_path):
    runs = [write_run(tmp_path / n, domains=(n, n + n)) for n in "ab"]
    done = tool(*runs)
    assert done.returncode == 0
    assert "no comparison: the runs have no domain in common" in done.stdout
    assert tool(*runs, "--plot", tmp_path / "x.png", blocked="torch").returncode == 64
