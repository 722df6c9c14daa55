"""What a user gets wrong ends in one line, an exit code, and no run folder.

Each case starts launch/train.py on an otherwise good run.
"""

import fcntl
import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sparsecl.errors import CannotCreateError, DataError, MissingInputError, UserError
from tests.data.stores import reseal
from tests.events import HANG, free_port
from tests.launch.starter import RANK_VARIABLES, ROOT, Starter, tiny


def refused(starter: Starter, kind: type[UserError], *texts: str, **kwargs: Any) -> str:
    """The line of a run that must be refused; it names `texts` and leaves nothing behind."""
    arguments = kwargs.pop("arguments", ())
    folder = starter.folder / "run"
    done = starter.run("--run_dir", str(folder), *arguments, **kwargs)
    assert done.code == kind.exit_code, (done.line, done.out)
    for text in texts:
        assert text in done.line
    assert not folder.exists()
    return done.line


# ---- the run config --------------------------------------------------------------------------


@pytest.mark.fault("N7", "K3", "J6")
@pytest.mark.parametrize(
    ("setting", "texts"),
    [
        ("topology.density=0", ("topology.density must be in (0, 1], got 0",)),
        ("topology.density=1.5", ("(0, 1], got 1.5", "write 0.015")),
        ("topology.density='10%'", ("topology.density", "10% is written 0.1")),
        ("topology.density=.nan", ("topology.density", "finite", ".nan")),
        ("topology.density=1e-6", ("topology.density", "no live weight", "Use 0.0009")),
        ("model.heads=5", ("model.heads=5", "width=32", "Use 4")),
        ("phases.steps=[12]", ("phases.steps", "1 numbers for 2 phases")),
        ("phases.steps=[12, 12, 12]", ("phases.steps", "3 numbers for 2 phases")),
        ("phases.order=[a, c]", ("phases.order", "'c'", "['a', 'b']")),
        ("batch.micro=3", ("batch.sequences=8", "3 x 1 = 3", "batch.micro=1 or 2 or 4")),
        ("precision=fp16", ("precision=fp16", "fp32 or bf16")),
        ("precision=half", ("precision", "fp32, bf16, fp16", "half")),
        ("data.domains.1.name=a", ("data.domains", "'a' twice")),
        ("seed=-1", ("seed must be >= 0, got -1",)),
    ],
)
def test_a_wrong_value_names_its_key(starter, setting, texts):
    refused(starter, UserError, *texts, arguments=("--set", setting))


def variables(rank: int, world_size: int) -> dict[str, str]:
    """What a launcher says to one rank."""
    place = map(str, (rank, rank, world_size, "127.0.0.1", free_port()))
    return dict(zip(RANK_VARIABLES, place, strict=True))


@pytest.mark.fault("K3")
def test_a_wrong_value_in_the_file_names_the_line(starter):
    path = starter.config(topology={"density": 2})
    line = path.read_text().splitlines().index("  density: 2") + 1
    refused(starter, UserError, f"{path}:{line}: topology.density", config=path)


@pytest.mark.fault("C11", "K5")
@pytest.mark.parametrize(
    ("world_size", "settings", "texts"),
    [
        (4, ("parallel.tensor=4", "model.heads=2"), ("model.heads=2", "parallel.tensor=4")),
        (4, ("parallel.tensor=3",), ("parallel.tensor=3", "number of processes, 4")),
        (3, (), ("batch.sequences=8", "1 x 3 = 3")),
    ],
)
def test_a_layout_is_checked_before_any_rank_waits(starter, world_size, settings, texts):
    # The other ranks are never started: a check that talked to them would hang.
    env = variables(0, world_size)
    arguments = ("--set", *settings) if settings else ()
    refused(starter, UserError, *texts, arguments=arguments, env=env)


def test_only_rank_0_speaks(starter):
    done = starter.run("--set", "topology.density=2", env=variables(1, 2))
    assert (done.code, done.out, done.err) == (UserError.exit_code, "", "")


@pytest.mark.fault("K1")
def test_an_unknown_key_names_the_nearest(starter):
    path = starter.config(topology={"densty": 0.1})
    line = path.read_text().splitlines().index("  densty: 0.1") + 1
    place = f"{path}:{line}: topology.densty"
    refused(starter, UserError, place, "did you mean density?", config=path)


