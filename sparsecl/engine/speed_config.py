"""Options of a run that change how fast it is, never what it computes."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le

from sparsecl.bounds import check_bounds
from sparsecl.config import younger
from sparsecl.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """A trace of some steps by torch's profiler, on rank 0: into the folder `tb` of the run, with
    a table of the most expensive operators in log.txt."""

    first: Annotated[int, Ge(1)] = 10
    """The first step that is traced, counted from 1 over the whole run; the steps before it warm
    up kernels and allocators."""

    steps: Annotated[int, Ge(1), Le(50)] = 3
    """How many steps; a trace takes some 10 MB for each. The other ranks wait while it is written,
    and lose patience with a long one."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """How fast a run is. Nothing here changes what is computed, but for rounding (compile,
    deterministic, loss_chunk)."""

    prefetch: Annotated[int, Ge(0), Le(1024)] = 2
    """Micro-batches read ahead by a thread, and on a GPU copied there beside the computation;
    0 = every micro-batch is read when it is due."""

    compile: bool = False
    """torch.compile the blocks of the model: fewer and larger kernels, after a minute or more of
    compiling at every start. Needs a C++ compiler on a CPU, and ZeRO stage 0, 1 or 2."""

    deterministic: bool = False
    """Equal runs give equal bits on a GPU too, as they always do on a CPU: of attention only the
    flash kernel (and the plain one) is used, and operations that add in any order are replaced or
    refused. Slower."""

    loss_chunk: Annotated[int | None, Ge(0)] = younger(None)
    """Tokens of a micro-batch whose logits exist at once, 8 to 10 bytes for each token id while
    they do; 0 = those of all tokens, kept until the backward pass; null = 1024 on a CPU, on a GPU
    at least 4096, and as many as have 1 GiB of fp32 logits. The header says how many were taken. A
    method that asks for logits (derpp, lwf) keeps them all in any case."""

    peak_tflops: Annotated[float | None, Gt(0)] = None
    """Dense matrix TFLOP/s of one device, of which model FLOPs utilisation is a share; null = the
    data sheet of the GPU at hand, where it is known."""

    profile: ProfileConfig | None = None
    """Steps to trace; null = none."""

    sample_every: Annotated[int, Ge(0)] = 1000
    """Steps from one short trace to the next, which tells the share of communication: of the third
    step of each phase and then of every such one, with two processes or more. One costs 50 ms, so
    1000 costs less than 0.5 % where steps take 10 ms or longer; 0 = none."""

    def __post_init__(self) -> None:
        check_bounds(self)


def check_speed(config: SpeedConfig, *, stage: int) -> None:
    """Raise UserError for what does not go with ZeRO's `stage`."""
    if config.compile and stage == 3:
        raise UserError(
            "speed.compile=true does not go with ZeRO stage 3, which gathers parameters between "
            "the operations of a block. Use stage 0, 1 or 2, or leave it out."
        )
