"""Every command of every README.md runs, or is checked as far as this machine can.

Commands run in a folder of their own that has links to the code, so that they are taken word for
word and still leave nothing in the checkout. Runs are made small by settings put at their end. A
command that stands on several pages runs once.
"""

import gzip
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sparsecl.programs import bench, metrics, plan, sample, stream, tickets, train
from tests.events import HANG, free_port
from tests.experiments.fake_study import FakeArm, write_study
from tests.faults import matrix
from tests.launch.starter import run_script
from tests.readme.pages import FOLDERS, PAGES, ROOT, commands, named_block
from tests.streams.test_image_sets import small_omniglot

DOMAINS = ("code", "math", "medical", "legal", "dialogue")
COMMANDS = list(dict.fromkeys(command for page in PAGES for command in commands(page)))

# A run of a few steps; the model is given whole, because a preset cannot be made smaller by parts.
SMALL = (
    "model={preset: null, layers: 1, width: 32, heads: 4, context: 16}",
    "tokenizer={kind: bytes}",
    "phases.steps=3",
    "batch={sequences: 4}",
    "eval={every: 0, tokens: 64}",
    "data.cache_dir=cache",
    "checkpoint.initial=true",  # what a page about such runs asks for
)
# In place of the installed text, whose preparation takes a minute.
SYNTHETIC = (
    "data.domains=[{name: a, source: synthetic, synthetic: {train_tokens: 2000}}, "
    "{name: b, source: synthetic, synthetic: {train_tokens: 2000}}]"
)


class Workspace:
    """A folder in which the pages' commands run, and what they have left there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            (folder / name).symlink_to(ROOT / name)
        for name in FOLDERS:
            (folder / name).symlink_to(ROOT / name)
        self.trained: dict[str, Path] = {}
        self.converted: set[str] = set()
        write_corpora(folder / "corpora")
        write_dataset(folder / "data" / "dialogue")
        (folder / "mine.yaml").write_text(named_block(".", "yaml", "mine.yaml"), encoding="utf-8")

    def run(self, *words: str) -> str:
        """Run a program to its end and return what it printed on stdout."""
        if words[0] == sys.executable:  # a script of ours: without the seconds of its imports
            ended = run_script(Path(words[1]), words[2:], cwd=self.folder)
            assert ended.code == 0, f"{shlex.join(words)}\n{ended.out}\n{ended.err}"
            return ended.out
        env = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
        done = subprocess.run(
            words, cwd=self.folder, env=env, capture_output=True, text=True, timeout=HANG
        )
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def train(self, command: str, launcher: tuple[str, ...] = (sys.executable,)) -> Path:
        """Run a training command once, made small; returns its run folder."""
        if command not in self.trained:
            arguments = train_arguments(command)
            options = train.parse(arguments)
            folder = options.run_dir or Path("runs") / f"run-{len(self.trained)}"
            small = SMALL if "--config" in arguments else (*SMALL, SYNTHETIC)
            self.run(
                *(*launcher, "launch/train.py", *arguments),
                *("--run_dir", str(folder), "--set", *small),
            )
            self.trained[command] = self.folder / folder
        return self.trained[command]

    def train_into(self, run_dir: str) -> Path:
        """Train the run of this folder as the pages say."""
        found = [c for c in COMMANDS if f"--run_dir {run_dir} " in f"{c} " and "--resume" not in c]
        assert len(found) == 1, f"{run_dir}: expected one command that makes it, found {found}"
        return self.train(found[0])

    def convert(self, kind: str) -> None:
        """Run the pages' commands of one kind of conversion, once."""
        found = [c for c in COMMANDS if c.startswith(f"python tools/convert.py {kind} ")]
        for command in set(found) - self.converted:
            self.run(sys.executable, *shlex.split(command)[1:])
            self.converted.add(command)


def write_corpora(folder: Path) -> None:
    """The files that launch/configs/files.yaml names, each of some kilobytes."""
    for name in DOMAINS:
        (folder / name).mkdir(parents=True)
        texts = [f"{name} document {i}: {'and so on, ' * (i % 7)}to its end." for i in range(60)]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        with gzip.open(folder / name / "train.jsonl.gz", "wt", encoding="utf-8") as file:
            file.write(lines)
        held_out = [json.dumps({"text": f"{name} held out {i}, {'x' * i}"}) for i in range(20)]
        (folder / name / "valid.jsonl").write_text("\n".join(held_out) + "\n", encoding="utf-8")


