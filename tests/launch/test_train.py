"""A whole run from the command line: what it writes, prints and repeats."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from sparsecl.engine.observe import board
from sparsecl.metrics.records import read_records
from tests.events import HANG
from tests.launch import outcome
from tests.launch.starter import ROOT, Done, Starter


@pytest.fixture(scope="module")
def finished(server, tmp_path_factory, shared_cache) -> tuple[Starter, Path, Done]:
    """One whole run that the tests of this file look at; none of them changes it."""
    starter = Starter(tmp_path_factory.mktemp("finished"), shared_cache)
    folder = starter.folder / "run"
    done = starter.run("--run_dir", str(folder))
    assert done.code == 0, done.err
    return starter, folder, done


def test_the_folder_holds_everything(finished):
    _, folder, _ = finished
    found = {path.name for path in folder.iterdir()} - {".lock"}
    files = {"config.yaml", "ds_config.json", "environment.json", "scalars.jsonl", "attempts.jsonl"}
    files |= {"results.json", "log.txt", "forgetting.png"}
    assert found == files | {"tb", "checkpoints"}
    assert list((folder / "tb").glob("events.out.tfevents.*"))
    assert (folder / "forgetting.png").read_bytes().startswith(b"\x89PNG")
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["latest", "published.jsonl", "step_20", "step_24"]
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["versions"]["deepspeed"]
    began = json.loads((folder / "scalars.jsonl").read_text().partition("\n")[0])
    assert began["versions"]["attention"].endswith("attention")  # decides how gradients round


def test_the_results_are_those_of_the_record(finished):
    _, folder, _ = finished
    results = json.loads((folder / "results.json").read_text())
    tool = [sys.executable, str(ROOT / "tools" / "metrics.py"), str(folder), "--json"]
    env = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(tool, capture_output=True, text=True, check=True, env=env)
    assert json.loads(done.stdout) == results


def test_the_results_hold_what_scripts_rely_on(finished):
    _, folder, _ = finished
    results = json.loads((folder / "results.json").read_text())
    assert results["domains"] == ["a", "b"]
    for score in ("loss", "bits_per_byte", "accuracy"):
        assert [len(row) for row in results["matrix"][score]] == [2, 2, 2]
    # Audits at steps 5, 10, 12, 15, 20 and 24.
    assert results["audit"] == {"checks": 6, "nonzero": 0, "held": 0}
    assert results["density"]["masked"] == 0.25
    assert results["matrix"]["loss"][2][1] < results["matrix"]["loss"][0][1] - 1.0  # it learns


def test_the_results_say_what_the_run_cost(finished):
    _, folder, done = finished
    found = json.loads((folder / "results.json").read_text())["performance"]
    assert (found["mfu"], found["communication_share"]) == (None, None)  # a CPU, one process
    step = found["step_seconds"]
    assert found["ranks"] == 1
    assert 0.0 < step["min"] == step["median"] == step["max"]
    assert found["tokens_per_second"] == pytest.approx(24 * 128 / found["parts"]["training"])
    assert found["peak_memory_bytes"] > 50e6  # torch alone takes more
    assert 0.0 <= found["loader_wait_share"] < 1.0
    assert found["attempts"] == 1 and found["parts"]["between_attempts"] == 0.0
    assert 0.0 < found["goodput"] == found["goodput_of_attempts"] < 1.0
    assert sum(found["parts"].values()) == pytest.approx(found["wall_seconds"])
    assert all(found["parts"][name] > 0.0 for name in ("startup", "evaluation", "checkpoint"))
    assert "in 1 attempt, goodput" in done.out and "speed: " in done.out


def test_tensorboard_groups_what_the_run_has(finished):
    _, folder, _ = finished
    curves = EventAccumulator(str(folder / "tb")).Reload()
    content = curves.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    categories = layout_pb2.Layout.FromString(content).category
    assert [category.title for category in categories] == list(board.LAYOUT)
    tags = set(curves.Tags()["scalars"])
    charts = {chart.title: chart.multiline.tag for c in categories for chart in c.chart}
    empty = {
        title
        for title, patterns in charts.items()
        if not any(re.match(pattern, tag) for pattern in patterns for tag in tags)
    }
    # Without a known peak and without other ranks.
    assert empty == {"model FLOPs utilisation", "slowest rank / usual rank"}
    points = curves.Scalars("performance/tokens_per_second")
    assert [point.step for point in points] == [128 * step for step in range(2, 25)]
    border = {128 * 12 - 1: "a", 128 * 12: "b"}  # the curve jumps from one domain to the other
    followed = {point.step: point.value for point in curves.Scalars(board.IN_TRAINING)}
    for step, domain in border.items():
        bits = curves.Scalars(f"validation_bits_per_byte/{domain}")
        assert followed[step] == next(point.value for point in bits if point.step == 128 * 12)


def test_every_step_is_recorded(finished):
    _, folder, _ = finished
    records = read_records(folder)
    assert [point.step for point in records.train] == list(range(1, 25))
    assert [point.tokens for point in records.train] == [128 * k for k in range(1, 25)]
    flops, live = records.header["flops"], records.header["parameters"]["live"]
    assert 24 * 128 * 6 * live < flops["training"] < 24 * 128 * 12 * live
    assert flops["executed"] >= flops["training"]
    assert flops["dense_gradients"] == flops["scores"] == 0.0


def test_the_tables_are_printed_and_kept(finished):
    _, folder, done = finished
    for text in ("Validation loss, nats per token", "F_last", "audit: 6 checks, 0 nonzero"):
        assert text in done.out
        assert text in (folder / "log.txt").read_text()
    assert f"Results    {folder / 'results.json'}" in done.out


def test_a_second_start_trains_nothing(finished):
    starter, folder, first = finished
    before = {path: path.read_bytes() for path in folder.rglob("*.json*")}
    done = starter.run("--run_dir", str(folder))
    assert done.code == 0, done.err
    assert "This run was finished before" in done.out
    assert "Validation loss, nats per token" in done.out
    assert {path: path.read_bytes() for path in folder.rglob("*.json*")} == before


def test_a_finished_run_is_not_shown_as_another(finished):
    starter, folder, _ = finished
    done = starter.run("--run_dir", str(folder), "--set", "seed=1")
    assert (done.code, "seed: 0 -> 1" in done.line) == (64, True)
    done = starter.run("--run_dir", str(folder), "--set", "log.every=2", "name=other")
    assert done.code == 0, done.err  # these decide no result


def test_the_saved_config_repeats_the_run(finished):
    starter, folder, _ = finished
    again = starter.folder / "again"
    done = starter.run("--run_dir", str(again), config=folder / "config.yaml")
    assert done.code == 0, done.err
    outcome.assert_equal(outcome.read(again), outcome.read(folder))


def test_dry_run_creates_nothing(starter):
    starter.cache = starter.folder / "cache"
    config = starter.config()
    before = {path for path in starter.folder.rglob("*") if "job_" not in str(path)}
    done = starter.run("--dry_run", "--run_dir", str(starter.folder / "run"), config=config)
    assert (done.code, done.err) == (0, "")
    for text in ("15,040 live of 33,472", "FLOPs", "density: 0.25", str(starter.folder / "run")):
        assert text in done.out
    assert re.search(r"^  methods +none$", done.out, re.M)
    assert {path for path in starter.folder.rglob("*") if "job_" not in str(path)} == before


@pytest.mark.parametrize(
    "settings",
    [
        "data.domains=[{name: a, source: files, train: [none.txt]}]",
        "tokenizer={model: none.model, kind: sentencepiece}",
        "init_from=none/step_0",
    ],
)
def test_dry_run_says_what_the_run_would_say_of_a_missing_file(starter, settings):
    words = ("--run_dir", str(starter.folder / "run"), "--set", settings)
    dry, real = starter.run("--dry_run", *words), starter.run(*words)
    assert (dry.code, dry.line) == (real.code, real.line)
    assert dry.code == 66 and "none" in dry.line


def test_without_run_dir_the_name_and_the_configs_give_the_folder(starter):
    folders = []
    for settings in ((), ("--set", "seed=1"), ("--ds_config", str(ROOT / "ds_configs/zero1.json"))):
        done = starter.run("--dry_run", *settings)
        folders.append(done.out.splitlines()[-1].split()[-1])
    assert len(set(folders)) == 3
    assert all(folder.startswith("runs/tiny-") for folder in folders)


def test_help_config_explains_every_key_without_torch():
    blocked = "import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; "
    script = blocked + "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", script, str(ROOT / "launch" / "train.py"), "--help_config"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG)
    assert (done.returncode, done.stderr) == (0, "")
    for line in (
        "topology.density: a number = 0.1",
        "methods.ewc.strength: a number >= 0 = 10000.0",
        "data.domains.N.source: one of installed, files, hf, synthetic = required",
    ):
        assert line in done.stdout.splitlines()
