"""The torch optimizer that DeepSpeed wraps."""

import torch

from sparsecl.optim.config import OptimizerConfig


def build_optimizer(config: OptimizerConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Matrices decay, vectors (norms) do not. The learning rate is set before every step.

    The rate is 0 until then: DeepSpeed's stage 0 wrappers step once while they are built.
    """
    params = [param for param in model.parameters() if param.requires_grad]
    groups = [
        {
            "params": [param for param in params if param.dim() >= 2],
            "weight_decay": config.weight_decay,
        },
        {"params": [param for param in params if param.dim() < 2], "weight_decay": 0.0},
    ]
    if config.kind == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=config.momentum)
    cls = torch.optim.AdamW if config.kind == "adamw" else torch.optim.Adam
    beta1, beta2 = config.betas
    # The fused kernel exists for CPU and CUDA and is one pass over memory per group.
    return cls(groups, lr=0.0, betas=(beta1, beta2), eps=config.eps, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group the learning rate `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr
