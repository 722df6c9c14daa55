"""Runs that are forked: each is the process that a fresh one would be."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sparsecl.experiments.running.local import LocalPlace
from sparsecl.experiments.running.warm import LOST, WarmPlace
from sparsecl.programs.sweep import FORKS
from tests.events import wait_for
from tests.launch.starter import ROOT, tiny

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="runs are forked on Linux alone")

SHOW = """
import json, os, sys
seen = {
    "argv": sys.argv, "path": sys.path[0], "folder": os.getcwd(), "name": __name__,
    "threads": os.environ.get("OMP_NUM_THREADS"), "rank": os.environ.get("RANK"),
    "input": sys.stdin.read(), "leads": os.getsid(0) == os.getpid(),
}
print(json.dumps(seen))
sys.exit(int(sys.argv[1]) if sys.argv[1].isdigit() else sys.argv[1])
"""
HELD = """
import signal, sys, time
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(*sys.argv[1:], flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def places():
    """A warm place and a fresh one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK", "3")
        warm, fresh = WarmPlace(slots=2, threads=3, server=FORKS), LocalPlace(slots=2, threads=3)
        yield warm, fresh
        warm.close()


@pytest.fixture
def start(places, tmp_path):
    begun = []

    def start(text, *words, place=0, log="log"):
        script = tmp_path / "script.py"
        script.write_text(text)
        command = [sys.executable, str(script), *words]
        begun.append(places[place].start(command, log=tmp_path / log, slot=0))
        return begun[-1]

    yield start
    for process in begun:
        process.stop()


def ended(process):
    wait_for(lambda: process.poll() is not None, "its end")
    return process.poll()


@pytest.mark.parametrize(("word", "code"), [("0", 0), ("75", 75), ("some words", 1)])
def test_a_forked_run_is_what_a_fresh_one_is(start, tmp_path, word, code):
    seen = []
    for place, log in enumerate(("warm", "fresh")):
        assert ended(start(SHOW, word, place=place, log=log)) == code
        lines = (tmp_path / log).read_text().splitlines()
        seen.append([json.loads(lines[0]), *lines[1:]])
    assert seen[0] == seen[1]
    assert seen[0][0]["threads"] == "3" and seen[0][0]["rank"] is None and seen[0][0]["leads"]


def test_an_error_has_its_traceback_and_a_log_is_added_to(start, tmp_path):
    (tmp_path / "log").write_text("before\n")
    assert ended(start("raise ValueError('this')", "x")) == 1
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0] == "before" and lines[-1] == "ValueError: this"


def test_runs_go_side_by_side_and_each_has_its_own_end(start, tmp_path):
    one, two = start(HELD, "one", log="1"), start(HELD, "two", log="2")
    wait_for(lambda: (tmp_path / "1").read_text() == "one\n", "the first")
    wait_for(lambda: (tmp_path / "2").read_text() == "two\n", "the second")
    assert one.poll() is None and two.poll() is None
    two.stop()
    assert two.poll() == -signal.SIGTERM and one.poll() is None
    one.stop()
    assert one.poll() == -signal.SIGTERM


def test_a_run_that_does_not_listen_is_killed(start, tmp_path, monkeypatch):
    monkeypatch.setattr("sparsecl.experiments.running.warm.PATIENCE", 0.1)
    process = start(HELD, "deaf")
    wait_for(lambda: (tmp_path / "log").read_text() == "deaf\n", "its start")
    process.stop()
    assert process.poll() == -signal.SIGKILL


def test_an_answer_that_nobody_has_read_is_not_taken_for_another(places, start, tmp_path):
    held = start(HELD, "one")
    wait_for(lambda: (tmp_path / "log").read_text() == "one\n", "its start")
    done = start("", "two", log="2")
    server = places[0]._server
    for _ in range(3):  # a signal came before the answer was read
        server._asked += 1
        asked = {"poll": held._pid, "number": server._asked}
        server._process.stdin.write(json.dumps(asked).encode() + b"\n")
    assert ended(done) == 0
    held.stop()
    assert held.poll() == -signal.SIGTERM


def test_an_end_whose_answer_was_not_read_is_told_again(places, start):
    done = start("", "two")
    wait_for(lambda: places[0]._server.ask({"poll": done._pid}, lost=1) == 0, "its end")
    assert done.poll() == 0


@pytest.mark.slow
def test_a_server_that_is_killed_takes_its_runs_along_and_another_is_started(tmp_path):
    place, script = WarmPlace(slots=1, threads=1, server=FORKS), tmp_path / "script.py"
    script.write_text(HELD)
    command = [sys.executable, str(script), "one"]
    first = place.start(command, log=tmp_path / "log", slot=0)
    wait_for(lambda: (tmp_path / "log").read_text() == "one\n", "its start")
    place._server._process.kill()
    assert first.poll() == LOST
    wait_for(lambda: not Path(f"/proc/{first._pid}").exists(), "the end of its run")
    second = place.start(command, log=tmp_path / "again", slot=0)
    wait_for(lambda: (tmp_path / "again").read_text() == "one\n", "the second start")
    assert second.poll() is None
    place.close()
    assert second.poll() == LOST


@pytest.mark.slow
def test_runs_end_with_the_runner_that_is_killed(tmp_path):
    held, pid = tmp_path / "held.py", tmp_path / "pid"
    held.write_text("import os, sys, time\nopen(sys.argv[1], 'w').write(str(os.getpid()))\n"
                    "time.sleep(600)\n")  # fmt: skip
    runner = (
        "import sys, time\nfrom pathlib import Path\n"
        "from sparsecl.experiments.running.warm import WarmPlace\n"
        f"place = WarmPlace(slots=1, threads=1, server=Path({str(FORKS)!r}))\n"
        f"place.start([sys.executable, {str(held)!r}, {str(pid)!r}], log=Path({str(pid)!r} + 'l'), "
        "slot=0)\ntime.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", runner])
    wait_for(lambda: pid.exists() and pid.read_text(), "its start")
    found = int(pid.read_text())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: not Path(f"/proc/{found}").exists(), "the end of its run")


@pytest.mark.slow
def test_a_forked_run_computes_what_a_fresh_one_computes(places, tmp_path, shared_cache):
    """To the last bit: losses, gradient norms and evaluations of every step."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tiny(shared_cache)))
    records = []
    for number, place in enumerate(places):
        folder = tmp_path / f"run{number}"
        words = ["--config", str(config), "--run_dir", str(folder)]
        command = [sys.executable, str(ROOT / "launch" / "train.py"), *words]
        process = place.start(command, log=tmp_path / f"log{number}", slot=0)
        wait_for(lambda p=process: p.poll() is not None, "the end of the run")
        assert process.poll() == 0, (tmp_path / f"log{number}").read_text()
        lines = map(json.loads, (folder / "scalars.jsonl").read_text().splitlines())
        records.append([numbers(line) for line in lines if line["kind"] in ("train", "eval")])
    assert records[0] == records[1] and len(records[0]) > 24


def numbers(line):
    """A line without what a clock says."""
    clocks = ("seconds", "tokens_per_second", "time", "mfu", "memory")
    return {key: value for key, value in line.items() if not any(c in key for c in clocks)}
