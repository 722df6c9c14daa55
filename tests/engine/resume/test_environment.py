"""Releases that are refused, and what is recorded of the place where a run ran."""

import json
import subprocess

import pytest
import torch

from sparsecl.engine.deepspeed.ds_config import Resolved
from sparsecl.engine.resume import environment as env
from sparsecl.engine.resume.environment import check_deepspeed, check_environment, environment
from sparsecl.engine.run_config import RunConfig
from sparsecl.errors import UserError
from sparsecl.model import attention
from sparsecl.sparse import native
from sparsecl.topology.config import BlockConfig, TopologyConfig


@pytest.mark.parametrize(
    ("version", "stage", "precision", "accumulates", "issue"),
    [
        ("0.17.6", 2, "fp32", None, "#7718"),
        ("0.18.2", 3, "bf16", None, "#7718"),
        ("0.18.3", 2, "fp32", None, "#8224"),
        ("0.19.3+cu128", 3, "fp16", None, "#8224"),
        ("0.18.6", 0, "bf16", None, "#7839"),
        ("0.18.9", 1, "bf16", "fp32", "#7985"),
        ("0.17.5", 2, "fp32", None, None),
        ("0.18.3", 1, "fp32", None, None),
        ("0.18.6", 0, "fp32", None, None),
        ("0.18.9", 1, "bf16", "bf16", None),
        ("0.18.9", 1, "bf16", None, None),
        ("0.19.4", 2, "fp32", None, None),
        ("0.19.8", 3, "bf16", "fp32", None),
        ("1.0", 3, "bf16", "fp32", None),
    ],
)
def test_releases_with_wrong_gradients(version, stage, precision, accumulates, issue):
    if issue is None:
        check_deepspeed(version, stage, precision=precision, accumulates=accumulates)
        return
    with pytest.raises(UserError) as caught:
        check_deepspeed(version, stage, precision=precision, accumulates=accumulates)
    line = str(caught.value)
    assert caught.value.exit_code == 64 and line.isprintable()
    for text in (version, f"stage {stage}", issue, "install deepspeed 0.19.8"):
        assert text in line


def test_the_way_out_names_only_stages_that_are_right():
    with pytest.raises(UserError, match=r"or use ZeRO stage 0 or 1\.$"):
        check_deepspeed("0.18.6", 2)
    with pytest.raises(UserError, match=r"newer, or use ZeRO stage 1\.$"):
        check_deepspeed("0.18.6", 0, precision="bf16")


def resolved(stage: int = 2) -> Resolved:
    return Resolved({"data_types": {"grad_accum_dtype": "fp32"}}, (), stage, False)


def test_the_installed_release_is_what_is_checked(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert check_environment(resolved(), RunConfig()) == []
    monkeypatch.setattr(env.importlib.metadata, "version", lambda name: "0.18.9")
    with pytest.raises(UserError, match="DeepSpeed 0.18.9 .* precision=bf16: the last micro-batch"):
        check_environment(resolved(1), RunConfig(precision="bf16"))


@pytest.mark.fault("G5", "G6")
@pytest.mark.parametrize(
    ("topology", "needed"),
    [
        (TopologyConfig(kind="dense", storage="packed"), False),
        (TopologyConfig(), False),
        (TopologyConfig(storage="packed"), True),
        (TopologyConfig(block=BlockConfig(size=16)), True),
    ],
)
def test_every_run_looks_at_its_devices(monkeypatch, topology, needed):
    """Kernels of Triton are asked for where packed or tiled layers will launch them."""
    monkeypatch.setattr(env, "check_devices", lambda *, needs_kernels: [f"asked: {needs_kernels}"])
    assert check_environment(resolved(), RunConfig(topology=topology)) == [f"asked: {needed}"]


@pytest.mark.parametrize(
    ("version", "warned"), [("2.9.1+cu128", True), ("2.10.0", False), ("2.13.0+cpu", False)]
)
def test_an_old_torch_is_warned_about(monkeypatch, version, warned):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch, "__version__", version)
    found = check_environment(resolved(), RunConfig())
    assert [version in line and "CVE-2026-24747" in line for line in found] == [True] * warned


def test_the_record_is_json_and_holds_no_secrets(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "hunter2")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    found = json.loads(json.dumps(environment()))
    assert found["launcher"]["SLURM_JOB_ID"] == "77"
    assert found["versions"]["torch"] == torch.__version__
    assert found["cores"] >= 1 and found["memory_bytes"] > 2**20
    assert len(found["devices"]) == torch.cuda.device_count()
    assert "hunter2" not in json.dumps(found)


def test_the_record_without_git_and_without_a_driver(monkeypatch):
    def absent(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", absent)
    found = environment()
    assert (found["commit"], found["changed_files"]) == (None, [])


@pytest.mark.parametrize("name", env.QUANTIZED)
def test_quantized_zero_needs_a_gpu(name, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked = Resolved({"zero_optimization": {name: True}}, (), 3, False)
    with pytest.raises(UserError, match=rf"zero_optimization\.{name} of .* GPUs only") as caught:
        check_environment(asked, RunConfig())
    assert caught.value.exit_code == 64


@pytest.mark.parametrize(
    ("topology", "said"),
    [
        (TopologyConfig(backend="auto"), True),
        (TopologyConfig(backend="csr"), False),
        (TopologyConfig(), False),
        (TopologyConfig(kind="dense", backend="auto"), False),
    ],
)
def test_auto_without_the_native_kernels_says_what_is_slower(monkeypatch, topology, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = RunConfig(topology=topology)
    given = resolved()
    monkeypatch.setattr(native, "missing", lambda: "no compiler")
    lines = [line for line in check_environment(given, config) if "no compiler" in line]
    assert len(lines) == said and all("two to three times as long" in line for line in lines)
    monkeypatch.setattr(native, "missing", lambda: None)
    assert not any("no compiler" in line for line in check_environment(given, config))


def test_fp32_on_a_cpu_without_our_attention_says_what_is_slower(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(attention, "_library", lambda: None)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    (line,) = check_environment(resolved(), RunConfig(precision="fp32"))
    assert "attention kernel is not built" in line and "twice as long" in line
    assert check_environment(resolved(), RunConfig(precision="bf16")) == []
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert check_environment(resolved(), RunConfig(precision="fp32")) == []
