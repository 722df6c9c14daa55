"""GPUs that are there and cannot be used, what kernels need, and equal bits on request."""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sparsecl.engine import devices, run
from sparsecl.engine.build import _load_kernel
from sparsecl.engine.devices import be_deterministic, check_devices
from sparsecl.engine.resume.changes import NOTHING
from sparsecl.engine.run_config import RunConfig
from sparsecl.engine.speed_config import SpeedConfig
from sparsecl.errors import UserError
from sparsecl.model.compiled import compile_blocks
from sparsecl.sparse import kernels

ROOT = Path(__file__).resolve().parents[2]
CPU_BUILD = "a build for the CPU"


@pytest.fixture
def no_cuda(monkeypatch):
    """torch finds no GPU, CUDA_VISIBLE_DEVICES is not set, no driver answers."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "ask", lambda command: "")
    monkeypatch.setattr(devices, "_nvidia_device", lambda: None)


@pytest.mark.fault("G6")
@pytest.mark.parametrize("cuda", ["13.0", None])
@pytest.mark.parametrize("visible", [None, "0", "GPU-8932f937"])
def test_a_gpu_that_torch_cannot_use_is_an_error(no_cuda, monkeypatch, cuda, visible):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(devices, "_nvidia_device", lambda: "/dev/nvidia0")
    monkeypatch.setattr(devices, "ask", lambda command: "535.104.05")
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(UserError) as caught:
        check_devices(needs_kernels=False)
    line = str(caught.value)
    named = ("/dev/nvidia0", torch.__version__, cuda or CPU_BUILD, "driver: 535.104.05", visible)
    for text in (*named, "download.pytorch.org/whl/cu126", "say CUDA_VISIBLE_DEVICES=."):
        assert (text or "") in line
    assert caught.value.exit_code == 64 and line.isprintable()


@pytest.mark.fault("G6")
@pytest.mark.parametrize("hidden", devices.HIDDEN)
def test_the_cpu_may_be_asked_for_beside_a_gpu(no_cuda, monkeypatch, hidden):
    monkeypatch.setattr(devices, "_nvidia_device", lambda: "/dev/nvidia0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert check_devices(needs_kernels=True) == []


@pytest.mark.fault("J6")
@pytest.mark.parametrize(("cuda", "warned"), [("13.0", True), (None, False)])
def test_a_gpu_build_without_a_gpu_says_that_it_uses_the_cpu(no_cuda, monkeypatch, cuda, warned):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert ["(gloo)" in line for line in check_devices(needs_kernels=True)] == [True] * warned


@pytest.mark.fault("G6")
def test_a_gpu_is_a_file_that_may_be_opened_or_a_line_of_the_driver(tmp_path, monkeypatch):
    answers = {"nvidia-smi": ""}
    monkeypatch.setattr(devices, "ask", lambda command: answers[command[0]])
    assert devices._nvidia_device(tmp_path) is None
    (tmp_path / "nvidia1").symlink_to(tmp_path / "refused")  # as a job without a GPU sees it
    (tmp_path / "nvidiactl").write_bytes(b"")
    assert devices._nvidia_device(tmp_path) is None
    answers["nvidia-smi"] = "GPU 0: NVIDIA H200 (UUID: GPU-8932f937)\nGPU 1: NVIDIA H200"
    assert devices._nvidia_device(tmp_path) == "GPU 0: NVIDIA H200"
    (tmp_path / "nvidia2").write_bytes(b"")
    assert devices._nvidia_device(tmp_path) == str(tmp_path / "nvidia2")
    answers["nvidia-smi"] = "No devices were found"
    assert devices._nvidia_device(tmp_path / "absent") is None


@pytest.mark.fault("J6")
def test_several_gpus_need_nccl(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices.torch_dist, "is_nccl_available", lambda: False)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert check_devices(needs_kernels=False) == []
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="without NCCL, which 2 ranks"):
        check_devices(needs_kernels=False)


# ---- what kernels are made with --------------------------------------------------------------


@pytest.fixture
def lacking(monkeypatch):
    """`kernels.lacking`, looked up anew, on a machine that seems to have a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("CC", raising=False)
    for function in (kernels.lacking, kernels._has_triton):
        function.cache_clear()
    yield kernels.lacking
    for function in (kernels.lacking, kernels._has_triton):
        function.cache_clear()


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_whole_machine_lacks_nothing(lacking, tmp_path, monkeypatch):
    monkeypatch.setenv("CC", script(tmp_path / "cc", "exit 0"))
    assert lacking() is None
    assert kernels.available(torch.device("cuda", 0))
    assert check_devices(needs_kernels=True) == []