@pytest.mark.fault("K2")
def test_broken_yaml_names_the_place(starter):
    path = starter.folder / "broken.yaml"
    path.write_text("name: tiny\nmodel: {preset: demo\nseed: 0\n")
    line = refused(starter, UserError, config=path)
    assert re.match(rf"sparsecl: {re.escape(str(path))}:\d+:\d+: ", line)


def test_a_missing_config_is_named(starter):
    arguments = starter.arguments("--config", str(starter.folder / "absent.yaml"))
    done = starter.start(arguments).wait()
    assert (done.code, "absent.yaml: no such file" in done.line) == (66, True)


# ---- the DeepSpeed JSON ----------------------------------------------------------------------


@pytest.mark.fault("K1")
@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ('{"zero_optimization": {"stage": 2,}}', ("ds.json:1:", "comma")),
        ('{\n"zero_optimisation": {"stage": 2}}', ("ds.json:2: zero_opt", "zero_optimization?")),
        ('{"zero_optimization": {"stge": 2}}', ("ds.json:1: zero_optimization.stge", "stage?")),
        ('{"zero_optimization": {"stage": 4}}', ("zero_optimization.stage", "got 4")),
        ('{"train_batch_size": 16}', ("train_batch_size", "is 16", "batch.sequences=8")),
        ('{"gradient_clipping": 0.5}', ("gradient_clipping", "is 0.5", "optimizer.clip=1.0")),
        ('{"bf16": {"enabled": true}}', ("bf16.enabled", "precision=fp32")),
    ],
)
def test_a_wrong_deepspeed_json(starter, text, texts):
    path = starter.folder / "ds.json"
    path.write_text(text)
    refused(starter, UserError, *texts, arguments=("--ds_config", str(path)))


# ---- data ------------------------------------------------------------------------------------


def files_domain(starter: Starter, path: Path) -> Path:
    """A config whose first domain trains on `path`."""
    valid = starter.folder / "valid.txt"
    valid.write_text("words that are in no other file " * 10)
    data = tiny(starter.cache)["data"]
    first = {"name": "a", "source": "files", "train": [str(path)], "validation": [str(valid)]}
    return starter.config(data={**data, "domains": [first, data["domains"][1]]})


LINES = "".join(json.dumps({"text": f"document {k} with some words"}) + "\n" for k in range(50))


@pytest.mark.fault("T3")
@pytest.mark.parametrize(
    ("name", "content", "kind", "texts"),
    [
        ("empty.jsonl", b"", DataError, ("domain a: train", "is empty")),
        ("cut.jsonl.gz", gzip.compress(LINES.encode())[:-40], DataError, ("cut.", "truncated")),
        ("latin.jsonl", LINES.replace("some", "s\xf6me").encode("latin-1"), DataError, ("byte",)),
        (
            "latin.txt",
            b"caf\xe9 " * 100,
            DataError,
            ("latin.txt", "byte offset 3", "encoding_errors"),
        ),
        ("broken.jsonl", LINES.encode() + b'{"text": \n', DataError, ("broken.jsonl:51",)),
        ("field.jsonl", b'{"body": "x"}\n', DataError, ("field.jsonl:1", "text", "body")),
        ("short.jsonl", b'{"text": "short"}\n', DataError, ("domain a", "model.context")),
    ],
)
def test_a_broken_data_file_is_named(starter, name, content, kind, texts):
    path = starter.folder / name
    path.write_bytes(content)
    refused(starter, kind, *texts, config=files_domain(starter, path))


@pytest.mark.fault("T1")
def test_a_missing_data_file_is_named(starter):
    config = files_domain(starter, starter.folder / "absent.jsonl")
    refused(starter, MissingInputError, "absent.jsonl", config=config)


def token_entry(starter: Starter) -> Path:
    """The prepared tokens of domain `a`, in a cache of this test."""
    starter.cache = starter.folder / "cache"
    assert starter.run("--set", "phases.steps=1", config=starter.config()).code == 0
    return next(starter.cache.glob("tokens/a-*"))


@pytest.mark.fault("T5")
def test_a_token_beyond_the_vocabulary_is_found_before_training(starter):
    path = token_entry(starter) / "train.tokens"
    content = bytearray(path.read_bytes())
    content[1000:1002] = (300).to_bytes(2, "little")  # kind: bytes has 257 ids
    path.write_bytes(content)
    refused(starter, DataError, str(path), "delete")


