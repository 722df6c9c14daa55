"""Jobs on a real Slurm of two virtual nodes: cut, requeued, cancelled, bereft of a node."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from sparsecl.programs import sweep
from tests.events import wait_for
from tests.launch import outcome
from tests.launch.starter import Starter
from tests.slurm.cluster import num_lines
from tests.slurm.test_scripts import HOSTILE

ROOT = Path(__file__).resolve().parents[2]
SITE = ("GPUS=no", f"PYTHON={sys.executable}", "CPUS_PER_TASK=1", "RANKS_PER_NODE=1")
TWO_NODES = (*SITE, "NODES=2")

pytestmark = pytest.mark.slow


def begun(folder, rank, restarts=0):
    """What the fake training has written down at its start."""
    path = folder / f"rank{rank}.restart{restarts}.json"
    return wait_for(lambda: path.exists() and path.read_text(), str(path))


def test_ranks_on_two_nodes_and_a_hostile_name(cluster, project, tmp_path):
    words = (str(tmp_path), ".", "65", HOSTILE)
    end = cluster.end_of(cluster.train(project, TWO_NODES, *words, cwd=tmp_path))
    assert end == {"JobState": "FAILED", "Restarts": "0", "ExitCode": "65:0"}
    facts = [json.loads(begun(tmp_path, rank)) for rank in (0, 1)]
    assert [f["RANK"] for f in facts] == ["0", "1"] and facts[0]["argv"] == [HOSTILE]
    assert [f["LOCAL_RANK"] for f in facts] == ["0", "0"]
    assert {(f["WORLD_SIZE"], f["LOCAL_WORLD_SIZE"]) for f in facts} == {("2", "1")}
    assert len({(f["MASTER_ADDR"], f["MASTER_PORT"]) for f in facts}) == 1
    assert facts[0]["MASTER_ADDR"] == "vnode1" and facts[0]["OMP_NUM_THREADS"] == "1"
    logs = sorted(path.name for path in (tmp_path / "runs" / "slurm").glob("*.txt"))
    assert len(logs) == 2 and logs[0].endswith(".rank1.txt")
    assert not list(tmp_path.rglob("stolen"))


def test_the_time_limit_gives_notice_and_the_job_goes_on(cluster, project, tmp_path):
    settings = (*TWO_NODES, "TIME=1", "NOTICE=50")
    job = cluster.train(project, settings, str(tmp_path), "never", "0", cwd=tmp_path)
    begun(tmp_path, 1, restarts=1)
    cluster.run("scancel", job)
    assert "rank 1 has saved" in (tmp_path / "runs" / "slurm" / f"{job}.rank1.txt").read_text()
    # Cancelled while it runs: the ranks are asked to stop, and nobody starts it again.
    assert cluster.end_of(job)["JobState"] == "CANCELLED"


def test_of_an_array_only_the_task_that_was_cut_is_requeued(cluster, project, tmp_path):
    script = project / "slurm" / "train.sbatch"
    root = f"SPARSECL_ROOT={project}"
    words = (*SITE, "--", str(tmp_path), "go", "0")
    sbatch = ("sbatch", "--parsable", "--array=0-1", "--ntasks=1", "--requeue")
    job = cluster.run("env", root, *sbatch, script, *words, cwd=tmp_path).strip()
    # The last task has the number of the whole array.
    logs = [tmp_path / f"slurm-{job}_{task}.out" for task in (0, 1)]
    for log in logs:
        wait_for(lambda log=log: log.exists() and "meeting at" in log.read_text(), str(log))
    begun(tmp_path, 0)
    wait_for(lambda: len(list((tmp_path / "runs" / "slurm").iterdir())) == 2, "both tasks")
    cluster.run("scancel", "--signal=USR1", f"{job}_1")
    wait_for(lambda: cluster.facts(f"{job}_1")["Restarts"] == "1", "the requeue")
    (tmp_path / "go").touch()
    ends = [cluster.end_of(f"{job}_{task}") for task in (0, 1)]
    assert [(end["JobState"], end["Restarts"]) for end in ends] == [
        ("COMPLETED", "0"),
        ("COMPLETED", "1"),
    ]


def test_a_dead_node_ends_in_a_requeue(cluster, project, tmp_path):
    words = (str(tmp_path), "never", "0")
    job = cluster.train(project, TWO_NODES, *words, cwd=tmp_path)
    facts = [json.loads(begun(tmp_path, rank)) for rank in (0, 1)]
    cluster.kill_node("vnode2", facts[1]["pid"])
    os.kill(facts[0]["pid"], signal.SIGUSR2)  # as a rank that misses another: it ends with 76
    wait_for(lambda: cluster.facts(job)["Restarts"] == "1", "the requeue")
    cluster.start()
    begun(tmp_path, 1, restarts=1)
    cluster.run("scancel", job)
    assert cluster.end_of(job)["JobState"] == "CANCELLED"


def test_a_run_that_is_cut_twice_ends_as_one_that_is_not(cluster, starter, tmp_path):
    whole = Starter(tmp_path / "whole", starter.cache)
    whole.folder.mkdir()
    ranks = whole.start_ranks(whole.arguments("--run_dir", str(whole.folder / "run")), 2)
    config = starter.config()
    arguments = (
        *("--config", str(config), "--ds_config", str(ROOT / "ds_configs" / "zero2.json")),
        *("--run_dir", str(tmp_path / "cut"), "--inject", "sleep=0.5@step:1-100"),
    )
    job = cluster.train(ROOT, TWO_NODES, *arguments, cwd=tmp_path)
    assert [rank.wait().code for rank in ranks] == [0, 0]
    scalars = tmp_path / "cut" / "scalars.jsonl"
    for restarts in ("1", "2"):
        lines = num_lines(scalars)
        wait_for(lambda lines=lines: num_lines(scalars) > lines + 4, "steps")
        cluster.run("scancel", "--signal=USR1", job)
        wait_for(lambda n=restarts: cluster.facts(job)["Restarts"] == n, "the requeue")
    assert cluster.end_of(job) == {"JobState": "COMPLETED", "Restarts": "2", "ExitCode": "0:0"}
    log = (tmp_path / "runs" / "slurm" / f"{job}.txt").read_text()
    assert log.count("resumed from step_") == 2
    outcome.assert_equal(outcome.read(tmp_path / "cut"), outcome.read(whole.folder / "run"))


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
  phases: {{steps: 400}}
  batch: {{sequences: 4}}
  eval: {{every: 200}}
  log: {{every: 1}}
  checkpoint: {{every: 1000, keep: 1}}
seeds: 1
arms:
  dense: {{topology: {{kind: dense}}}}
  sparse: {{topology: {{density: 0.25}}}}
controls: {{stopped_early: [sparse]}}
"""