@pytest.mark.fault("G5")
@pytest.mark.parametrize("missing", ["compiler", "headers", "program", "triton"])
def test_what_triton_lacks_is_found_at_the_start(lacking, tmp_path, monkeypatch, missing):
    if missing == "compiler":
        monkeypatch.setenv("PATH", str(tmp_path))
    elif missing == "headers":
        said = "echo 'x.c:1:10: fatal error: Python.h: No such file or directory' >&2; exit 1"
        monkeypatch.setenv("CC", script(tmp_path / "cc", said))
    elif missing == "program":
        monkeypatch.setenv("CC", str(tmp_path / "absent"))
    else:
        monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    reason = {
        "compiler": "Triton finds no C compiler",
        "headers": "fatal error: Python.h: No such file or directory; install python3-dev",
        "program": "absent cannot be started (No such file or directory)",
        "triton": "Triton is not installed",
    }[missing]
    (line,) = check_devices(needs_kernels=True)
    assert reason in line and line.isprintable()
    assert line.endswith("packed and block layers use slower torch operations on this GPU.")
    assert check_devices(needs_kernels=False) == []
    # The fall-back says the same, once; blocks cannot be compiled.
    with pytest.warns(UserWarning, match="slower torch operations"):
        assert not kernels.available(torch.device("cuda", 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not kernels.available(torch.device("cuda", 0))
    with pytest.raises(UserError, match=r"^speed\.compile=true: .*; or leave it out\.$") as caught:
        compile_blocks(torch.nn.Module())  # type: ignore[arg-type]
    assert reason in str(caught.value)


@pytest.mark.fault("G8")
@pytest.mark.parametrize(
    ("kind", "offload", "builder", "named"),
    [
        ("AdamW", False, "FusedAdamBuilder", 'write "torch_adam": true in optimizer.params, or'),
        ("adam", True, "CPUAdamBuilder", 'write "torch_adam": true in optimizer.params, or'),
        ("Lion", False, "FusedLionBuilder", "GPU, or leave the block out"),
        ("Lamb", True, "FusedLambBuilder", "GPU, or leave the block out"),
        ("Adagrad", True, "CPUAdagradBuilder", "GPU, or leave the block out"),
        ("Adagrad", False, None, ""),
    ],
)
def test_an_optimizer_that_cannot_be_compiled_is_an_error(
    monkeypatch, kind, offload, builder, named
):
    from deepspeed.ops import op_builder

    class Broken:
        def load(self):
            raise OSError("CUDA_HOME environment variable is not set.\nPlease set it")

    if builder:
        monkeypatch.setattr(op_builder, builder, Broken, raising=False)
    zero = {"offload_optimizer": {"device": "cpu"}} if offload else {}
    config = {"optimizer": {"type": kind, "params": {}}, "zero_optimization": zero}
    if builder is None:
        _load_kernel(config)
        return
    with pytest.raises(UserError) as caught:
        _load_kernel(config)
    line = str(caught.value)
    assert line.isprintable() and caught.value.exit_code == 64
    assert f"optimizer.type={kind} of the DeepSpeed JSON" in line and named in line
    assert "(CUDA_HOME environment variable is not set. Please set it)" in line
    if "adam" in kind.lower():
        _load_kernel(config | {"optimizer": {"type": kind, "params": {"torch_adam": True}}})


# ---- equal bits ------------------------------------------------------------------------------

SETTINGS = """
import os
from sparsecl.engine.devices import attention_kernel, be_deterministic
be_deterministic()
import torch
from torch.backends import cuda
print(torch.are_deterministic_algorithms_enabled(),
      torch.utils.deterministic.fill_uninitialized_memory,
      cuda.flash_sdp_enabled(), cuda.math_sdp_enabled(), cuda.cudnn_sdp_enabled(),
      cuda.mem_efficient_sdp_enabled(), os.environ["CUBLAS_WORKSPACE_CONFIG"],
      attention_kernel(2, 64, torch.bfloat16))
"""


@pytest.mark.fault("G3")
@pytest.mark.parametrize("workspace", [None, ":16:8"])
def test_what_deterministic_sets(workspace):
    environment = {key: value for key, value in os.environ.items() if key[:6] != "CUBLAS"}
    environment |= {"CUBLAS_WORKSPACE_CONFIG": workspace} if workspace else {}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, "-c", SETTINGS]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    expected = f"True False True True False False {workspace or ':4096:8'} flash_attention"
    assert done.stdout.strip() == expected, done.stderr


@pytest.mark.fault("G3")
def test_another_workspace_is_refused(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(UserError, match="CUBLAS_WORKSPACE_CONFIG=:0:0. Unset it, or set it to"):
        be_deterministic()


@pytest.mark.fault("G3")
@pytest.mark.parametrize("asked", [False, True])
def test_a_run_that_asks_for_equal_bits_has_them_before_anything_is_on_a_gpu(monkeypatch, asked):
    done = []
    monkeypatch.setattr(run, "be_deterministic", lambda: done.append("bits"))

    def begin(*_, **__):
        done.append("ranks")
        raise UserError("far enough")

    monkeypatch.setattr(run.dist, "init", begin)
    config = RunConfig(speed=SpeedConfig(deterministic=asked))
    prepared = SimpleNamespace(config=config, deepspeed=SimpleNamespace(config={}), run_dir=ROOT)
    with pytest.raises(UserError, match="far enough"):
        run._run(prepared, "never", NOTHING, False, None)  # type: ignore[arg-type]
    assert done == ["bits", "ranks"][not asked :]
