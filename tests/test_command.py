"""How programs begin and end: streams that fail, errors as lines, codes that stay."""

import ast
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sparsecl import checkout, command, errors
from sparsecl.__main__ import PROGRAMS as PROGRAMS_OF
from sparsecl.errors import DataError, InvariantError, PeerLostError, shortage
from sparsecl.programs import train
from tests.events import HANG

ROOT = Path(__file__).resolve().parents[1]

# Every program, with words that make it print.
PROGRAMS = [
    ("launch/train.py", "--help_config"),
    *((f"launch/{name}.py", "--help") for name in ("train", "sweep", "prepare_data")),
    *((f"tools/{path.name}", "--help") for path in sorted((ROOT / "tools").glob("*.py"))),
]

PRINTS = """
import sys
from sparsecl import command
def main():
    print("x" * 200_000)
    print("done", file=sys.stderr)
command.start(main, output_counts={counts})
"""


def shell(line, **more):
    """A line of bash in the project's folder; $PYTHON is this interpreter."""
    env = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        env=env, cwd=ROOT, capture_output=True, text=True, timeout=HANG, **more,
    )  # fmt: skip


@pytest.mark.parametrize("script", dict.fromkeys(script for script, _ in PROGRAMS))
def test_help_shows_the_examples_as_they_are_written(script):
    program = ROOT / "sparsecl" / "programs" / Path(script).name
    text = ast.get_docstring(ast.parse(program.read_text()))
    done = shell(f"$PYTHON {script} --help")
    assert text is not None and f"\n{text}\n" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_every_program_has_a_script_and_a_command():
    programs = {path.stem: path for path in ROOT.glob("sparsecl/programs/[!_]*.py")}
    scripts = [path.stem for path in (*ROOT.glob("launch/*.py"), *ROOT.glob("tools/*.py"))]
    assert sorted([*scripts, "demo"]) == sorted(programs)  # `make demo` is that one's
    assert sorted(file for file, _ in PROGRAMS_OF.values()) == sorted(programs)
    for path in programs.values():
        tree = ast.parse(path.read_text())
        assert "start" in [n.name for n in tree.body if isinstance(n, ast.FunctionDef)], path


def test_the_command_lists_its_programs_without_torch():
    done = shell("$PYTHON -X importtime -m sparsecl --help")
    assert done.returncode == 0 and all(f"\n  {name} " in done.stdout for name in PROGRAMS_OF)
    assert not re.search(r"\| +(torch|numpy|pydantic)$", done.stderr, re.MULTILINE)
    assert shell("$PYTHON -m sparsecl").returncode == 2
    wrong = shell("$PYTHON -m sparsecl trian")
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1
    assert wrong.stderr.startswith("sparsecl: trian: no such program; there are demo, train, ")


@pytest.mark.parametrize("name", ["train", "prepare-data", "inspect", "metrics", "demo"])
def test_a_program_of_the_command_is_called_by_its_name(name):
    done = shell(f"$PYTHON -m sparsecl {name} --help")
    assert done.returncode == 0 and done.stdout.startswith(f"usage: sparsecl {name} ")


def test_files_that_come_with_the_package_are_known_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert checkout.study_file("exp1_density.yaml") == checkout.STUDIES / "exp1_density.yaml"
    assert checkout.ds_file("ds_configs/zero1.json") == checkout.ZERO1
    assert checkout.config_file("nowhere.yaml") == Path("nowhere.yaml")
    Path("demo.yaml").write_text("")  # what is here comes first
    assert checkout.config_file("demo.yaml") == Path("demo.yaml")


def test_an_installation_that_is_not_whole_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "DEMO", tmp_path / "launch" / "configs" / "demo.yaml")
    options = train.parse(["--ds_config", "zero1.json"])
    assert command.report(lambda: train.train(options)) == 66
    said = capsys.readouterr().err
    assert said.endswith("no such file; the installation is not whole; give --config FILE\n")
    assert said.count("\n") == 1


