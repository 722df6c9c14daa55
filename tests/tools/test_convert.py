"""tools/convert.py: what it prints and refuses, on a run with two checkpoints."""

import shutil
from pathlib import Path

import pytest
import yaml

from sparsecl import config as configs
from sparsecl.checkpoint.publish import candidates
from sparsecl.engine.run_config import RunConfig
from sparsecl.programs import convert as tool
from tests.analysis import made_run
from tests.checkpoint import made


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Path:
    """Nobody changes it."""
    folder = tmp_path_factory.mktemp("made") / "run"
    for step in (2, 3):
        made_run.make_run(folder, made_run.load(shared_cache), step=step)
    return folder


def ask(capsys, *arguments):
    code = tool.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_reshard_then_diff_then_verify(capsys, run, tmp_path):
    out = tmp_path / "two"
    code, text, err = ask(capsys, "reshard", run, out, "--tensor", "2")
    assert (code, err) == (0, f"{run}: its newest valid checkpoint is step_3\n")
    assert text == f"wrote {out}: step 3 of {run}/checkpoints/step_3, tp size 1 -> 2, 3 files\n"
    code, text, _ = ask(capsys, "diff", run / "checkpoints" / "step_3", out)
    assert code == 0
    assert text.endswith("equal: 0 of 19 tensors and 0 of 12 live sets differ\n")
    assert "Not counted" not in text
    code, text, _ = ask(capsys, "verify", out)
    assert code == 0 and text.startswith(f"{out}: good: step 3, tp size 2, 3 files, ")
    code, text, err = ask(capsys, "reshard", run, tmp_path / "three", "--tensor", "3")
    assert (code, text) == (64, "")
    assert err.splitlines()[1].startswith("sparsecl: tensor-parallel size 3 does not divide ")


def test_diff_of_two_steps(capsys, run):
    first, second = (run / "checkpoints" / f"step_{step}" for step in (2, 3))
    code, text, _ = ask(capsys, "diff", first, second)
    assert code == 1
    assert "Not counted\n  step: 2 -> 3\n" in text
    assert "different: 19 of 19 tensors and 0 of 12 live sets differ\n" in text
    assert "Live sets" not in text
    code, text, _ = ask(capsys, "diff", first, second, "--tolerance", "100")
    assert code == 0
    assert "equal: 0 of 19 tensors and 0 of 12 live sets differ by more than 100\n" in text
    with pytest.raises(SystemExit):
        ask(capsys, "diff", first, second, "--tolerance", "-1")


def test_diff_of_everything_else(capsys, tmp_path):
    states = [
        {"config": {"seed": 0}, "methods": {"replay": {"names": list(range(30))}}},
        {"config": {"seed": 1}, "methods": {"replay": {"names": []}}},
    ]
    a, b = (made.save(tmp_path / str(k), state=state) for k, state in enumerate(states))
    code, text, _ = ask(capsys, "diff", a, b)
    assert code == 1  # the numbers of methods count, the config does not
    assert "Not counted\n  config.seed: 0 -> 1\n" in text
    assert "Method numbers\n  methods.replay.names.0: 0 -> (absent)" in text
    assert "  ... and 19 more\n" in text
    tensors = made.matrices()
    tensors["ewc.precision", "b.up.weight"][0, 0] += 2.0
    b = made.save(tmp_path / "c", tensors, state=states[0])
    code, text, _ = ask(capsys, "diff", a, b)
    assert code == 1
    lines = [line.split() for line in text.splitlines()]
    assert ["ewc.precision", "b.up.weight", "1", "16", "2"] in [line[:5] for line in lines]
    assert ["exp_avg", "0", "115", "0", "0"] in lines


