"""The GPU of a rank: whether it can be used and has kernels, and what makes its sums repeatable."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as torch_dist

from sparsecl import dist
from sparsecl.errors import UserError
from sparsecl.sparse import kernels

# Values of CUDA_VISIBLE_DEVICES that ask for the CPU; the last one is Slurm's.
HIDDEN = ("", "-1", "NoDevFiles")

# cuBLAS sums in one order with either of these sizes of its workspace, says its manual.
WORKSPACES = (":4096:8", ":16:8")


def check_devices(*, needs_kernels: bool) -> list[str]:
    """Look whether the device that `dist.device` takes is the one that was meant. Local.

    Args:
        needs_kernels: the run has layers that are multiplied by Triton on a GPU.

    Returns:
        Warnings, one line each.

    Raises:
        UserError: there is a GPU that torch cannot use, or no NCCL for several of them.
    """
    if torch.cuda.is_available():
        if dist.world_size() > 1 and not torch_dist.is_nccl_available():
            raise UserError(
                f"this torch ({torch.__version__}) is built without NCCL, which "
                f"{dist.world_size()} ranks on GPUs need. Install a CUDA build of torch, or hide "
                "the GPUs with CUDA_VISIBLE_DEVICES= to train on the CPU."
            )
        reason = kernels.lacking() if needs_kernels else None
        return [kernels.slow(reason)] if reason else []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible in HIDDEN:
        return []
    found = _nvidia_device()
    built = f"torch {torch.__version__} (CUDA {torch.version.cuda or 'none: a build for the CPU'})"
    if found:
        listed = f", CUDA_VISIBLE_DEVICES is {visible}" if visible else ""
        raise UserError(
            f"{found} is here, but {built} can use no GPU (driver: {driver() or 'unknown'}"
            f"{listed}). Update the driver, or install a torch that this driver can run: pip "
            "install torch --index-url https://download.pytorch.org/whl/cu126 (or another cuXYZ). "
            "To train on the CPU on purpose, say CUDA_VISIBLE_DEVICES=."
        )
    if torch.version.cuda:
        return [
            f"{built} finds no GPU: the run goes on with the CPU (gloo). Say CUDA_VISIBLE_DEVICES= "
            "if that is meant."
        ]
    return []


def _nvidia_device(folder: Path = Path("/dev")) -> str | None:
    """An NVIDIA GPU that this process may open, whether or not torch can use it."""
    for path in sorted(folder.glob("nvidia[0-9]*")):
        try:
            # A batch system that gave this job no GPU leaves the file there, and refuses this.
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except OSError:
            continue
        return str(path)
    # Under WSL the driver has no such files.
    listed = ask(["nvidia-smi", "--list-gpus"]).partition("\n")[0]
    return listed.partition(" (")[0] if listed.startswith("GPU ") else None


def driver() -> str | None:
    """Version of the NVIDIA driver; None if it does not answer."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return ask(query).partition("\n")[0] or None


def be_deterministic() -> None:
    """From now on equal work on this device gives equal bits, or an error. Local; call it before
    anything is on a GPU.

    Flash attention then adds its gradients in one order. torch's other kernels of attention do not
    know how: only the plain one, for precisions that flash does not have, stays beside it.

    Raises:
        UserError: CUBLAS_WORKSPACE_CONFIG is set to something else.
    """
    workspace = os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", WORKSPACES[0])
    if workspace not in WORKSPACES:
        raise UserError(
            f"speed.deterministic=true does not go with CUBLAS_WORKSPACE_CONFIG={workspace}. Unset "
            f"it, or set it to {' or '.join(WORKSPACES)}."
        )
    torch.use_deterministic_algorithms(True)
    # Every torch.empty would be filled: a debugging aid, for nothing is read before it is written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)


def attention_kernel(heads: int, head_width: int, dtype: torch.dtype) -> str:
    """The kernel that torch takes for the attention of a training pass on this rank's device."""
    from torch.nn.attention import SDPBackend

    # Two positions: the choice depends on the device, the types and the width of a head.
    q = torch.zeros(1, heads, 2, head_width, dtype=dtype, device=dist.device(), requires_grad=True)
    choice = torch._fused_sdp_choice(q, q, q, is_causal=True)  # type: ignore[attr-defined]
    return SDPBackend(choice).name.lower()


def ask(command: Sequence[str], cwd: Path | None = None) -> str:
    """What a command prints; "" if it is not there, fails or takes long."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