def write_dataset(folder: Path) -> None:
    """The local dataset that launch/configs/hub.yaml names."""
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text('{"text": "one"}\n', encoding="utf-8")


def train_arguments(command: str) -> list[str]:
    """What `deepspeed [--num_gpus N] launch/train.py ...` gives to the script."""
    words = shlex.split(command)
    return words[words.index("launch/train.py") + 1 :]


def num_processes(command: str) -> int:
    """Processes that the launcher starts; 1 on a machine without GPUs if none are named."""
    words = shlex.split(command)
    launcher = words[1 : words.index("launch/train.py")]
    assert launcher == [] or (len(launcher) == 2 and launcher[0] == "--num_gpus"), launcher
    return int(launcher[1]) if launcher else 1


@pytest.fixture(scope="module")
def workspace(server: None, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """One folder for all commands, as for somebody who follows the pages."""
    return Workspace(tmp_path_factory.mktemp("readme"))


# ---- one function per kind of command ----------------------------------------------------------


def make(command: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert workspace.run("make", "-n", *shlex.split(command)[1:]).strip()


def source(command: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    venv = re.search(r"^VENV := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert venv and shlex.split(command)[1:] == [f"{venv[1]}/bin/activate"]


def deepspeed(command: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checked as it stands, for its number of processes; then trained if a CPU can."""
    options = train.parse(train_arguments(command))
    if [path.name for path in options.config] == ["own.yaml"]:
        return  # test_examples.py trains it, on a package that has what it names
    if options.config and options.config[0].parts[0] == "imported":
        import_gpt2(workspace)
    dry_run(command, workspace.folder, monkeypatch)
    if options.resume == "must":
        goes_on(command, workspace)
    elif num_processes(command) == 1 and not options.dry_run and options.run_dir:
        summary = json.loads(
            (workspace.train_into(str(options.run_dir)) / "results.json").read_text()
        )
        assert summary["phases"] == {"finished": 2, "planned": 2}
        assert summary["audit"]["nonzero"] == 0 and summary["audit"]["checks"] > 0
    elif options.config[-1].name == "files.yaml" and num_processes(command) == 1:
        summary = json.loads((workspace.train(command) / "results.json").read_text())
        assert summary["domains"] == list(DOMAINS)


def dry_run(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", str(num_processes(command)))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setattr(sys, "argv", ["train.py", *train_arguments(command), "--dry_run"])
    assert train.main() == 0


def goes_on(command: str, workspace: Workspace) -> None:
    """--resume must takes up a run whose last phase is lost, and ends with the same matrix."""
    arguments = train_arguments(command)
    folder = workspace.train_into(str(train.parse(arguments).run_dir))
    whole = json.loads((folder / "results.json").read_text())
    (folder / "results.json").unlink()
    small = ("--set", *SMALL, SYNTHETIC)
    output = workspace.run(sys.executable, "launch/train.py", *arguments, *small)
    assert "resumed from step_" in output
    again = json.loads((folder / "results.json").read_text())
    assert again["matrix"] == whole["matrix"]


def bash(command: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--dry-run" in command, "nothing is submitted from here"
    submitted, note, started = workspace.run(*shlex.split(command)).splitlines()
    assert submitted.startswith("sbatch --nodes=2 ") and started.startswith("srun ")


def python(command: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    script, *arguments = shlex.split(command)[1:]
    if script == "-m":
        script, *arguments = arguments
    SCRIPTS[script](arguments, workspace)


def fault_matrix(arguments: list[str], workspace: Workspace) -> None:
    """Without what the two halves of the tests write, every row is told as not run."""
    reports = [workspace.folder / name for name in arguments]
    for report in reports:
        report.write_text("<testsuites/>", encoding="utf-8")
    table = matrix.markdown(matrix.ROWS, matrix.marked(), matrix.read_results(*reports))
    assert f"{len(matrix.ROWS)} rows: " in table
    assert {f"--junitxml={name}" for name in arguments} == {
        word.rpartition("ARGS=")[2] for c in COMMANDS for word in c.split() if "junitxml" in word
    }


def prepare_data(arguments: list[str], workspace: Workspace) -> None:
    script = (sys.executable, "launch/prepare_data.py")
    # A BPE vocabulary of thousands of ids cannot be learned from a few kilobytes.
    small = [word for text in SMALL for word in ("--set", text)]
    output = workspace.run(*script, *arguments, *small)
    assert [line.split()[0] for line in output.splitlines()[1:6]] == list(DOMAINS)


def metrics_tool(arguments: list[str], workspace: Workspace) -> None:
    options = metrics.parser().parse_args(arguments)
    for run in options.runs:
        workspace.train_into(str(run))
    output = workspace.run(sys.executable, "tools/metrics.py", *arguments)
    table = output.rpartition("=" * 100)[2]
    assert {line.split()[0] for line in table.splitlines() if line} >= {"run", "dense", "demo"}
    assert (workspace.folder / options.plot).read_bytes().startswith(b"\x89PNG")


def gpu_check_tool(arguments: list[str], workspace: Workspace) -> None:
    """Its shortest section, as the code runs without a GPU."""
    short = ("--device", "cpu", "--sections", "environment")
    assert "environment  ok" in workspace.run(
        sys.executable, "tools/gpu_check.py", *arguments, *short
    )


def bench_tool(arguments: list[str], workspace: Workspace) -> None:
    options = bench.parser().parse_args(arguments)
    if options.device == "cpu":
        small = shlex.split("--layers 1 --width 32 --context 16 --vocab 64 --rounds 1 --warmup 0")
        output = workspace.run(sys.executable, "tools/bench.py", *arguments, *small)
        assert "masked" in output
    else:
        bench.make_configs(options)  # raises if sizes do not fit together


def tensorboard(command: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command)
    workspace.train_into("runs/sparse")
    output = workspace.run(*words, "--inspect")
    for tag in ("validation_bits_per_byte/a", "forgetting/F_last", "audit/nonzero_absent"):
        assert tag in output


def inspect_tool(arguments: list[str], workspace: Workspace) -> None:
    output = workspace.run(sys.executable, "tools/inspect_topology.py", *arguments)
    for word in ("Live weights", "Spectrum", "Reach", "isolated"):
        assert word in output


def sweep_tool(arguments: list[str], workspace: Workspace) -> None:
    """Planned as it stands; a small one is run by tests/launch/test_sweep.py."""
    words = [word for word in arguments if word != "--dry_run"]
    of_streams = "streams" in Path(words[0]).parts
    if of_streams:
        two_images(workspace.folder / "mnist")
    output = workspace.run(sys.executable, "launch/sweep.py", *words, "--dry_run")
    scale = (
        words[words.index("--scale") + 1]
        if "--scale" in words
        else ("small" if of_streams else "demo")
    )
    assert SWEEPS[Path(words[0]).stem, scale] in output
    if "--where" in words:
        assert "sbatch" in output and "--array=0-23 " in output  # its tuning comes first


def two_images(folder: Path) -> None:
    """Of two classes, four pixels each."""
    folder.mkdir(exist_ok=True)
    pixels = bytes((0, 0, 8, 3, *[0, 0, 0, 2] * 3, *b"x" * 8))
    (folder / "train-images-idx3-ubyte").write_bytes(pixels)
    (folder / "train-labels-idx1-ubyte").write_bytes(bytes((0, 0, 8, 1, 0, 0, 0, 2, 0, 1)))


def ten_classes(folder: Path) -> None:
    """Images of ten classes to train and to test, in the form that the folder's name says."""
    folder.mkdir(exist_ok=True)
    labels = [k % 10 for k in range(600)]
    if folder.name.startswith("cifar"):
        for name in ("train.bin", "test.bin"):
            content = b"".join(bytes((0, label)) + bytes(3072) for label in labels)
            (folder / name).write_bytes(content)
        return
    size = len(labels).to_bytes(4, "big")
    for part in ("train", "t10k"):
        head = bytes((0, 0, 8, 3)) + size + bytes((0, 0, 0, 2)) * 2
        (folder / f"{part}-images-idx3-ubyte").write_bytes(head + bytes(4 * len(labels)))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(
            bytes((0, 0, 8, 1)) + size + bytes(labels)
        )


def stream_tool(arguments: list[str], workspace: Workspace) -> None:
    """Made small where it has the installed images; else checked, with files in their place."""
    options = stream.parse(arguments)
    if options.config.stem == "slippery_ant":
        pytest.importorskip("mujoco", reason="needs the extra rl")
        dumped = workspace.run(sys.executable, "launch/stream.py", *arguments, "--dry_run")
        assert "kind: slippery_ant" in dumped
        return
    if options.run_dir is None:
        for folder in (workspace.folder / "mnist", workspace.folder / "emnist"):
            two_images(folder)
        (workspace.folder / "omniglot").mkdir(exist_ok=True)
        small_omniglot(workspace.folder / "omniglot/images_small.zip", {"Greek": 2})
        kind = options.config.stem
        if kind in ("class_incremental", "cobweb"):
            kind = "class_incremental"
            for name in ("mnist", "cifar-100-binary"):
                ten_classes(workspace.folder / name)
        found = workspace.run(sys.executable, "launch/stream.py", *arguments, "--dry_run")
        assert f"kind: {kind}" in found
        return
    small = ("stream.tasks=2", "stream.samples_per_task=20", "panel.samples=10")
    output = workspace.run(sys.executable, "launch/stream.py", *arguments, "--set", *small)
    assert "Online accuracy was best" in output
    assert (workspace.folder / options.run_dir / "stream.png").is_file()


def plan_tool(arguments: list[str], workspace: Workspace) -> None:
    """Large ones are parsed; tests/tools/test_study_costs.py and test_plan.py plan such."""
    options = plan.parser().parse_args(arguments)
    subject = str(options.file)
    if subject.startswith("runs/"):
        workspace.train_into(subject)
        assert "CPU core" in workspace.run(sys.executable, "tools/plan.py", *arguments)
    elif options.base:
        output = workspace.run(sys.executable, "tools/plan.py", *arguments)
        assert "9 arms, 168 runs, each on 1 x H100" in output
        assert re.search(r"^In all: [\d,.]+ GPU-hours", output, re.MULTILINE)
    else:
        plan.check_flags(options)
        assert (workspace.folder / subject).is_file()


def convert_tool(arguments: list[str], workspace: Workspace) -> None:
    kind = arguments[0]
    if kind == "hf-import":
        import_gpt2(workspace)
        return
    workspace.train_into("runs/sparse")
    workspace.convert(kind)


def import_gpt2(workspace: Workspace) -> None:
    """What the run of the pages writes for transformers, read back."""
    convert_tool(["hf-export"], workspace)
    workspace.convert("hf-import")
    assert (workspace.folder / "imported" / "checkpoints" / "step_0").is_dir()


def report_tool(arguments: list[str], workspace: Workspace) -> None:
    dense = FakeArm(name="dense", kind="dense", density=1.0)
    write_study(workspace.folder / arguments[0], [dense, FakeArm(name="sparse")])
    workspace.run(sys.executable, "tools/report.py", *arguments)
    assert (workspace.folder / arguments[0] / "report" / "report.html").is_file()


def interference_tool(arguments: list[str], workspace: Workspace) -> None:
    for run in arguments:
        workspace.train_into(run)
    output = workspace.run(sys.executable, "tools/interference.py", *arguments)
    assert "cosine" in output
    assert (workspace.folder / arguments[0] / "interference.json").is_file()


def tickets_tool(arguments: list[str], workspace: Workspace) -> None:
    options = tickets.parser().parse_args(arguments)
    if options.verb == "stream":
        small = ("stream.samples_per_task=20", "panel.samples=10", "learner.width=8", "seeds=1")
        given = ["--after", "0", "1", "--rounds", "1", "--set", "stream.data=null", *small]
        output = workspace.run(sys.executable, "tools/tickets.py", *arguments, *given)
        assert "online accuracy on task 2" in output
        assert options.plot is None or (workspace.folder / options.plot).is_file()
        return
    for run in options.runs:
        workspace.train_into(str(run))
    output = workspace.run(sys.executable, "tools/tickets.py", *arguments)
    assert output.splitlines()[1].startswith("dense and sparse")


def sample_tool(arguments: list[str], workspace: Workspace) -> None:
    options = sample.parser().parse_args(arguments)
    workspace.train_into(str(options.path))
    output = workspace.run(sys.executable, "tools/sample.py", *arguments)
    assert [line.split(" (")[0] for line in output.splitlines() if line.startswith("====")] == [
        "==== after phase 0, a",
        "==== after phase 1, b",
    ]
    assert output.count("def main") == 2


SWEEPS = {
    ("exp1_density", "demo"): "9 arms x 8 seeds = 72 runs",
    ("exp1_density", "laptop"): "9 arms x 8 seeds x 2 orders = 144 runs",
    ("exp1_density", "100m"): "9 arms x 8 seeds x 2 orders = 144 runs",
    ("exp2_topology", "laptop"): "9 arms x 8 seeds = 72 runs",
    ("rewiring", "laptop"): "13 arms x 8 seeds = 104 runs",
    ("rewiring", "laptop_05"): "13 arms x 8 seeds = 104 runs",
    ("exp3_crossover", "laptop"): "3 arms x 8 seeds = 24 runs",
    ("compare_methods", "laptop"): "12 arms x 6 seeds = 72 runs",
    ("all_methods", "demo"): "71 arms x 3 seeds = 213 runs",
    ("hst", "demo"): "17 arms x 3 seeds = 51 runs",
    ("tickets", "demo"): "24 arms x 8 seeds = 192 runs",
    ("permuted_mnist", "small"): "9 arms, 10 seeds each",
    ("permuted_mnist", "laptop"): "9 arms, 10 seeds each",
    ("density", "laptop"): "13 arms, 10 seeds each",
    ("density", "laptop_fast"): "13 arms, 10 seeds each",
    ("upgd", "laptop"): "5 arms, 10 seeds each",
    ("regularisers", "laptop"): "5 arms, 10 seeds each",
    ("renewal", "laptop"): "8 arms, 10 seeds each",
    ("utilities", "laptop"): "10 arms, 10 seeds each",
}
SCRIPTS: dict[str, Callable[[list[str], Workspace], None]] = {
    "launch/prepare_data.py": prepare_data,
    "launch/stream.py": stream_tool,
    "launch/sweep.py": sweep_tool,
    "tools/plan.py": plan_tool,
    "tools/report.py": report_tool,
    "tools/interference.py": interference_tool,
    "tools/metrics.py": metrics_tool,
    "tools/sample.py": sample_tool,
    "tools/tickets.py": tickets_tool,
    "tools/bench.py": bench_tool,
    "tools/gpu_check.py": gpu_check_tool,
    "tools/convert.py": convert_tool,
    "tests.faults.matrix": fault_matrix,
    "tools/inspect_topology.py": inspect_tool,
}
PROGRAMS: dict[str, Callable[[str, Workspace, pytest.MonkeyPatch], None]] = {
    "make": make,
    "source": source,
    "bash": bash,
    "deepspeed": deepspeed,
    "python": python,
    "tensorboard": tensorboard,
}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=[command[:60] for command in COMMANDS])
def test_command(command: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    PROGRAMS[shlex.split(command)[0]](command, workspace, monkeypatch)


@pytest.mark.slow
@pytest.mark.dist
def test_the_launcher_starts_two_processes(workspace: Workspace) -> None:
    command = next(c for c in COMMANDS if num_processes_or_none(c) == 2)
    port = str(free_port())  # the default is taken while another job runs on this machine
    launcher = (*shlex.split(command)[:3], "--master_port", port)
    folder = workspace.train(command, launcher)
    assert json.loads((folder / "results.json").read_text())["phases"]["finished"] == 2
    assert "2 processes: tp 1 x dp 2" in (folder / "log.txt").read_text()


def num_processes_or_none(command: str) -> int | None:
    return num_processes(command) if command.startswith("deepspeed") else None