def arguments():
    parser = command.Parser(description="d")
    parser.add_argument("--run_dir")
    commands = parser.add_subparsers()
    made = commands.add_parser("go", description="long " * 40)
    made.add_argument("--by-hand", action="store_true")
    made.add_argument("--set", nargs="+")
    return parser


def test_options_are_known_with_dashes_and_underscores():
    for words in ("--run-dir a-b go --by_hand", "--run_dir=a-b go --by-hand --set x_y=a-b"):
        found = arguments().parse_args(words.split())
        assert (found.run_dir, found.by_hand) == ("a-b", True)
    assert found.set == ["x_y=a-b"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--run-dri=a", "--run-dri=a: not understood; did you mean --run_dir?"),
        ("--zzz", "--zzz: not understood; --help shows what there is"),
        ("--run_dir", "argument --run_dir: expected one argument"),
        ("fly", "argument {go}: invalid choice: 'fly' (choose from "),
    ],
)
def test_a_mistyped_command_line_is_one_line(capsys, words, line):
    with pytest.raises(SystemExit) as stop:
        arguments().parse_args(words.split())
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1
    assert err.startswith(f"sparsecl: {line}")


def test_every_program_reads_its_command_line_the_same_way():
    made = [*ROOT.glob("launch/*.py"), *ROOT.glob("tools/**/*.py"), *ROOT.glob("sparsecl/**/*.py")]
    users = [path.name for path in made if "argparse.ArgumentParser(" in path.read_text()]
    assert len(made) > 100 and users == []


@pytest.mark.fault("X5")
@pytest.mark.parametrize(("script", "words"), PROGRAMS)
def test_a_reader_that_leaves_is_no_fault(script, words):
    # `exec` closes the pipe before anything can have been printed.
    done = shell(f"$PYTHON {script} {words} | (exec 0<&-)")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.fault("X5")
@pytest.mark.parametrize(
    ("counts", "target", "code", "said"),
    [
        (True, "| head -c1 >/dev/null", 0, ""),
        (True, ">&-", 0, ""),
        (False, ">&-", 0, ""),
        (False, ">/dev/full", 0, "standard output cannot be written (No space left on device)"),
        (True, ">/dev/full", 74, "standard output cannot be written (No space left on device)"),
    ],
)
def test_work_is_done_whatever_becomes_of_the_output(tmp_path, counts, target, code, said):
    script = tmp_path / "prints.py"
    script.write_text(PRINTS.format(counts=counts))
    done = shell(f"$PYTHON {script} {target}")
    lines = done.stderr.splitlines()
    assert "done" in lines and "Traceback" not in done.stderr
    assert done.returncode == code
    assert [line for line in lines if line != "done"] == ([f"sparsecl: {said}"] if said else [])


@pytest.mark.fault("X5")
def test_both_streams_may_be_gone_or_full(tmp_path):
    script = tmp_path / "prints.py"
    script.write_text(PRINTS.format(counts=False).replace('"done"', '"done" * 9999'))
    for target in (">&- 2>&-", ">/dev/full 2>/dev/full", "<&- >&- 2>&-"):
        assert shell(f"$PYTHON {script} {target}").returncode == 0, target


@pytest.mark.fault("X5")
def test_the_place_of_a_closed_stream_is_not_given_to_a_file(tmp_path):
    script = tmp_path / "opens.py"
    script.write_text(
        "import os\nfrom sparsecl import command\n"
        "def main():\n    assert os.open('/dev/null', os.O_RDONLY) > 2\n"
        "command.start(main)\n"
    )
    assert shell(f"$PYTHON {script} <&- >&-").returncode == 0


def test_letters_that_a_terminal_does_not_have(tmp_path):
    script = tmp_path / "prints.py"
    script.write_text("from sparsecl import command\ncommand.start(lambda: print('\\u0141'))\n")
    done = shell(f"PYTHONIOENCODING=ascii $PYTHON {script}")
    assert (done.returncode, done.stdout) == (0, "\\u0141\n")


