"""The parts of tools/bench.py on a tiny model: bytes, counts, layers, slopes."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from sparsecl import dist
from sparsecl.benchmarks import checkpoints, growth, layers, memory, process, wire
from sparsecl.benchmarks.plot import draw
from sparsecl.benchmarks.probe import PeakBytes
from sparsecl.benchmarks.ratios import log_slope
from sparsecl.benchmarks.tables import as_table
from sparsecl.checkout import ROOT
from sparsecl.checkpoint import publish
from sparsecl.engine.run import check
from sparsecl.files import write_json
from sparsecl.programs import bench
from tests.events import wait_for

SIZES = "--layers 2 --width 32 --heads 2 --context 16 --vocab 128 --sequences 2 --micro 1"
ROUNDS = "--rounds 2 --warmup 0"


def options(*words):
    return bench.parser().parse_args([*f"{SIZES} {ROUNDS}".split(), *words])


def show(mode, tmp_path, **result):
    """The table of a result that has been through JSON, and its picture."""
    path = tmp_path / "result.json"
    write_json(path, {"mode": mode, **result})
    result = json.loads(path.read_text())
    draw(result, tmp_path / "result.png")
    assert (tmp_path / "result.png").read_bytes().startswith(b"\x89PNG")
    return as_table(result)


# ---- figures -----------------------------------------------------------------------------------


def test_slope_of_a_power_law():
    slope = log_slope([1, 2, 4, 8], [3 * x**1.5 for x in (1, 2, 4, 8)])
    assert slope.exponent == pytest.approx(1.5) and slope.r_squared == pytest.approx(1.0)
    flat = log_slope([1, 2, 4], [5.0, 5.0, 5.0])
    assert flat.exponent == pytest.approx(0.0, abs=1e-9) and flat.r_squared == 1.0
    # Up and down again by the same factor: no slope explains anything of it.
    bent = log_slope([1, 10, 100], [1.0, 10.0, 1.0])
    assert bent.exponent == pytest.approx(0.0, abs=1e-9)
    assert bent.r_squared == pytest.approx(0.0, abs=1e-9)


def test_covered_bytes_count_overlaps_once():
    buffer = torch.zeros(100)
    parts = [buffer[10:20], buffer[15:40], buffer[38:39], buffer[90:]]
    assert memory.covered_bytes(parts) == 4 * (30 + 10)
    assert memory.storage_bytes(parts) == 4 * 100
    assert memory.covered_bytes([]) == memory.storage_bytes([]) == 0


def test_probe_sees_the_largest_moment():
    known = torch.ones(1000)
    with PeakBytes([known]) as probe:
        a = known + 1  # 4000 bytes
        b = a.double()  # 8000 more
        del a
        b = b[:500].clone()  # 4000 more, then 8000 less
        c = known * 2  # 4000 more
    assert probe.peak == 12000
    assert b.numel() == 500 and c.numel() == 1000


# ---- measurements ------------------------------------------------------------------------------


def measure_memory(given, config):
    dist.init()
    prepared = check(config, given.ds_config, None)
    return memory.measure_arm(prepared, given.vocab, given.length)


@pytest.mark.parametrize(
    ("stage", "precision", "arm"),
    [
        (0, "bf16", "packed_csr"),
        (2, "fp32", "masked"),
        (2, "fp32", "packed_keep"),
        (3, "bf16", "packed_block"),
    ],
)
def test_bytes_are_those_of_the_formulas(pool, stage, precision, arm):
    path = str(ROOT / "ds_configs" / f"zero{stage}.json")
    given = options(
        *("--context", "64", "--arms", arm, "--density", "0.25", "--block", "8"),
        *("--precision", precision, "--ds_config", path),
    )
    config = bench.make_configs(given)[0.25][arm]
    (found,) = pool.run(measure_memory, 1, given, config)
    for part in (*memory.STATE, "state"):
        assert found["measured"][part] == found["formula"][part], part
    assert found["measured"]["gradients"] > 0 and found["measured"]["indices"] > 0
    assert (found["measured"]["kept"] > 0) == (arm == "packed_keep")
    # Small tensors (losses, tokens, unpacked indices) are not in the formulas.
    assert found["ratio"]["pass"] == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(("arm", "stage"), [("masked", 2), *(("packed", k) for k in wire.STAGES)])
def test_ranks_reduce_what_exists(pool, arm, stage):
    # 0.26 of 32 x 32 cells are 266 live weights; of 32 x 128 cells 1065, which is odd.
    given = options("--layers", "1", "--arms", arm, "--density", "0.26")
    config = wire.one_sequence(bench.make_configs(given)[0.26][arm], 2)
    others = 128 * 32 + (16 + 3) * 32
    matrices = 4 * 32 * 32 + 2 * 32 * 128 if arm == "masked" else 4 * 266 + 2 * 1065
    rows = pool.run(wire.count_case, 2, wire.Case(arm, 0.26, stage, config, 128))
    assert rows[0] == rows[1]
    # ZeRO-3 adds one element of 4 bytes to each of the two matrices with an odd count.
    padding = 8 if stage == 3 else 0
    assert (rows[0]["parameters"], rows[0]["padding"]) == (matrices + others, padding)
    assert rows[0]["bytes"] - padding == rows[0]["expected"] == 4 * (matrices + others)
    assert sum(rows[0]["calls"].values()) >= 1


def time_layers(given, configs):
    runs = {name: check(config, given.ds_config, None) for name, config in configs.items()}
    return layers.time_group(given, 0.25, runs)


def time_growth(given, axes):
    dist.init()
    return [
        growth.time_line(
            given,
            axis,
            "packed",
            {
                name: check(config, given.ds_config, None)
                for name, config in growth.line_configs(given, axis, "packed").items()
            },
        )
        for axis in axes
    ]


def test_layers_alone(pool, tmp_path):
    arms = ["masked", "packed_keep", "packed_auto"]
    given = options("--arms", *arms, "--density", "0.25")
    (group,) = pool.run(time_layers, 1, given, bench.make_configs(given)[0.25])
    assert list(group["units"]) == ["attention", "up", "down", "block"]
    for unit in group["units"].values():
        assert list(unit) == ["dense", *arms]
        assert unit["dense"]["ratio"] == {"median": 1.0, "q1": 1.0, "q3": 1.0}
        assert all(len(arm["seconds"]) == 2 and min(arm["seconds"]) > 0 for arm in unit.values())
    # Four matrices of attention, one up, one down.
    parts = [group["units"][unit]["masked"]["seconds"] for unit in ("attention", "up", "down")]
    rounds = [4 * a + b + c for a, b, c in zip(*parts, strict=True)]
    assert group["sums"]["masked"]["seconds"] == pytest.approx(sum(rounds) / 2)
    # Both splits of the square ones, and the two of the feed-forward part.
    assert len(group["choices"]["packed_auto"]) == 4 and not group["choices"]["masked"]
    table = show("per_layer", tmp_path, groups=[group])
    assert f"{group['sums']['masked']['ratio']['median']:.3f}" in table
    assert "packed_auto: 32 -> 128 at density 0.25" in table


def test_growth_has_a_line_for_each_axis(pool, tmp_path):
    given = options("--arms", "packed", "--density", "0.2", "0.1", "0.4")
    (lines,) = pool.run(time_growth, 1, given, ("live_weights", "layers"))
    assert lines[1]["sizes"] == [2, 4, 8]
    others = 128 * 32 + (16 + 5) * 32
    live = [2 * (4 * round(1024 * d) + 2 * round(4096 * d)) for d in (0.1, 0.2, 0.4)]
    assert lines[0]["sizes"] == [n + others for n in live]
    for line in lines:
        times = [point["step"] for point in line["median_seconds"]]
        slope = log_slope(line["sizes"], times)
        assert line["slopes"]["step"]["exponent"] == pytest.approx(slope.exponent)
    rows = [
        {"loss_chunk": chunk, "tokens": 16, "measured": found, "formula": found}
        for chunk, found in ((0, {"state": 2e6, "pass": 3e6}), (1024, {"state": 2e6, "pass": 1e6}))
    ]
    table = show("growth", tmp_path, lines=lines, memory=rows)
    assert f"{lines[1]['slopes']['step']['exponent']:.3f}" in table
    whole, chunked = (line.split() for line in table.splitlines()[-2:])
    assert whole == "all 2.00 3.00 3.00 5.00".split()
    assert chunked == "1024 2.00 1.00 1.00 3.00".split()


def weigh_growth(given):
    dist.init()
    configs = growth.chunk_configs(given)
    return [growth.weigh(given, check(c, given.ds_config, None)) for c in configs.values()]


def test_chunks_of_the_loss_take_less_memory(pool):
    # Two chunks of 1024 tokens; without them logits and their gradient are whole.
    given = options("--layers", "1", "--context", "1024", "--micro", "2", "--vocab", "1280")
    ((whole, chunked),) = pool.run(weigh_growth, 1, given)
    assert (whole["loss_chunk"], chunked["loss_chunk"], chunked["tokens"]) == (0, 1024, 2048)
    assert whole["measured"]["state"] == chunked["measured"]["state"]
    for row in (whole, chunked):
        assert row["measured"]["pass"] == pytest.approx(row["formula"]["pass"], rel=0.1)
    assert chunked["measured"]["pass"] < 0.7 * whole["measured"]["pass"]


def test_growth_points_of_an_axis():
    given = options()
    assert [p["density"] for p in growth.points(given, "live_weights")] == [0.05, 0.1, 0.2, 0.4]
    assert [p["sequences"] for p in growth.points(given, "tokens")] == [2, 4, 8]
    assert [p["layers"] for p in growth.points(given, "layers")] == [2, 4, 8]


def save_both_ways(given, config):
    """`measure_arm` with a writer in the background that waits until two steps have been taken."""
    dist.init()
    caller, num_steps = threading.get_ident(), [0]
    real_step, real_write = checkpoints.Saves.step, publish.write_shard

    def step(saves):
        num_steps[0] += 1
        return real_step(saves)

    def write(*arguments):
        if threading.get_ident() != caller:
            enough = num_steps[0] + 2
            wait_for(lambda: num_steps[0] >= enough, "two steps beside the writer")
        return real_write(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints.Saves, "step", step)
        patch.setattr(publish, "write_shard", write)
        return checkpoints.measure_arm(given, 0.25, check(config, given.ds_config, None))


def test_checkpoints_hold_live_weights_and_training_goes_on_beside(pool):
    given = options("--arms", "packed", "--density", "0.25")
    (found,) = pool.run(save_both_ways, 1, given, bench.make_configs(given)[0.25]["packed"])
    live = 2 * (4 * 256 + 2 * 1024) + 128 * 32 + (16 + 5) * 32
    assert (found["storage"], found["live_parameters"]) == ("packed", live)
    # Master and two moments in fp32; a live set needs a bit for each place at most, or 4 bytes
    # for each live weight. Beside them names and numbers only.
    assert 0 < found["topology_bytes"] < 4 * live
    assert 12 * live < found["bytes"] - found["topology_bytes"] < 12 * live + 32_000
    seconds = found["seconds"]
    assert {way: len(seconds[way]["stall"]) for way in seconds} == dict.fromkeys(
        checkpoints.WAYS, 2
    )
    assert all(len(steps) >= 2 for steps in seconds["background"]["steps"])
    front = seconds["foreground"]
    pairs = zip(front["stall"], front["write"], strict=True)
    assert all(stall > write > 0 for stall, write in pairs)


def test_what_no_density_changes_is_saved_once(monkeypatch):
    given = options("--arms", "packed", "all_live", "--density", "0.1", "0.2")
    sizes = {"dense": 1000, "packed": 200, "all_live": 1010}
    monkeypatch.setattr(process, "start", lambda given, groups: ({}, groups))
    monkeypatch.setattr(process, "finish", dict)
    monkeypatch.setattr(dist, "init", lambda: None)
    monkeypatch.setattr(dist, "shutdown", lambda: None)
    monkeypatch.setattr(
        checkpoints, "measure_arm", lambda given, density, run: {"bytes": sizes[run.name]}
    )
    rows = checkpoints.measure(given, bench.make_configs(given))["rows"]
    assert [(row["density"], row["arm"], row["bytes_to_dense"]) for row in rows] == [
        (1.0, "dense", 1.0),
        (0.1, "packed", 0.2),
        (1.0, "all_live", 1.01),
        (0.2, "packed", 0.2),
    ]


# ---- what is shown -----------------------------------------------------------------------------


def test_memory_table_shows_measured_and_formula(tmp_path):
    parts = {name: 1_000_000 * k for k, name in enumerate((*memory.STATE, "state", "pass"), 1)}
    row = {
        "density": 0.1,
        "arm": "packed",
        "measured": parts,
        "formula": {name: 2 * size for name, size in parts.items()},
        "ratio": {"state": 0.5, "pass": 0.5},
        "matrices_to_dense": {"measured": 0.1064, "formula": 0.1065},
    }
    lines = show("memory", tmp_path, rows=[row]).splitlines()
    assert (
        lines[2].split()
        == "0.1 packed measured 7.00 1.00 2.00 3.00 4.00 5.00 6.00 8.00 0.1064".split()
    )
    assert lines[3].split()[:2] == ["formula", "14.00"] and lines[4].split()[0] == "ratio"


def test_wire_table_shows_what_was_counted(tmp_path):
    row = {
        "arm": "packed",
        "density": 0.1,
        "stage": 3,
        "parameters": 1000,
        "expected": 4000,
        "padding": 40,
        "bytes": 4040,
        "calls": {"reduce_scatter_base": 2},
        "other_calls": {"allgather_base": 7},
    }
    (line,) = show("wire", tmp_path, dp=2, rows=[row]).splitlines()[2:]
    assert line.split()[:8] == "0.1 packed 3 1,000 4,000 40 4,040 1.01000".split()
    assert line.endswith("reduce_scatter_base 2 (not counted: allgather_base 7)")


def test_stalls_are_shown_as_a_share_of_training(tmp_path):
    seconds = {
        "foreground": {"stall": [32.0, 31.0, 33.0], "write": [3.0, 3.0, 3.0], "step": [2.0] * 3},
        "background": {
            "stall": [0.5, 0.5, 0.6],
            "write": [4.0] * 3,
            "step": [2.0] * 3,
            "steps": [[3.0], [2.0, 2.0], [2.0, 6.0]],
        },
    }
    # sqrt(2 x 86400 x 3) = 720: one save in 720 s, which are 360 steps of 2 s.
    figures = checkpoints.figures(seconds)
    assert figures["interval_seconds"] == pytest.approx(720)
    assert figures["share"] == pytest.approx({"foreground": 32 / 720, "background": 0.5 / 720})
    assert figures["stall"]["foreground"] == {"median": 32.0, "q1": 31.5, "q3": 32.5}
    row = {
        "density": 0.1,
        "arm": "packed",
        "storage": "packed",
        "live_parameters": 1000,
        "bytes": 2_000_000,
        "topology_bytes": 250_000,
        "bytes_to_dense": 0.125,
        **figures,
    }
    text = show("checkpoints", tmp_path, mttf_seconds=86400, stall_bound=0.035, rows=[row])
    expected = (
        "0.1 packed packed 1,000 2.00 0.25 0.1250 2000.0 3000.0 32000.0 (31500.0-32500.0) "
        "500.0 (500.0-550.0) 720 360 4.444%! 0.069% 1.50"
    )  # 32 s of 720 are above 3.5 %, half a second is not
    assert text.splitlines()[-1].split() == expected.split()


# ---- the allocator -----------------------------------------------------------------------------

CHILD = """
import sys, torch
from sparsecl.allocator import keep_freed_memory
answer = keep_freed_memory() if sys.argv[1] == "keep" else None
for _ in range(40):  # the first ten or so may still take new memory, see keep_freed_memory
    torch.full((16 * 2**20,), 7.0)  # 64 MB: mmap's by default
print(answer, torch.empty(16 * 2**20)[8 * 2**20].item())
"""


def child(word):
    done = subprocess.run(
        [sys.executable, "-c", CHILD, word], capture_output=True, text=True, cwd=Path(ROOT)
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(torch.cuda.is_available(), reason="does nothing where a GPU does the work")
def test_freed_memory_is_used_again():
    import ctypes

    # The old contents are still there. Memory that went back to the system comes again as zeros.
    if hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        assert child("keep") == ["True", "7.0"]
        assert child("leave") == ["None", "0.0"]
    else:
        assert child("keep")[0] == "False"
