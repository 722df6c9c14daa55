"""Twenty steps of a masked model of 8 to 64 weights a layer, wrapped in every way.

What is found is read by the wrapper's own means, not by the guard's audit, which must agree.
"""

import logging
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import sparsecl

NUM_STEPS, WARM = 20, 3
CLIP = 0.5
COPIES = ("weight", "gradient", "exp_avg", "exp_avg_sq")

Found = dict[str, int]
"""copy -> absent entries that were not zero, over all layers and steps."""


class Net(nn.Module):
    """Two masked layers of 6 x 8 and 7 x 6, and an output layer that stays dense."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.lm_head = nn.Linear(8, 6), nn.Linear(6, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.lm_head(torch.tanh(self.down(torch.tanh(self.up(x)))))


def batch(step: int, rank: int = 0) -> Tensor:
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(100 * step + rank))


def adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)


def whole(tensor: Any) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


class Loop:
    """A loop of torch's own; `wrap` makes of a model what is trained."""

    def __init__(self, wrap: Callable[[Any], Any], early: bool) -> None:
        self.net = Net()
        if early:
            self.mask()
        self.model = wrap(self.net)
        self.optimizer = adamw(self.model)

    def mask(self) -> None:
        self.topologies = sparsecl.mask_linears(self.net, density=0.3)

    def guard(self) -> Any:
        return sparsecl.mask_guard(self.model, self.optimizer)

    def backward(self, step: int) -> None:
        rank = torch_dist.get_rank() if torch_dist.is_initialized() else 0
        self.optimizer.zero_grad()
        self.model(batch(step, rank)).square().mean().backward()

    def step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()

    def read(self, name: str, copy: str) -> Tensor:
        weight: Any = self.net.get_submodule(name).weight
        if copy == "weight":
            return whole(weight.detach())
        return whole(weight.grad if copy == "gradient" else self.optimizer.state[weight][copy])


class Engine(Loop):
    """DeepSpeed's own loop, with what it promises to read."""

    def __init__(self, stage: int, bf16: bool, early: bool) -> None:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
        self.net, self.stage, self.bf16 = Net(), stage, bf16
        if early:
            self.mask()
        zero = {"stage": stage, "overlap_comm": False, "reduce_bucket_size": 1000}
        if stage == 3:  # every parameter is cut, however small
            zero |= {"stage3_param_persistence_threshold": 0}
        self.optimizer = adamw(self.net)
        self.model, *_ = deepspeed.initialize(
            model=self.net,
            optimizer=self.optimizer,
            config={
                "train_micro_batch_size_per_gpu": 4,
                "gradient_clipping": CLIP,
                "bf16": {"enabled": bf16},
                "zero_allow_untested_optimizer": True,
                "zero_optimization": zero,
            },
        )

    def guard(self) -> Any:
        return sparsecl.mask_guard(self.model)

    def backward(self, step: int) -> None:
        x = batch(step, torch_dist.get_rank())
        loss = self.model(x.bfloat16() if self.bf16 else x).float().square().mean()
        self.model.backward(loss)

    def step(self) -> None:
        self.model.step()

    def read(self, name: str, copy: str) -> Tensor:
        from deepspeed.utils import (
            safe_get_full_fp32_param,
            safe_get_full_grad,
            safe_get_full_optimizer_state,
        )

        if self.stage == 0:
            return super().read(name, copy)
        weight: Any = self.net.get_submodule(name).weight
        if copy == "weight":
            return safe_get_full_fp32_param(weight)
        if copy == "gradient":
            return safe_get_full_grad(weight)
        return safe_get_full_optimizer_state(weight, copy)


def make(how: str, early: bool) -> Loop:
    if how.startswith("zero"):
        return Engine(int(how[4]), how.endswith("bf16"), early)
    if how != "plain":
        torch_dist.init_process_group("gloo")

    def fsdp2(model: Any) -> Any:
        from torch.distributed.fsdp import fully_shard

        for layer in (model.up, model.down, model):
            fully_shard(layer)
        return model

    wraps = {"plain": lambda model: model, "ddp": DistributedDataParallel, "fsdp2": fsdp2}
    return Loop(wraps[how], early)


def train(how: str, early: bool = False, guarded: bool = True) -> tuple[Found, list[int], int]:
    """Train dense for a while, unless masked `early`; mask; train on.

    Returns:
        What was not zero, what the guard's audits said at each step, and how many absent weights
        there are.
    """
    loop = make(how, early)
    for step in range(0 if early else WARM):
        loop.backward(step)
        loop.step()
    if not early:
        loop.mask()
    guard = loop.guard() if guarded else None
    dead = {name: ~torch.from_numpy(t.mask()) for name, t in loop.topologies.items()}
    found, audits = dict.fromkeys(COPIES, 0), []

    def look(*copies: str) -> None:
        for name, where in dead.items():
            for copy in copies:
                found[copy] += int((loop.read(name, copy)[where] != 0).sum())

    for step in range(WARM, WARM + NUM_STEPS):
        loop.backward(step)
        look("gradient")
        if guard is not None:
            audits.append(guard.audit(strict=True).total)
        loop.step()
        look("weight", "exp_avg", "exp_avg_sq")
    assert all(loop.read(name, "weight")[~where].ne(0).all() for name, where in dead.items())
    return found, audits, sum(int(where.sum()) for where in dead.values())