@pytest.mark.fault("X1")
def test_no_signal_changes_a_code_that_is_decided(tmp_path):
    """Not while the interpreter ends either, where Python forgets its handlers."""
    script = tmp_path / "ends.py"
    script.write_text(
        "import atexit, ctypes, os\n"
        "from sparsecl import command, signals\n"
        "signals.listen()\n"
        "def main():\n"
        "    for number in signals.STOP_SIGNALS:\n"
        "        os.kill(os.getpid(), number)\n"
        "        atexit.register(os.kill, os.getpid(), number)\n"
        # After the interpreter's end, libc raises the signal whose number is the exit code.
        "    libc = ctypes.CDLL(None)\n"
        "    libc.on_exit(libc['raise'], None)\n"
        "    return 15\n"
        "command.start(main)\n"
    )
    assert shell(f"exec $PYTHON {script}").returncode == 15


class OutOfMemoryError(RuntimeError):
    """Has the name of torch's."""


@pytest.mark.fault("X10")
@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (None, 0, ""),
        (DataError("a.txt: bad"), 65, "a.txt: bad"),
        (InvariantError("w: not zero"), 70, "w: not zero"),
        (PeerLostError("rank 1"), 76, "rank 1"),
        (KeyboardInterrupt(), 130, ""),
        (MemoryError(), 74, "memory is short (MemoryError). Free some"),
        (OutOfMemoryError("CUDA out of memory.\nTried"), 74, "memory is short (CUDA out of"),
        (OSError(24, "Too many open files"), 74, "too many files are open"),
        (RuntimeError("can't start new thread"), 74, "no thread or process can be started"),
        (ImportError("libx.so: failed to map segment from shared object"), 74, "memory is"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to"), 74,
         "memory is short"),
    ],
)  # fmt: skip
def test_what_is_raised_becomes_a_line_and_a_code(capsys, error, code, line):
    def action():
        if error is not None:
            raise error

    assert command.report(action) == code
    said = capsys.readouterr().err
    assert said.startswith(f"sparsecl: {line}" if line else "") and said.count("\n") == bool(line)


def test_an_internal_error_comes_with_its_traceback(capsys):
    assert command.report(lambda: 1 // 0) == 70  # pyright: ignore
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.fault("X10")
def test_a_shortage_is_seen_behind_what_came_of_it():
    try:
        try:
            raise MemoryError("9 GiB")
        except MemoryError as cause:
            raise RuntimeError("the layer cannot be built") from cause
    except RuntimeError as error:
        found = shortage(error)
    assert isinstance(found, errors.StorageError) and "9 GiB" in str(found)
    assert shortage(RuntimeError("shape mismatch")) is None
    assert shortage(ValueError("out of memory is a phrase here")) is None
    assert shortage(OSError(2, "No such file")) is None


def denied():
    """What a folder of somebody else answers; root may look into all."""
    raise PermissionError(13, "Permission denied", "/home/other\n/run")


@pytest.mark.fault("F2b")
@pytest.mark.parametrize(
    ("look", "code", "line"),
    [
        (denied, 66, r"/home/other\n/run: cannot be reached (Permission denied)"),
        (lambda: Path("n" * 300).is_dir(), 66, f"{'n' * 300}: cannot be reached (File name too lo"),
        (lambda: os.stat("a\0b"), 64, "a path contains a NUL character"),
    ],
)
def test_a_path_that_cannot_be_looked_at_is_one_line(capsys, look, code, line):
    assert command.report(look) == code
    said = capsys.readouterr().err
    assert said.startswith(f"sparsecl: {line}") and said.count("\n") == 1


def test_a_refusal_that_is_of_no_path_is_an_internal_error(capsys):
    def refused():
        raise PermissionError(1, "Operation not permitted")

    assert command.report(refused) == 70
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_ends_a_tool_with_130(tmp_path):
    script = tmp_path / "waits.py"
    script.write_text(
        "import signal\nfrom sparsecl import command\n"
        "def main():\n"
        "    return command.report(lambda: (print('ready', flush=True), signal.pause()) and None)\n"
        "command.start(main)\n"
    )
    process = subprocess.Popen(
        [sys.executable, script], env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=HANG)[1] == "" and process.returncode == 130
