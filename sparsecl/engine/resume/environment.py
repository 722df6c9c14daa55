"""What a run stands on: releases that must not be used, and a record of all that was there.

Two halves. `check_environment` refuses releases of DeepSpeed that are known to compute wrong
gradients for what a run asks of them, and warns about what a user would want to know before hours
of work. `environment` writes down versions, code, machine, devices and launcher.
"""

import importlib.metadata
import os
import platform
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as torch_dist

from sparsecl.engine.deepspeed.ds_config import Resolved
from sparsecl.engine.devices import ask, check_devices, driver
from sparsecl.engine.run_config import RunConfig
from sparsecl.errors import UserError
from sparsecl.model import attention
from sparsecl.sparse import native

VERSIONED = (
    "torch", "deepspeed", "megatron-core", "numpy", "scipy", "safetensors", "datasets",
    "sentencepiece", "tokenizers", "tensorboard", "triton",
)  # fmt: skip

# Where a launcher or batch system says how it started this process. No others are recorded: an
# environment holds passwords too.
LAUNCHER = (
    "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS", "DS_ACCELERATOR", "SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_NNODES",
    "SLURM_NTASKS", "SLURM_JOB_NODELIST", "SLURM_JOB_PARTITION", "SLURM_CLUSTER_NAME",
    "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", "CUBLAS_WORKSPACE_CONFIG",
)  # fmt: skip

GOOD_DEEPSPEED = "0.19.8"  # what the tests run with
SAFE_TORCH = (2, 10)
"""Older ones have holes in the unpickler that is called safe: CVE-2025-32434, CVE-2026-24747."""


@dataclass(frozen=True, kw_only=True)
class WrongGradients:
    """Releases of DeepSpeed in [first_bad, first_good) that reduce gradients wrongly."""

    first_bad: tuple[int, ...]
    first_good: tuple[int, ...]
    stages: tuple[int, ...]
    """ZeRO stages that are hit."""

    precisions: tuple[str, ...] = ("fp32", "bf16", "fp16")
    accumulates: tuple[str, ...] = ()
    """data_types.grad_accum_dtype that is hit; empty = all."""

    why: str
    issue: str
    """In github.com/deepspeedai/DeepSpeed."""


# Where the record leaves open which release brought or mended a fault, the range is the wider one.
WRONG_GRADIENTS: tuple[WrongGradients, ...] = (
    WrongGradients(
        first_bad=(0, 17, 6),
        first_good=(0, 18, 3),
        stages=(2, 3),
        why="gradients of a backward pass in several parts are lost or counted twice",
        issue="#7718",
    ),
    WrongGradients(
        first_bad=(0, 18, 3),
        first_good=(0, 19, 4),
        stages=(2, 3),
        why="gradients of a backward pass in several parts are lost or counted twice",
        issue="#8224",
    ),
    WrongGradients(
        first_bad=(0, 18, 5),
        first_good=(0, 18, 7),
        stages=(0,),
        precisions=("bf16",),
        why="gradients are divided by 65536 and not cleared after a step",
        issue="#7839",
    ),
    WrongGradients(
        first_bad=(0, 18, 6),
        first_good=(0, 19, 4),
        stages=(1,),
        precisions=("bf16",),
        accumulates=("fp32",),
        why="the last micro-batch is added after the ranks have been averaged",
        issue="#7985",
    ),
)

QUANTIZED = (
    "zero_quantized_weights",
    "zero_quantized_nontrainable_weights",
    "zero_quantized_gradients",
)


def check_environment(resolved: Resolved, config: RunConfig) -> list[str]:
    """Check installed releases and the machine against what a run asks for.

    What the DeepSpeed JSON alone is warned about (overlap_comm, quantized ZeRO) is in
    `resolved.warnings`.

    Returns:
        Warnings, one line each, to be said once on rank 0.

    Raises:
        UserError: a release with known wrong gradients, a GPU that cannot be used, or quantized
            ZeRO without one.
    """
    _check_quantized(resolved)
    accumulates = resolved.config.get("data_types", {}).get("grad_accum_dtype")
    check_deepspeed(
        importlib.metadata.version("deepspeed"),
        resolved.stage,
        precision=config.precision,
        accumulates=accumulates,
    )
    topology = config.topology
    sparse_kernels = topology.storage == "packed" or topology.block is not None
    needs_kernels = topology.kind != "dense" and sparse_kernels
    return [
        *_torch_warnings(torch.__version__),
        *check_devices(needs_kernels=needs_kernels),
        *_native_warnings(config),
    ]


def _native_warnings(config: RunConfig) -> list[str]:
    """Said where a run on a CPU misses our own C, as backend of `auto` or as attention in fp32."""
    if torch.cuda.is_available():
        return []
    topology = config.topology
    wanted = topology.kind != "dense" and topology.backend == "auto"
    backend = native.missing() if wanted else None
    kernel = attention.missing() if config.precision == "fp32" else None
    return [
        *([native.slow(backend)] if backend else []),
        *([attention.slow(kernel)] if kernel else []),
    ]


def _check_quantized(resolved: Resolved) -> None:
    """DeepSpeed's quantizer is a CUDA extension; without a GPU it fails with a traceback."""
    zero = resolved.config.get("zero_optimization", {})
    asked = [name for name in QUANTIZED if zero.get(name) is True]
    if asked and resolved.stage == 3 and not torch.cuda.is_available():
        raise UserError(
            f"zero_optimization.{asked[0]} of the DeepSpeed JSON is true, but DeepSpeed's "
            "quantizer works on GPUs only. Remove it, or train on a GPU."
        )


def check_deepspeed(
    version: str, stage: int, *, precision: str = "fp32", accumulates: str | None = None
) -> None:
    """Refuse a release of DeepSpeed that computes wrong gradients for this ZeRO stage.

    Args:
        accumulates: data_types.grad_accum_dtype of the DeepSpeed JSON; None = not given.

    Raises:
        UserError: what is wrong, since and until when, and the way out.
    """
    release = _release(version)
    fault = _fault(release, stage, precision, accumulates)
    if fault is None:
        return
    others = [s for s in range(4) if _fault(release, s, precision, accumulates) is None]
    way_out = f"install deepspeed {GOOD_DEEPSPEED} or newer"
    if others:
        way_out += f", or use ZeRO stage {' or '.join(map(str, others))}"
    raise UserError(
        f"DeepSpeed {version} computes wrong gradients with ZeRO stage {stage} and "
        f"precision={precision}: {fault.why} (DeepSpeed issue {fault.issue}); {way_out}."
    )


def _fault(
    release: tuple[int, ...], stage: int, precision: str, accumulates: str | None
) -> WrongGradients | None:
    """The first entry of the table that hits this combination."""
    for fault in WRONG_GRADIENTS:
        hit = fault.first_bad <= release < fault.first_good
        hit = hit and stage in fault.stages and precision in fault.precisions
        if hit and (not fault.accumulates or accumulates in fault.accumulates):
            return fault
    return None


def _release(version: str) -> tuple[int, ...]:
    """0.19.8+abc -> (0, 19, 8). A release candidate counts as its release."""
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _torch_warnings(version: str) -> list[str]:
    if _release(version)[:2] >= SAFE_TORCH:
        return []
    return [
        f"torch {version} can be made to run code by a crafted .pt file, even when it loads "
        "weights only (CVE-2025-32434, CVE-2026-24747). sparsecl unpickles nothing; other programs "
        f"may. Install torch {'.'.join(map(str, SAFE_TORCH))} or newer."
    ]


# ---- the record ----------------------------------------------------------------------------


def environment() -> dict[str, object]:
    """Versions, code, machine, devices and launcher, as JSON-safe values."""
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "memory_bytes": _memory_bytes(),
        "commit": _git("describe", "--always", "--dirty", "--abbrev=40"),
        "changed_files": _changed_files(),
        "devices": _devices(),
        "cuda": _cuda(),
        "attention": _attention(),
        "launcher": _launcher(os.environ),
    }


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _launcher(variables: Mapping[str, str]) -> dict[str, str]:
    return {name: variables[name][:500] for name in LAUNCHER if name in variables}


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _attention() -> list[str]:
    """Kernels that torch may choose from; results.json has the one that was chosen."""
    settings = torch.backends.cuda
    allowed = {
        "flash_attention": settings.flash_sdp_enabled(),
        "efficient_attention": settings.mem_efficient_sdp_enabled(),
        "cudnn_attention": settings.cudnn_sdp_enabled(),
        "math": settings.math_sdp_enabled(),
    }
    return [name for name, allows in allowed.items() if allows]


def _git(*words: str) -> str | None:
    """What git says of the checkout that the code is in; None outside of one."""
    answer = ask(["git", *words], cwd=Path(__file__).parent)
    return answer or None


def _changed_files() -> list[str]:
    """Files of the checkout that differ from the commit; "-dirty" alone does not say which."""
    lines = (_git("status", "--porcelain", "--untracked-files=no") or "").splitlines()
    return [line.strip().partition(" ")[2].strip() for line in lines][:50]


def _devices() -> list[dict[str, Any]]:
    """The GPUs that this rank sees."""
    if not torch.cuda.is_available():
        return []
    found = (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
    return [
        {
            "name": device.name,
            "memory_bytes": device.total_memory,
            "capability": f"{device.major}.{device.minor}",
        }
        for device in found
    ]


def _cuda() -> dict[str, Any] | None:
    """Versions below torch; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    nccl = torch.cuda.nccl.version() if torch_dist.is_nccl_available() else ()  # pyright: ignore
    return {
        "cuda": torch.version.cuda,
        "driver": driver(),
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, nccl)) or None,
    }
