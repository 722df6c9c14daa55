"""A fault on one rank ends all of them, soon, with a code and a reason; nothing saved is lost."""

import json
import shutil
from pathlib import Path

import pytest

from sparsecl.checkpoint.manifest import read_manifest, write_manifest
from sparsecl.checkpoint.publish import candidates, newest_valid
from tests.events import free_port
from tests.launch import outcome
from tests.launch.starter import Done, Starter


def start(starter: Starter, *faults: str, world_size: int, settings: tuple[str, ...] = ()):
    inject = ("--inject", *faults) if faults else ()
    chosen = ("--set", "phases.steps=20", *settings)
    words = starter.arguments("--run_dir", str(starter.folder / "run"), *chosen, *inject)
    return starter.start_ranks(words, world_size)


def run(starter: Starter, *faults: str, settings: tuple[str, ...] = ()) -> Done:
    (job,) = start(starter, *faults, world_size=1, settings=settings)
    return job.wait()


def records(folder: Path) -> list[dict]:
    text = (folder / "scalars.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


# ---- ranks that are lost -----------------------------------------------------------------------


@pytest.mark.fault("P1", "P10")
@pytest.mark.parametrize("fault", ["raise", "kill"])
def test_a_lost_rank_ends_the_others(starter, fault):
    jobs = start(starter, f"{fault}@step:6/rank=1", world_size=2)
    ends = [job.wait() for job in jobs]
    assert ends[1].code == {"raise": 70, "kill": -9}[fault]
    assert ("InjectedError" in ends[1].err) == (fault == "raise")
    assert ends[0].code == 76
    assert "sparsecl: rank 0 has lost another rank" in ends[0].err
    found, _ = newest_valid(starter.folder / "run" / "checkpoints")
    assert found is not None and found.name == "step_4"


@pytest.mark.fault("P11")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "text"),
    [("sleep=300", "silent for"), ("stop", "rank 1: does not run (stopped or dead)")],
)
def test_a_rank_that_hangs_is_named(starter, fault, text):
    settings = ("health.hang_seconds=2",)
    jobs = start(starter, f"{fault}@step:9/rank=1", world_size=2, settings=settings)
    end = jobs[0].wait()
    assert end.code == 76
    assert "sparsecl: rank 0: nothing has happened for" in end.err
    assert text in end.err and "since: step 9" in end.err
    assert "stacks of all threads" in end.err and "engine/loop/train.py" in end.err
    if fault == "stop":
        jobs[1].kill()
        assert jobs[1].wait().code == -9
    else:
        other = jobs[1].wait()
        assert other.code == 76 and "sparsecl: rank 1: nothing has happened" in other.err


@pytest.mark.fault("J5")
def test_ranks_that_do_not_come_are_named(starter):
    words = starter.arguments("--run_dir", str(starter.folder / "run"))
    places = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1"}
    words += ["--set", "health.join_seconds=1.5", "batch.sequences=9"]
    done = starter.start(words, {**places, "MASTER_PORT": str(free_port())}).wait()
    assert done.code == 76
    assert "rank 1, 2 did not come within 1.5 s" in done.err.splitlines()[-1]


# ---- disks -------------------------------------------------------------------------------------


@pytest.mark.fault("D1")
def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint(starter):
    done = run(starter, "full@save.shard:3")
    assert done.code == 74, done.err
    assert "No space left" in done.err
    root = starter.folder / "run" / "checkpoints"
    found, _ = newest_valid(root)
    assert found is not None and [path.name for path in candidates(root)] == ["step_4"]
    assert not list(root.glob("*.tmp"))


@pytest.mark.fault("D1")
def test_a_full_disk_may_cost_a_checkpoint_only(starter):
    settings = ("checkpoint.on_failure=go_on", "phases.steps=8", "checkpoint.background=true")
    done = run(starter, "full@save.shard:3", settings=settings)
    assert done.code == 0, done.err
    assert "Training goes on without this checkpoint" in done.out
    assert (starter.folder / "run" / "results.json").exists()


# ---- losses ------------------------------------------------------------------------------------


@pytest.mark.fault("N4")
def test_a_spike_is_rolled_back_and_its_data_left_out(starter):
    settings = ("health.rollback=true",)
    done = run(starter, "spike=1000@loss:15", settings=settings)
    assert done.code == 0, done.err
    folder = starter.folder / "run"
    found = records(folder)
    (back,) = [entry for entry in found if entry["kind"] == "rollback"]
    assert (back["from_step"], back["step"]) == (15, 12)
    assert back["loss"] > 100 * back["usual"]
    steps = [entry["step"] for entry in found if entry["kind"] == "train"]
    assert steps == list(range(1, 41))
    state = read_manifest(candidates(folder / "checkpoints")[0]).state
    back = state["observers"]["health"]["rollbacks"]
    assert (back, state["position"]["data_shift"]) == (1, 0)  # the next phase has its own data
    # The steps after the checkpoint have read other text than a run without the spike.
    assert max(entry["loss"] for entry in found if entry["kind"] == "train") < 10


@pytest.mark.fault("N4")
def test_a_spike_is_never_silent(starter):
    done = run(starter, "spike=1000@loss:15", settings=("phases.steps=16",))
    assert done.code == 0, done.err
    found = [entry for entry in records(starter.folder / "run") if entry["kind"] == "spike"]
    assert [entry["step"] for entry in found] == [15]
    assert "step 15: the training loss jumps" in done.out


# ---- weights without the rest ------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(server, tmp_path_factory, shared_cache) -> Path:
    """Folder of a run that was stopped after 6 of 24 steps."""
    starter = Starter(tmp_path_factory.mktemp("stopped"), shared_cache)
    words = ("--run_dir", str(starter.folder / "run"), "--inject", "usr1@step:6")
    assert starter.run(*words).code == 75
    return starter.folder / "run"


def without_a_moment(folder: Path) -> None:
    manifest = read_manifest(folder)
    kept = [
        piece
        for piece in manifest.pieces
        if (piece.state, piece.name) != ("exp_avg", "embedding.weight")
    ]
    object.__setattr__(manifest, "pieces", tuple(kept))
    write_manifest(folder, manifest)


@pytest.mark.fault("C13")
def test_a_lost_optimizer_is_refused_unless_allowed(starter, stopped):
    folder = Path(shutil.copytree(stopped, starter.folder / "run"))
    without_a_moment(candidates(folder / "checkpoints")[0])
    done = starter.run("--run_dir", str(folder))
    assert done.code == 65
    assert "exp_avg of embedding.weight is missing" in done.line and "--weights_only" in done.line
    done = starter.run("--run_dir", str(folder), "--weights_only")
    assert done.code == 0, done.err
    assert "with a new optimizer" in (folder / "log.txt").read_text()
    assert len(outcome.losses(folder)) == 24


def test_a_run_can_begin_with_the_weights_of_another(starter, stopped):
    checkpoint = candidates(stopped / "checkpoints")[0]
    folder = starter.folder / "run"
    done = starter.run("--run_dir", str(folder), "--set", f"init_from={checkpoint}")
    assert done.code == 0, done.err
    first = [r["loss_sum"] for r in records(folder) if r["kind"] == "eval" and r["at"] == "start"]
    drawn = [r["loss_sum"] for r in records(stopped) if r["kind"] == "eval" and r["at"] == "start"]
    assert all(learned < before for learned, before in zip(first, drawn, strict=True))
    done = starter.run("--run_dir", str(folder) + "2", "--set", "init_from=nowhere")
    assert done.code == 66 and "init_from=nowhere" in done.line
