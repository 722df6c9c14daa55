"""Talks to a running Slurm as a user does."""

import os
import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.events import HANG, wait_for

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


class Cluster:
    """A Slurm of virtual nodes.

    Args:
        scripts: the folder of start-slurm and stop-slurm.

    Raises:
        RuntimeError: it does not start.
    """

    def __init__(self, scripts: Path) -> None:
        self._scripts = scripts
        settings = self.start()
        foreign = ("SLURM_", "SBATCH_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "OMP_")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
        self.environment = {**kept, **settings, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}

    def start(self) -> dict[str, str]:
        """Start whatever of it does not run; returns the environment it asks for."""
        done = subprocess.run(
            [self._scripts / "start-slurm"], capture_output=True, text=True, timeout=HANG
        )
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip())
        lines = (line.removeprefix("export ") for line in done.stdout.splitlines())
        return dict(word.split("=", 1) for line in lines for word in line.split())

    def stop(self) -> None:
        """Cancel all jobs and end the daemons."""
        subprocess.run([self._scripts / "stop-slurm"], capture_output=True, check=True)

    def kill_node(self, name: str, rank_pid: int) -> None:
        """All of a node at once: its daemon, the keeper of a rank's step, and the rank."""
        folder = Path(self.environment["SLURM_CONF"]).parent
        keeper = Path(f"/proc/{rank_pid}/stat").read_text().rpartition(")")[2].split()[1]
        daemon = (folder / f"slurmd.{name}.pid").read_text()
        for pid in (int(daemon), int(keeper), rank_pid):
            os.kill(pid, signal.SIGKILL)

    def run(self, *words: str | Path, cwd: Path | None = None) -> str:
        """Output of a command; it must succeed."""
        done = subprocess.run(
            [str(word) for word in words],
            cwd=cwd,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=HANG,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def train(self, project: Path, settings: Sequence[str], *arguments: str, cwd: Path) -> str:
        """Submit a training job with `bash slurm/train.sbatch`; returns its number."""
        script = project / "slurm" / "train.sbatch"
        out = self.run("bash", script, *settings, "--", *arguments, cwd=cwd)
        return out.removeprefix("Submitted batch job ").strip()

    def facts(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says: JobState, Restarts, ExitCode."""
        text = self.run("scontrol", "-o", "show", "job", job)
        return dict(re.findall(r"(JobState|Restarts|ExitCode)=(\S+)", text))

    def end_of(self, job: str) -> dict[str, str]:
        """Its facts once it has ended for good."""
        return wait_for(lambda: (f := self.facts(job))["JobState"] in ENDED and f, f"job {job}")

    def wait_state(self, job: str, *states: str) -> None:
        """Until it is in one of these states."""
        wait_for(lambda: self.facts(job)["JobState"] in states, f"job {job} to be {states}")


def num_lines(path: Path) -> int:
    """Lines of a file; 0 if it is not there."""
    return len(path.read_bytes().splitlines()) if path.exists() else 0
