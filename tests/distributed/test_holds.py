"""What is held keeps every bit and an audit finds one that does not; what is hidden comes back."""

from typing import Any

import pytest
import torch

from sparsecl import dist
from sparsecl.engine.loop.evaluate import evaluate_domains
from sparsecl.engine.loop.train import Trainer
from sparsecl.errors import InvariantError
from sparsecl.optim.moving import is_gathered
from tests.distributed import cases

pytestmark = pytest.mark.dist

LAYER = "layers.1.mlp.up.weight"
SPLIT = "parallel.tensor=2"
BF16 = "precision=bf16"
_BITS = {2: torch.int16, 4: torch.int32}


def some(trainer: Trainer, name: str) -> torch.Tensor:
    """About a third of a parameter, the same on all dp ranks."""
    whole = trainer.context.whole(name)
    return torch.arange(whole.numel()).view(whole.shape) % 3 == 0


def steps(trainer: Trainer, num: int) -> None:
    for _ in range(num):
        trainer._train_step(1e-2, audited=True, logged=False)
        trainer.position.step += 1


def hold_and_poke(cache: str, stage: str, overrides: tuple[str, ...], copy: str) -> Any:
    """Two steps, a hold, two more and an audit; then one bit on the last rank, and an audit.

    Returns what the second one says, whether the held third of the layer is what it was, whether
    the rest has moved, and how many weights are held.
    """
    trainer, _, built = cases.assemble(cases.load(cache, overrides), stage, "unused")
    steps(trainer, 2)
    where, before = some(trainer, LAYER), trainer.context.whole(LAYER)
    trainer.context.hold(LAYER, where, owner="test")
    steps(trainer, 2)
    built.guard.audit(4)
    after, held = trainer.context.whole(LAYER), built.guard.held
    item = built.slices.find(LAYER)
    if item is not None and dist.rank() == dist.world_size() - 1:
        copies = {"weight": item.weight, "master": item.master, **built.slices.moments(item)}
        element = item.part(where).nonzero()[-1]
        copies[copy].view(_BITS[copies[copy].element_size()])[element] ^= 1
    try:
        built.guard.audit(4)
        said = ""
    except InvariantError as error:
        said = str(error)
    live = ~where & (before != 0)
    return said, torch.equal(before[where], after[where]), bool((after != before)[live].all()), held


@pytest.mark.parametrize(
    ("stage", "overrides", "copy"),
    [
        ("zero0", (), "master"),
        cases.slow("zero0", (BF16, SPLIT), "weight"),
        ("zero1", (BF16,), "weight"),
        cases.slow("zero1", (), "exp_avg"),
        ("zero2", (SPLIT,), "master"),
        cases.slow("zero2", (BF16,), "exp_avg_sq"),
        cases.slow("zero2_offload", (), "master"),
        ("zero3", (BF16,), "weight"),
        cases.slow("zero3", (SPLIT,), "exp_avg"),
    ],
)
def test_an_audit_finds_one_bit_of_what_is_held(pool, shared_cache, stage, overrides, copy):
    overrides = (*overrides, "batch.micro=2", "optimizer.weight_decay=0.5")
    ranks = pool.run(hold_and_poke, 2, str(shared_cache), stage, overrides, copy)
    for said, kept, moved, held in ranks:
        assert kept and moved
        assert held == -(-128 * 32 // 3) or SPLIT in overrides
        assert f"{LAYER} (held {copy}): 1" in said and "rank 1" in said and "rank 0" not in said


def hide(cache: str, stage: str, overrides: tuple[str, ...]) -> list[Any]:
    """Losses as they are, with a third of two parameters hidden, as they are again, and with the
    same third set to zero; and whether every copy had its bits back."""
    trainer, data, built = cases.assemble(cases.load(cache, overrides), stage, "unused")
    names = (LAYER, "layers.0.attention.o.weight")

    def loss() -> float:
        sizes = data.tokenizer.bytes_per_token
        found = evaluate_domains(built.engine, trainer.texts, sizes, ("inside",), batch=2, step=0)
        return found["a"]["inside"].loss_sum

    def copies() -> dict[str, torch.Tensor]:
        params = built.slices.parameters().items()
        found = {f"gathered {name}": p.data.clone() for name, p in params if is_gathered(p)}
        for item in built.slices:
            found |= {f"weight {item.name}": item.weight.clone()}
            found |= {f"master {item.name}": item.master.clone()}
        return found

    steps(trainer, 2)
    where = {name: some(trainer, name) for name in names}
    losses, before = [loss()], copies()
    with trainer.context.hidden(where.items()):
        losses.append(loss())
    after = copies()  # an evaluation may leave more of ZeRO-3's weights gathered, or fewer
    both = before.keys() & after.keys()
    same = [before[key].view(torch.uint8).equal(after[key].view(torch.uint8)) for key in both]
    assert len(both) >= 2 * len(built.slices)
    losses.append(loss())
    for name in names:
        trainer.context.write(name, trainer.context.whole(name).masked_fill(where[name], 0.0))
    return [*losses, loss(), all(same)]


@pytest.mark.parametrize(
    ("stage", "overrides"),
    [
        ("zero0", ()),
        cases.slow("zero0", (BF16, SPLIT)),
        ("zero1", (BF16,)),
        cases.slow("zero2", (SPLIT,)),
        cases.slow("zero2", (BF16, "topology.storage=packed", "topology.keep_expansion=true")),
        ("zero3", (BF16,)),
        cases.slow("zero3", (SPLIT,)),
    ],
)
def test_hidden_weights_are_zero_and_then_back_bit_for_bit(pool, shared_cache, stage, overrides):
    overrides = (*overrides, "batch.micro=2")
    for plain, hidden, again, zero, same in pool.run(hide, 2, str(shared_cache), stage, overrides):
        assert plain == again and same
        assert hidden == zero and hidden != plain
