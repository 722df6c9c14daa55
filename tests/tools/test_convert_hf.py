"""tools/convert.py: hf-export, hf-import, nanogpt-import and from-deepspeed from the outside."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sparsecl import config as configs
from sparsecl.checkpoint.manifest import verify, write_manifest
from sparsecl.checkpoint.reader import Reader
from sparsecl.engine.run_config import RunConfig
from sparsecl.engine.topology import draw_topologies
from sparsecl.programs.convert import main
from tests.analysis.made_run import load, make_run
from tests.events import free_port
from tests.launch.starter import ROOT, run_script

STEP_0 = Path("checkpoints") / "step_0"


@pytest.fixture(scope="module")
def exported(tmp_path_factory, shared_cache):
    """A dense model of kind bytes, exported."""
    folder = tmp_path_factory.mktemp("exported")
    make_run(folder / "run", load(shared_cache, "topology={kind: dense}"))
    assert main(["hf-export", str(folder / "run"), str(folder / "out")]) == 0
    return folder / "out"


def tool(*arguments):
    return main([str(argument) for argument in arguments])


def opened(out):
    """The config of an import, and its checkpoint."""
    config = configs.load(RunConfig, out / "config.yaml")
    manifest = verify(out / STEP_0)
    assert manifest.step == 0 and manifest.state["weights_only"] is True
    assert manifest.state["config"] == configs.to_dict(config)
    return config, Reader(out / STEP_0)


def check_topologies(config, reader):
    """A run of the config draws the live sets of the checkpoint."""
    drawn = {f"{name}.weight": found.digest for name, found in draw_topologies(config).items()}
    assert drawn == {name: found.digest for name, found in reader.topologies.items()}


def test_dense_stays_dense(exported, tmp_path, capsys):
    assert tool("hf-import", exported, tmp_path / "a") == 0
    assert capsys.readouterr().out == f"wrote {tmp_path}/a: a checkpoint to start from, dense\n"
    config, reader = opened(tmp_path / "a")
    assert (config.topology.kind, config.tokenizer.kind) == ("dense", "bytes")
    assert config.model.resolved().context == 16 and not reader.topologies
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["checkpoints", "config.yaml"]


def test_the_largest_weights_live(exported, tmp_path):
    out = tmp_path / "a"
    assert tool("hf-import", exported, out, "--by", "magnitude", "--density", "0.1") == 0
    config, reader = opened(out)
    check_topologies(config, reader)
    whole = load_file(exported / "model.safetensors")["transformer.h.1.mlp.c_fc.weight"].T
    found = reader.read("master", "layers.1.mlp.up.weight")
    assert reader.topologies["layers.1.mlp.up.weight"].num_live == round(0.1 * whole.numel())
    live = found != 0
    assert torch.equal(found[live], whole[live])
    assert whole[live].abs().min() >= whole[~live].abs().max()


def test_a_drawn_topology_is_that_of_the_config(exported, tmp_path):
    flags = ("--topology", "er_fixed", "--density", "0.25", "--seed", "7")
    assert tool("hf-import", exported / "model.safetensors", tmp_path / "a", *flags) == 0
    config, reader = opened(tmp_path / "a")
    assert (config.seed, config.topology.kind, config.topology.density) == (7, "er_fixed", 0.25)
    check_topologies(config, reader)
    assert len(reader.topologies) == 12


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--density", "0.1"), "of what? Give --by magnitude or --topology"),
        (("--by", "magnitude"), "magnitude needs --density"),
        (("--by", "magnitude", "--density", "85"), "--density 85: must be in (0, 1]"),
        (("--by", "magnitude", "--density", "1e-6"), "would have no live weight"),
        (("--by", "dense", "--topology", "brf"), "give one of them"),
        (("--topology", "brv", "--density", "0.1"), "--topology brv"),
        (("--seed", "-1"), "--seed -1"),
        (("--tokenizer", "none.model"), "none.model"),
    ],
)
def test_flags_that_make_no_sense(exported, tmp_path, capsys, flags, message):
    assert tool("hf-import", exported, tmp_path / "a", *flags) in (64, 66)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sparsecl: ") and message in line
    assert not (tmp_path / "a").exists()


def test_nothing_is_overwritten(exported, capsys):
    assert tool("hf-import", exported, exported) == 73
    assert "is there already" in capsys.readouterr().err


def test_an_unknown_tokenizer_is_said(exported, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for name in ("model.safetensors", "config.json"):
        (tmp_path / "in" / name).write_bytes((exported / name).read_bytes())
    assert tool("hf-import", tmp_path / "in", tmp_path / "a") == 0
    assert "257 ids of an unknown meaning" in capsys.readouterr().out
    # The number of ids is kept: the padding can be left out of another export.
    assert tool("hf-export", tmp_path / "a", tmp_path / "b") == 0
    assert "no tokenizer.json" in capsys.readouterr().out
    names = ("model.safetensors",)
    assert all(
        (tmp_path / "b" / name).read_bytes() == (exported / name).read_bytes() for name in names
    )


def test_the_tokenizer_of_the_run_must_be_found(tmp_path, shared_cache, capsys):
    run = tmp_path / "run"
    make_run(run, load(shared_cache))
    manifest = verify(run / "checkpoints" / "step_3")
    other = load(tmp_path / "elsewhere", "tokenizer={kind: sentencepiece}")
    (run / "config.yaml").write_text(configs.dump(other))
    assert tool("hf-export", run, tmp_path / "a") == 0  # known by its digest, whatever is said
    manifest.state["tokenizer"] = "0" * 64
    write_manifest(run / "checkpoints" / "step_3", manifest)
    capsys.readouterr()
    assert tool("hf-export", run, tmp_path / "b") == 66
    assert "--cache DIR or --tokenizer FILE" in capsys.readouterr().err


# ---- DeepSpeed ---------------------------------------------------------------------------------


def run_tool(*arguments, cwd):
    words = [str(argument) for argument in arguments]
    return run_script(ROOT / "tools" / "convert.py", words, cwd=cwd)


@pytest.mark.parametrize(("stage", "storage"), [(1, "masked"), (2, "packed"), (3, "masked")])
def test_a_zero_checkpoint_of_ours(server, tmp_path, stage, storage):
    words = [str(stage), storage, str(tmp_path / "made"), str(free_port())]
    saved = run_script(ROOT / "tests" / "tools" / "save_zero.py", words, cwd=tmp_path)
    assert saved.code == 0, saved.err
    made = tmp_path / "made"
    flags = ("--trust-checkpoint", "--config", made / "config.yaml")
    done = run_tool("from-deepspeed", made / "zero", tmp_path / "a", *flags, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "code in them runs" in done.err and "a checkpoint to start from" in done.out
    config, reader = opened(tmp_path / "a")
    check_topologies(config, reader)
    before = torch.load(made / "before.pt", weights_only=True)
    assert before.keys() == reader.manifest.parameters.keys()
    for name, value in before.items():
        found = reader.read("master", name)
        if value.dim() == 1 and found.dim() == 2:
            found = found[torch.from_numpy(reader.topologies[name].mask())]
        assert torch.equal(found, value), name


class Canary:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def hostile_zero(folder, canary, latest="global_step1"):
    """Both kinds of files of a ZeRO checkpoint, each with a canary in it."""
    (folder / "global_step1").mkdir(parents=True)
    (folder / "latest").write_text(latest)
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        torch.save({"module": Canary(canary)}, folder / "global_step1" / name)
    return folder


def test_deepspeed_without_trust_opens_nothing(tmp_path, capsys):
    folder = hostile_zero(tmp_path / "zero", tmp_path / "canary")
    assert tool("from-deepspeed", folder, tmp_path / "a") == 64
    (line,) = capsys.readouterr().err.splitlines()
    assert "runs code" in line and "--trust-checkpoint" in line
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("latest", "code"),
    [("../zero/global_step1", 65), ("/etc", 65), ("", 65), ("..", 65), ("global_step2", 66)],
)
def test_latest_cannot_lead_outside(tmp_path, latest, code):
    folder = hostile_zero(tmp_path / "zero", tmp_path / "canary", latest)
    assert tool("from-deepspeed", folder, tmp_path / "a", "--trust-checkpoint") == code
    assert not (tmp_path / "canary").exists()


def test_tensor_parallel_shards_are_refused(tmp_path, capsys):
    folder = hostile_zero(tmp_path / "zero", tmp_path / "canary")
    (folder / "global_step1" / "mp_rank_01_model_states.pt").write_bytes(b"")
    assert tool("from-deepspeed", folder, tmp_path / "a", "--trust-checkpoint") == 65
    assert "tensor parallelism" in capsys.readouterr().err
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("command", ["nanogpt-import", "hf-import"])
@pytest.mark.parametrize("trust", [(), ("--trust-checkpoint",)])
def test_a_pickle_that_is_not_there_is_missing(tmp_path, capsys, command, trust):
    assert tool(command, tmp_path / "no.pt", tmp_path / "out", "--by", "dense", *trust) == 66
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sparsecl: {tmp_path}/no.pt: no such ")
