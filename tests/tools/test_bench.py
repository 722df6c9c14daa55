"""tools/bench.py from the outside: what it writes, and what it says of wrong flags."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sparsecl.programs import bench
from tests.events import HANG
from tests.launch.starter import run_script

ROOT = Path(__file__).resolve().parents[2]
ARMS = ["dense", "masked", "packed", "all_live"]
PARTS = ["forward", "backward", "update"]

# Two micro-batches, so that the parts of a step are sums.
TINY = {
    "layers": 1,
    "width": 32,
    "heads": 2,
    "context": 16,
    "vocab": 64,
    "sequences": 4,
    "micro": 2,
    "rounds": 2,
    "warmup": 1,
    "threads": 1,
}


def flags(**changes):
    pairs = {**TINY, **changes}.items()
    return [text for name, value in pairs for text in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def done(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    path = folder / "new" / "bench.json"
    words = [*flags(out=path), "--density", "0.25", "0.5", "--plot", str(folder / "new/ratio.png")]
    process = run_script(ROOT / "tools" / "bench.py", words, cwd=folder)
    assert process.code == 0, process.err
    return process, json.loads(path.read_text()), path


def test_the_file_repeats_the_flags_and_the_environment(done):
    assert done[1]["mode"] == "steps"
    config, environment = done[1]["config"], done[1]["environment"]
    assert {name: config[name] for name in TINY} == TINY
    assert config["density"] == [0.25, 0.5]
    assert config["ds_config"] == "ds_configs/zero1.json"
    assert {"python", "torch", "deepspeed"} <= set(environment["versions"])
    assert (environment["device"], environment["threads"]) == ("cpu", 1)
    assert isinstance(environment["keeps_freed_memory"], bool)


def test_every_arm_saw_the_same_tokens(done):
    assert [group["density"] for group in done[1]["groups"]] == [0.25, 0.5]
    for group in done[1]["groups"]:
        arms = group["arms"]
        assert list(arms) == ARMS
        assert group["tokens_per_step"] == 4 * 16
        assert {arm["num_tokens"] for arm in arms.values()} == {2 * 4 * 16}
        # One mask of ones, one dense layer: the same bits after three steps. One live weight in
        # four, or two: another model, and the same one in both storages.
        losses = {name: arm["last_loss"] for name, arm in arms.items()}
        assert losses["all_live"] == losses["dense"] != losses["masked"]
        assert losses["packed"] == pytest.approx(losses["masked"], abs=1e-5)
        topologies = [arm["topology"] for arm in arms.values()]
        assert [topology["kind"] for topology in topologies] == ["dense", *3 * ["er_fixed"]]
        densities = [topology["density"] for topology in topologies[1:]]
        assert densities == [group["density"], group["density"], 1.0]
        audits = {(arm["audit_checks"], arm["nonzero_absent"]) for arm in arms.values()}
        assert audits == {(1, 0)}


def test_each_density_has_its_own_baseline_with_the_same_numbers(done):
    first, second = (group["arms"]["dense"] for group in done[1]["groups"])
    assert first["last_loss"] == second["last_loss"]
    assert first["seconds"] != second["seconds"]


def test_arms_take_turns(done):
    # Round 0 is the warm-up; it would begin with the first arm.
    for group in done[1]["groups"]:
        assert group["orders"] == [
            ["masked", "packed", "all_live", "dense"],
            ["packed", "all_live", "dense", "masked"],
        ]


def test_figures_follow_from_the_raw_times(done):
    arms = done[1]["groups"][0]["arms"]
    baseline = arms["dense"]["seconds"]["step"]
    for arm in arms.values():
        seconds = arm["seconds"]
        assert list(seconds) == ["step", *PARTS]
        assert all(len(times) == 2 and min(times) > 0 for times in seconds.values())
        for k, step in enumerate(seconds["step"]):
            parts = sum(seconds[part][k] for part in PARTS)
            assert 0.5 * step < parts <= step
        for name, times in seconds.items():
            assert arm["median_seconds"][name] == pytest.approx(statistics.median(times))
        assert arm["tokens_per_second"] == pytest.approx(64 / statistics.median(seconds["step"]))
        ratios = [a / b for a, b in zip(seconds["step"], baseline, strict=True)]
        q1, median, q3 = np.percentile(ratios, (25, 50, 75))
        assert median == pytest.approx(statistics.median(ratios))
        assert arm["ratio"] == pytest.approx({"median": median, "q1": q1, "q3": q3})
    assert arms["dense"]["ratio"] == {"median": 1.0, "q1": 1.0, "q3": 1.0}


def test_table_and_picture_show_the_file(done):
    process, result, path = done
    for text, group in zip(process.out.split("\n\n"), result["groups"], strict=True):
        lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
        assert f"density {group['density']:g}," in text
        for name, arm in group["arms"].items():
            assert f"{arm['median_seconds']['step'] * 1e3:.2f}" in lines[name]
            assert f"{arm['ratio']['median']:.4f} ({arm['ratio']['q1']:.4f}" in lines[name]
    assert process.err.count("wrote") == 2 and "Traceback" not in process.err
    assert path.with_name("ratio.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"density": 10}, 64, "--density must be in (0, 1], got 10. 10% of the weights live"),
        ({"heads": 5}, 64, "--heads=5 does not divide width=32. Use 4 heads."),
        ({"layers": 0}, 64, "--layers must be >= 1, got 0"),
        ({"sequences": 0}, 64, "--sequences must be >= 1, got 0"),
        ({"rounds": 0}, 64, "--rounds must be >= 1, got 0"),
        ({"threads": 0}, 64, "--threads must be >= 1, got 0"),
        ({"vocab": 1}, 64, "--vocab must be >= 2, got 1"),
        ({"out": ROOT}, 73, f"--out {ROOT}: cannot be written"),
        ({"plot": ROOT}, 73, f"--plot {ROOT}: cannot be written"),
        ({"arms": "packed_block"}, 64, "--arms packed_block needs tiles: add --block, for example"),
        ({"block": 0}, 64, "--block must be >= 1, got 0"),
        ({"block": 5}, 64, "topology.block.size=5"),
        ({"dp": 1}, 64, "--dp must be >= 2, got 1"),
        ({"length": 17}, 64, "--length=17 is longer than the context, 16"),
        ({"device": "cuda"}, 64, "--device cuda: torch finds no GPU here; use --device cpu"),
        ({"precision": "fp16"}, 64, "precision=fp16 needs a GPU"),
        ({"micro": 3}, 64, "batch.sequences=4 is not a multiple of batch.micro"),
        ({"ds_config": "nowhere.json"}, 66, "nowhere.json"),
    ],
)
def test_wrong_flags_are_one_line(capsys, monkeypatch, changes, code, message):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for name, value in (("CUDA_VISIBLE_DEVICES", ""), ("DS_ACCELERATOR", "cpu")):
        monkeypatch.setenv(name, value)  # the tool sets them too: put back afterwards
    assert bench.main(flags(**changes)) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"sparsecl: {message}") and err.count("\n") == 1


def test_wire_is_for_the_cpu(capsys):
    assert bench.main(["--wire", *flags(device="cuda")]) == 64
    assert (
        capsys.readouterr().err == "sparsecl: --wire counts on the CPU: leave --device cuda out\n"
    )


def test_modes_and_arms_exclude_what_they_cannot_mean(capsys):
    for wrong in (["--wire", "--memory"], ["--arms", "sparse"], ["--kind", "dense"]):
        with pytest.raises(SystemExit) as stop:
            bench.parser().parse_args(wrong)
        assert stop.value.code == 2
    assert "invalid choice: 'dense'" in capsys.readouterr().err


def test_a_preset_gives_the_sizes_and_a_flag_wins():
    options = bench.parser().parse_args(["--preset", "100m", "--context", "256"])
    shape = bench.make_configs(options)[0.1]["packed"].model.resolved()
    assert (shape.layers, shape.width, shape.heads, shape.context) == (12, 768, 12, 256)
    options = bench.parser().parse_args(["--density", "0.5", "0.25"])
    configs = bench.make_configs(options)
    assert list(configs) == [0.5, 0.25] and list(configs[0.5]) == ARMS
    shape = configs[0.5]["dense"].model.resolved()
    assert (shape.layers, shape.width, shape.heads, shape.context) == (4, 768, 12, 512)


def test_several_processes_are_refused(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert bench.main(flags()) == 64
    assert "with python, not with a launcher" in capsys.readouterr().err


def test_a_wrong_flag_costs_no_import_of_torch():
    blocked = "import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; "
    script = blocked + "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", script, str(ROOT / "tools" / "bench.py")]
    process = subprocess.run(
        [*command, "--rounds", "0"], capture_output=True, text=True, timeout=HANG
    )
    assert (process.returncode, process.stderr) == (64, "sparsecl: --rounds must be >= 1, got 0\n")