@pytest.mark.fault("T5")
def test_a_token_beyond_the_vocabulary_in_the_manifest(starter):
    entry = token_entry(starter)
    reseal(entry / "manifest.json", lambda manifest: manifest["train"].update(max_token=300))
    refused(starter, DataError, "token id 300 >= vocab_size 257")


@pytest.mark.fault("T6")
def test_tokens_of_another_tokenizer(starter):
    entry = token_entry(starter)
    reseal(entry / "manifest.json", lambda manifest: manifest.update(tokenizer="0" * 64))
    refused(starter, DataError, str(entry), "tokenizer 000000000000", "delete")


# ---- the run folder --------------------------------------------------------------------------


@pytest.mark.fault("J1")
def test_a_folder_in_use_is_left_alone(starter):
    folder = starter.folder / "run"
    folder.mkdir()
    with open(folder / ".lock", "w") as lock:
        lock.write("process 1 on elsewhere")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = starter.run("--run_dir", str(folder))
    assert done.code == CannotCreateError.exit_code
    assert f"--run_dir {folder}: in use by process 1 on elsewhere" in done.line
    assert [path.name for path in folder.iterdir()] == [".lock"]


@pytest.mark.fault("D2")
def test_a_folder_that_cannot_be_made(starter):
    (starter.folder / "file").write_text("")
    folder = starter.folder / "file" / "run"
    done = starter.run("--run_dir", str(folder))
    assert (done.code, str(folder) in done.line) == (CannotCreateError.exit_code, True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(starter):
    (starter.folder / "closed").mkdir(mode=0o500)
    done = starter.run("--run_dir", str(starter.folder / "closed" / "run"))
    assert (done.code, "Permission denied" in done.line) == (CannotCreateError.exit_code, True)


@pytest.mark.fault("C5")
def test_must_needs_a_checkpoint(starter):
    arguments = ("--resume", "must")
    refused(starter, MissingInputError, "--resume must: no checkpoint", arguments=arguments)


def test_never_leaves_a_run_alone(starter):
    folder = starter.folder / "run"
    folder.mkdir()
    (folder / "scalars.jsonl").write_text("{}\n")
    done = starter.run("--run_dir", str(folder), "--resume", "never")
    assert (done.code, "holds a run already" in done.line) == (CannotCreateError.exit_code, True)
    assert (folder / "scalars.jsonl").read_text() == "{}\n"


# ---- as a user starts it ---------------------------------------------------------------------


def clean_environment() -> dict[str, str]:
    """Without what this session sets to be fast or quiet, and without a GPU."""
    unset = {"DS_ACCELERATOR", *RANK_VARIABLES}
    found = {key: value for key, value in os.environ.items() if key not in unset}
    return {**found, "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize(
    ("arguments", "code", "text", "importable"),
    [
        # Found before torch is imported, which takes seconds.
        (("--set", "topology.density=85"), 64, "write 0.85", False),
        # Found after torch, Megatron and DeepSpeed have said all that they have to say.
        (("--resume", "must"), 66, "--resume must", True),
    ],
)
def test_a_plain_process(starter, arguments, code, text, importable):
    command = [sys.executable, str(ROOT / "launch" / "train.py")]
    command += starter.arguments("--run_dir", str(starter.folder / "run"), *arguments)
    env = clean_environment()
    if not importable:
        (starter.folder / "torch.py").write_text("raise SystemExit('torch is imported')")
        env["PYTHONPATH"] = str(starter.folder)
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=HANG)
    assert done.returncode == code
    assert re.fullmatch(r"sparsecl: [^\n]*\n", done.stderr), done.stderr
    assert text in done.stderr
    assert not (starter.folder / "run").exists()


@pytest.mark.slow
@pytest.mark.dist
def test_the_deepspeed_launcher_passes_the_failure_on(starter):
    launcher = Path(sys.executable).with_name("deepspeed")
    path = starter.folder / "absent.jsonl"
    # Not the launcher's fixed default port: another run on this machine may have it.
    command = [str(launcher), "--master_port", str(free_port()), "--num_gpus", "2"]
    command += [str(ROOT / "launch" / "train.py")]
    command += starter.arguments(config=files_domain(starter, path))
    done = subprocess.run(
        [*command, "--run_dir", str(starter.folder / "run")],
        capture_output=True,
        text=True,
        env=clean_environment(),
        timeout=HANG,
    )
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("sparsecl: ")]
    assert len(lines) == 1 and "absent.jsonl" in lines[0], done.stderr
    assert not (starter.folder / "run").exists()
