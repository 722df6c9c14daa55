"""The torch optimizer that DeepSpeed wraps."""

from collections.abc import Sequence
from typing import Any

import torch

from sparsecl.optim.config import OptimizerConfig
from sparsecl.optim.muon import SPLIT, Muon


def build_optimizer(config: OptimizerConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Matrices decay, vectors (norms) do not. The learning rate is set before every step.

    The rate is 0 until then: DeepSpeed's stage 0 wrappers step once while they are built.
    """
    params = [param for param in model.parameters() if param.requires_grad]
    groups = [
        {"params": [p for p in params if is_matrix(p)], "weight_decay": config.weight_decay},
        {"params": [p for p in params if not is_matrix(p)], "weight_decay": 0.0},
    ]
    if config.kind == "muon":
        return _muon(config, params)
    if config.kind == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=config.momentum)
    cls = torch.optim.AdamW if config.kind == "adamw" else torch.optim.Adam
    beta1, beta2 = config.betas
    # The fused kernel exists for CPU and CUDA and is one pass over memory per group.
    return cls(groups, lr=0.0, betas=(beta1, beta2), eps=config.eps, fused=True)


def _muon(config: OptimizerConfig, params: Sequence[Any]) -> Muon:
    """Matrices of linears by the dim that tp splits; then all other matrices, and vectors."""
    places: dict[int, list[Any]] = {0: [], 1: []}
    for param in params:
        if getattr(param, "of_linear", False):
            places[param.partition_dim].append(param)
    others = [param for param in params if not getattr(param, "of_linear", False)]
    decay = config.weight_decay
    groups = [
        *({"params": found, "weight_decay": decay, SPLIT: dim} for dim, found in places.items()),
        {"params": [p for p in others if is_matrix(p)], "weight_decay": decay},
        {"params": [p for p in others if not is_matrix(p)], "weight_decay": 0.0},
    ]
    beta1, beta2 = config.betas
    return Muon(
        [group for group in groups if group["params"]],
        lr=0.0,
        momentum=config.momentum,
        betas=(beta1, beta2),
        eps=config.eps,
    )


def is_matrix(param: torch.Tensor) -> bool:
    """True for a matrix, also one that is kept as the vector of its live values."""
    return len(getattr(param, "dense_shape", param.shape)) >= 2


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group the learning rate `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr
