"""Under transformers' Trainer and under Accelerate; skipped where they are not installed."""

from pathlib import Path
from typing import Any

import pytest
import torch

import sparsecl
from sparsecl.errors import UserError
from tests.distributed.pool import Pool
from tests.library import cases

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="Accelerate is not installed")


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    small = {"n_layer": 1, "n_embd": 8, "n_head": 2, "vocab_size": 16, "n_positions": 8}
    return GPT2LMHeadModel(GPT2Config(**small, bos_token_id=0, eos_token_id=0))


def dataset() -> list[dict[str, torch.Tensor]]:
    rows = torch.randint(16, (48, 8), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": row} for row in rows]


def arguments(folder: Path, **more: Any) -> Any:
    from transformers import TrainingArguments

    settings: dict[str, Any] = {
        "max_steps": cases.NUM_STEPS,
        "per_device_train_batch_size": 2,
        "learning_rate": 0.01,
        "weight_decay": 0.1,
        "max_grad_norm": cases.CLIP,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "logging_strategy": "no",
        "save_strategy": "no",
    }
    return TrainingArguments(str(folder), **{**settings, **more})


def watch(trainer: Any) -> list[int]:
    """Absent gradients that are not zero, at each step before clipping changes anything."""
    from transformers import TrainerCallback

    seen = []

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            seen.append(wrong(trainer.model, "grad"))

    trainer.add_callback(Look())
    return seen


def wrong(model: Any, copy: str, optimizer: Any = None) -> int:
    """Absent entries that are not zero, without the guard."""
    found = 0
    for module in model.modules():
        mask = getattr(module, "sparsecl_mask", None)
        if mask is None:
            continue
        live = torch.from_numpy(mask.topology.mask())
        dead = ~(live.t() if type(module).__name__ == "Conv1D" else live)
        weight = module.weight
        tensors = {"weight": weight.detach(), "grad": weight.grad}
        tensor = tensors[copy] if optimizer is None else optimizer.state[weight][copy]
        found += int((tensor[dead] != 0).sum())
        assert dead.any()
    return found


def test_a_trainer_keeps_zeros_also_where_it_goes_on(tmp_path: Path) -> None:
    from transformers import Trainer

    model = gpt2()
    names = sparsecl.mask_linears(model, "er_fixed", density=0.25)
    assert len(names) == 4 and "lm_head" not in names
    keys = gpt2().state_dict().keys()
    saving = arguments(tmp_path, save_strategy="steps", save_steps=10)
    trainer = Trainer(model, saving, train_dataset=dataset())
    guard = sparsecl.mask_guard(trainer)
    with pytest.raises(UserError, match="not begun to train"):
        guard.audit()
    gradients = watch(trainer)
    trainer.train()
    assert gradients == [0] * cases.NUM_STEPS
    assert guard.audit(strict=True).total == 0 and model.state_dict().keys() == keys
    optimizer: Any = trainer.optimizer
    assert [wrong(model, copy, optimizer.optimizer) for copy in cases.COPIES[2:]] == [0, 0]
    assert wrong(model, "weight") == 0

    again = gpt2()
    sparsecl.mask_linears(again, "er_fixed", density=0.25)
    second = Trainer(again, saving, train_dataset=dataset())
    guard = sparsecl.mask_guard(second)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert guard.audit(strict=True).total == 0
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_trainer_without_the_guard_brings_pruned_weights_back(tmp_path: Path) -> None:
    """It goes on with the moments of a dense run, and does not see the mask."""
    from transformers import Trainer

    for guarded in (False, True):
        folder = tmp_path / str(guarded)
        saving = arguments(folder, save_strategy="steps", save_steps=10, max_steps=10)
        Trainer(gpt2(), saving, train_dataset=dataset()).train()
        model = gpt2()
        sparsecl.mask_linears(model, "er_fixed", density=0.25)
        trainer = Trainer(model, arguments(folder), train_dataset=dataset())
        if guarded:
            sparsecl.mask_guard(trainer)
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-10"))
        assert (wrong(model, "weight") == 0) is guarded


def test_accelerate_keeps_zeros() -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    net = cases.Net()
    sparsecl.mask_linears(net, density=0.3)
    model, optimizer = accelerator.prepare(net, cases.adamw(net))
    guard = sparsecl.mask_guard(model, optimizer)
    for step in range(cases.NUM_STEPS):
        optimizer.zero_grad()
        accelerator.backward(model(cases.batch(step)).square().mean())
        assert wrong(net, "grad") == 0
        accelerator.clip_grad_norm_(model.parameters(), cases.CLIP)
        optimizer.step()
    assert guard.audit(strict=True).total == wrong(net, "weight") == 0
    assert wrong(net, "exp_avg", optimizer.optimizer) == 0


def train_with_zero(stage: int, folder: str) -> tuple[int, set[str]]:
    """A Trainer over DeepSpeed; what the audit says, and which copies it has seen."""
    import logging

    import deepspeed
    from transformers import Trainer

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    model = gpt2()
    sparsecl.mask_linears(model, "er_fixed", density=0.25)
    settings = {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": stage, "overlap_comm": False},
    }
    trainer = Trainer(model, arguments(Path(folder), deepspeed=settings), train_dataset=dataset())
    guard = sparsecl.mask_guard(trainer)
    trainer.train()
    return guard.audit(strict=True).total, {copy for _, copy in guard.counts()}


@pytest.mark.dist
@pytest.mark.parametrize("stage", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_a_trainer_over_deepspeed_keeps_zeros(stage: int, pool: Pool, tmp_path: Path) -> None:
    for found, seen in pool.run(train_with_zero, 2, stage, str(tmp_path)):
        assert found == 0 and seen == {"weight", "master", "exp_avg", "exp_avg_sq"}
