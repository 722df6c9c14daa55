"""Model, optimizer and DeepSpeed engine, put together; their masks guarded from the start."""

import contextlib
import functools
import importlib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sparsecl import dist
from sparsecl.engine.run_config import RunConfig
from sparsecl.errors import UserError
from sparsecl.methods.several import NO_METHODS, Methods
from sparsecl.model.build import build_gpt
from sparsecl.model.compiled import compile_blocks
from sparsecl.model.gpt import GPT
from sparsecl.model.surgery import GptSide
from sparsecl.optim.build import build_optimizer
from sparsecl.optim.holding import TOPOLOGY
from sparsecl.optim.masking import MaskGuard
from sparsecl.optim.slices import Slices
from sparsecl.sparse.backends import BackendName
from sparsecl.sparse.registry import (
    absent_in_expansions,
    forget_expansions,
    masks,
    sparse_parameters,
)
from sparsecl.topology.layer import LayerTopology


@dataclass
class Built:
    """Everything that holds state and takes steps."""

    engine: Any
    """The DeepSpeed engine."""

    model: GPT
    slices: Slices
    guard: MaskGuard
    topologies: dict[str, LayerTopology]
    """Global topology by layer name as the run began or went on; empty for a dense model."""


def build(
    config: RunConfig,
    ds_config: Mapping[str, Any],
    *,
    vocab_size: int,
    topologies: Mapping[str, LayerTopology] | None = None,
    backends: Mapping[str, BackendName] | None = None,
    methods: Methods = NO_METHODS,
    num_phases: int = 1,
) -> Built:
    """Build this rank's share of the run. Collective over the world; `dist.init` has run.

    Args:
        ds_config: resolved (engine/deepspeed/ds_config.py): no "auto" is left in it.
        topologies: drawn before; None = draw them here.
        backends: by layer name, for topology.backend auto.
        methods: may add parts to the model, for `num_phases` phases.

    Raises:
        UserError: if the model or the precision does not fit the machine.
    """
    check_precision(config)
    model = build_gpt(
        config.model,
        config.topology,
        vocab_size=vocab_size,
        seed=config.seed,
        topologies=topologies,
        backends=backends,
        sequence=config.parallel.sequence,
        loss_chunk=config.speed.loss_chunk,
        shape=config.shape,
    )
    methods.attach(GptSide(model, config.seed), num_phases)
    if config.speed.compile:
        compile_blocks(model)
    return attach(model, config, ds_config)


def attach(model: GPT, config: RunConfig, ds_config: Mapping[str, Any]) -> Built:
    """Give an initialised model to DeepSpeed and guard its masks. Collective over the world."""
    sparse = sparse_parameters(model)
    topologies = {
        name.removesuffix(".weight"): parameter.topology for name, parameter in sparse.items()
    }
    engine = _initialize(model, config, ds_config)
    slices = Slices(engine)
    if slices.stage == 0 and config.precision != "fp32":
        slices.sync_masters()
    absent = masks(engine.module)
    guard = MaskGuard(
        slices,
        absent if config.topology.role == "topology" else {},
        count_expansions=lambda: absent_in_expansions(engine.module),
    )
    if config.topology.role == "update":  # absent weights take part, and do not learn
        for name, dead in absent.items():
            guard.hold(name, dead, TOPOLOGY)
    slices.optimizer.register_step_post_hook(lambda *_: forget_expansions(engine.module))
    return Built(engine, model, slices, guard, topologies)


def check_precision(config: RunConfig) -> None:
    """Raise UserError if this machine cannot run the config's precision."""
    if config.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("precision=fp16 needs a GPU. Use fp32 or bf16 on the CPU.")


def _load_kernel(ds_config: Mapping[str, Any]) -> None:
    """Load, and if need be compile, the kernel of an optimizer of the DeepSpeed JSON. Local.

    Raises:
        UserError: it cannot be had on this machine.
    """
    from deepspeed.ops import op_builder

    block = ds_config["optimizer"]
    offload = ds_config["zero_optimization"].get("offload_optimizer") or {}
    kind, on_cpu = block["type"].lower(), offload.get("device") == "cpu"
    if block["params"].get("torch_adam") or (kind == "adagrad" and not on_cpu):
        return  # torch's own
    names = {"adam": "Adam", "adamw": "Adam", "adagrad": "Adagrad", "lion": "Lion", "lamb": "Lamb"}
    prefix = "CPU" if on_cpu and kind != "lamb" else "Fused"
    try:
        getattr(op_builder, f"{prefix}{names[kind]}Builder")().load()
    except Exception as error:  # of DeepSpeed, torch, ninja or the compiler: no kind in common
        way_out = ', write "torch_adam": true in optimizer.params' if "adam" in kind else ""
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"optimizer.type={block['type']} of the DeepSpeed JSON: DeepSpeed cannot make its "
            f"kernel on this machine ({reason}). Install a compiler, with the CUDA toolkit for a "
            f"GPU{way_out}, or leave the block out: optimizer.kind of the run config needs none."
        ) from error


def import_deepspeed() -> Any:
    """The module deepspeed, with what its engine imports later on. Local.

    Every ZeRO wrapper imports DeepSpeed's Muon, which asks for compiled functions as it is
    imported: that brings in all of torch's inductor, a fifth of the CPU time up to the first step.
    They are compiled here when they are first called, which they are in a run with that Muon only.
    """
    # Else it prints how it has found out.
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    import deepspeed

    compiler, torch.compile = torch.compile, _compiled_at_first_call
    try:
        with contextlib.suppress(ImportError):  # another release has it elsewhere
            importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        torch.compile = compiler
    return deepspeed


def _compiled_at_first_call(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled = functools.cache(lambda: torch.compile(function))
    return functools.wraps(function)(lambda *args, **kwargs: compiled()(*args, **kwargs))


def _initialize(model: GPT, config: RunConfig, ds_config: Mapping[str, Any]) -> Any:
    deepspeed = import_deepspeed()
    # Else DeepSpeed compiles a shared-memory all-reduce at the first run on a CPU: a minute, and
    # a rank that dies meanwhile leaves a lock behind. gloo needs no compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # It logs a page per rank; what matters to a user is in the run's own header.
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    deepspeed.init_distributed(
        dist_backend="nccl" if torch.cuda.is_available() else "gloo",
        auto_mpi_discovery=False,
        verbose=False,
    )
    given = "optimizer" in ds_config
    optimizer = None if given else build_optimizer(config.optimizer, model)
    params: Any = [p for p in model.parameters() if p.requires_grad] if given else None
    mpu: Any = dist.DeepSpeedMpu()
    if given:
        dist.agree(lambda: _load_kernel(ds_config))
    with contextlib.redirect_stdout(None):  # its wrapper of bf16 in stage 1 prints past the log
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            model_parameters=params,
            mpu=mpu,
            config=dict(ds_config),
        )
    return engine