def test_consolidate_and_sparse_export(capsys, run, tmp_path, shared_cache):
    out = tmp_path / "model"
    code, text, _ = ask(capsys, "consolidate", run, out, "--dtype", "bf16")
    assert code == 0 and "19 parameters of" in text and "no tokenizer" not in text
    assert sorted(path.name for path in out.iterdir()) == [
        "config.yaml",
        "model.safetensors",
        "tokenizer.json",
    ]
    config = made_run.load(shared_cache)
    again = configs.load(RunConfig, out / "config.yaml")
    assert (again.model, again.topology) == (config.model, config.topology)
    code, text, _ = ask(capsys, "sparse-export", run, tmp_path / "x.safetensors")
    assert code == 0
    assert "live weights   6144 of 24576 in 12 matrices on a topology (density 0.25)\n" in text
    dense, kept = 4 * 37536, 4 * (37536 - 24576) + 8 * 6144
    assert f", {kept / dense:.3g} of the dense model's 150.1 kB" in text
    code, _, err = ask(capsys, "sparse-export", run, tmp_path / "x.safetensors")
    assert code == 73 and "is there already" in err


@pytest.mark.parametrize("place", ["step_{}/x", "step_{}/a/x", "step_99"])
@pytest.mark.parametrize("command", ["reshard", "consolidate", "sparse-export", "hf-export"])
def test_no_checkpoint_is_spoiled_by_what_is_made_of_it(capsys, run, command, place):
    """A file that its manifest does not name makes it bad; a folder beside it looks like one."""
    newest = candidates(run / "checkpoints")[0]
    before = sorted(run.rglob("*"))
    out = newest.parent / place.format(newest.name.removeprefix("step_"))
    more = ("--tensor", "1") if command == "reshard" else ()
    code, _, err = ask(capsys, command, run, out, *more)
    assert code == 73 and " lies " in err and "choose another place" in err
    assert sorted(run.rglob("*")) == before


def test_a_checkpoint_that_stands_alone(capsys, tmp_path):
    folder = made.save(tmp_path / "alone", state={})
    code, text, _ = ask(capsys, "consolidate", folder, tmp_path / "out")
    assert code == 0
    assert "no config.yaml: " in text and "no tokenizer: " in text
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]


def test_verify_has_a_line_for_each(capsys, run, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    code, text, err = ask(capsys, "verify", copy)
    assert (code, err) == (0, "")
    assert [line.split(": ")[1] for line in text.splitlines()] == ["good", "good"]
    shard = copy / "checkpoints" / "step_2" / made.FILE
    shard.write_bytes(shard.read_bytes()[:-1])
    code, text, _ = ask(capsys, "verify", copy)
    bad, good = text.splitlines()
    assert code == 65 and "step_2: BAD: " in bad and "step_3: good: " in good
    # Nothing else takes it either; a run still has its other one.
    for command in (("reshard", "--tensor", "1"), ("consolidate",), ("sparse-export",)):
        arguments = [command[0], shard.parent, tmp_path / "out", *command[1:]]
        code, _, err = ask(capsys, *arguments)
        assert code == 65 and err.startswith("sparsecl: ") and err.count("\n") == 1
    assert ask(capsys, "diff", shard.parent, run)[0] == 65
    assert not (tmp_path / "out").exists()
    assert ask(capsys, "consolidate", copy, tmp_path / "out")[0] == 0


def test_what_is_not_there(capsys, tmp_path):
    for command in (["verify"], ["diff", tmp_path]):
        code, text, err = ask(capsys, *command, tmp_path / "nowhere")
        assert (code, text) == (66, "") and err.count("\n") == 1, err
    assert ask(capsys, "verify", tmp_path)[2] == (
        f"sparsecl: {tmp_path}: holds no checkpoint; give a run or a checkpoint folder\n"
    )


def test_every_command_of_the_help_exists():
    """The lines at the top of the script, read by its own parser."""
    lines = [line for line in tool.__doc__.splitlines() if "python tools/convert.py" in line]
    commands = [tool.parser().parse_args(line.split()[2:]).run for line in lines]
    assert len(set(commands)) == len(commands) >= 5


def test_config_is_plain_yaml(capsys, run, tmp_path):
    ask(capsys, "consolidate", run, tmp_path / "out")
    found = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert set(found) == {"model", "topology", "tokenizer"}