def test_a_study_is_submitted_preempted_requeued_finished_and_reported(
    cluster, tmp_path, shared_cache, monkeypatch, capsys
):
    for name in list(os.environ):
        if name not in cluster.environment:
            monkeypatch.delenv(name)
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    study, folder = tmp_path / "study.yaml", tmp_path / "a study"
    study.write_text(STUDY.format(root=ROOT, cache=shared_cache))
    words = [str(study), "--study_dir", str(folder), "--where", "slurm", "--jobs", "2"]
    words += ["--site", "GPUS=no", "CPUS_PER_TASK=1", f"PYTHON={sys.executable}", "NOTICE=20"]
    assert sweep.main(words) == 0
    known = json.loads((folder / "slurm" / "jobs.json").read_text())
    first, _ = known["arrays"]
    runs = [folder / "runs" / arm / "seed0" / "scalars.jsonl" for arm in ("dense", "sparse")]
    for run in runs:
        wait_for(lambda run=run: num_lines(run) > 20, f"{run} to grow")
    urgent = cluster.run(
        *("sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive"),
        *("--output=/dev/null", "--wrap=sleep 1"),
    ).strip()
    assert sweep.main(words) == 0  # nothing is missing, so nothing comes twice
    assert "0 failed, 0 begun, 0 missing of 3 runs" in (out := capsys.readouterr().out)
    assert out.count("submitted job") == 3
    assert json.loads((folder / "slurm" / "jobs.json").read_text()) == known

    assert cluster.end_of(urgent)["JobState"] == "COMPLETED"
    assert cluster.end_of(known["report"])["JobState"] == "COMPLETED"
    assert {cluster.facts(f"{first}_{task}")["Restarts"] for task in (0, 1)} == {"1"}
    for arm in ("dense", "sparse"):
        log = (folder / "logs" / f"{arm}-seed0.txt").read_text()
        assert "SIGTERM: saving after this step" in log and "resumed from step_" in log
    report = (folder / "slurm" / f"{known['report']}.report.out").read_text()
    assert "study small: 3 of 3 runs done" in report
    assert (folder / "report" / "report.html").stat().st_size > 10_000
    assert sweep.main([*words, "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "3 done, 0 running" in out and "nothing to submit" in out
