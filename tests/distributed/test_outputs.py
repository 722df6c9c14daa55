"""What methods see of a forward pass, and how gradients go back through it, in every layout."""

from typing import Any

import numpy as np
import pytest
import torch

from sparsecl import dist
from sparsecl.engine.loop.outputs import ForwardOutputs, forward
from tests.distributed import cases
from tests.distributed.pool import Pool

pytestmark = pytest.mark.dist

ROWS = np.random.default_rng(0).integers(0, 257, (8, 17))
UNIFORM = torch.from_numpy(np.random.default_rng(2).random((8, 16)))
IDS = np.random.default_rng(1).integers(0, 257, (8, 16, 5))


def term(outputs: ForwardOutputs, teacher: ForwardOutputs, ids: torch.Tensor) -> torch.Tensor:
    """[B, T]: everything that an output can give, each in a part of its own."""
    _, best = outputs.top(3)
    return (
        outputs.losses
        + 0.3 * outputs.log_probs(ids).sum(-1)
        + 0.1 * outputs.logits(ids).square().sum(-1)
        + 0.2 * outputs.logsumexp
        + 0.01 * outputs.squared_norm
        + best.square().sum(-1)
        + 2.0 * outputs.kl(teacher, 2.0)
    )


def look(cache: str, stage: str, overrides: tuple[str, ...], out: str) -> dict[str, Any]:
    """Values on all rows, and the reduced gradient of their mean, whole over dp."""
    config = cases.load(cache, overrides)
    trainer, _, built = cases.assemble(config, stage, out)
    mine = slice(dist.dp_rank() * 8 // dist.dp_size(), (dist.dp_rank() + 1) * 8 // dist.dp_size())
    tokens, ids = torch.from_numpy(ROWS[mine]), torch.from_numpy(IDS[mine])
    with torch.no_grad():
        teacher = forward(built.engine, tokens.flip(1), with_logits=True)
    outputs = forward(built.engine, tokens, with_logits=True)
    loss = term(outputs, teacher, ids).mean()
    best, _ = outputs.top(300)
    values = {
        "top": outputs.top(4)[0],
        "all": best.sort(-1).values,
        "log_probs": outputs.log_probs(ids),
        "kl": outputs.kl(teacher, 2.0),
        "losses": outputs.losses,
        "drawn": outputs.draw(UNIFORM[mine]),
        "selected": outputs.select(np.array([1, 1])).logits(ids[[1, 1]]),
    }
    values = {key: value.detach().clone() for key, value in values.items()}
    built.engine.backward(loss)
    slices = built.slices
    gradients = {item.name: slices.grad(item) for item in slices}
    found = {name: value.float() for name, value in gradients.items() if value is not None}
    whole = {name: trainer.context.whole(name, found) for name in slices.parameters()}
    dims = {name: p.partition_dim for name, p in slices.parameters().items()}  # pyright: ignore
    return {"values": values, "gradients": whole, "dims": dims}


@pytest.fixture(scope="module")
def one_process(pool: Pool, shared_cache, tmp_path_factory) -> dict[str, Any]:
    overrides = ("batch.micro=8",)
    folder = str(tmp_path_factory.mktemp("one"))
    return pool.run(look, 1, str(shared_cache), "zero0", overrides, folder)[0]


@pytest.mark.parametrize(
    ("stage", "tp", "dp", "more"),
    [
        ("zero0", 2, 1, ()),
        ("zero2", 2, 2, ()),
        ("zero3", 2, 1, ()),
        cases.slow("zero1", 1, 2, ()),
        cases.slow("zero3", 2, 2, ()),
        cases.slow("zero3", 1, 2, ()),
        ("zero0", 2, 1, ("parallel.sequence=true",)),
        cases.slow("zero3", 2, 1, ("parallel.sequence=true",)),
    ],
)
def test_values_and_gradients_are_those_of_one_process(
    pool: Pool, shared_cache, tmp_path, one_process, stage, tp, dp, more
):
    overrides = (f"parallel.tensor={tp}", f"batch.micro={8 // dp}", *more)
    ranks = pool.run(look, tp * dp, str(shared_cache), stage, overrides, str(tmp_path))
    for rank, found in enumerate(ranks):
        mine = slice(rank // tp * 8 // dp, (rank // tp + 1) * 8 // dp)
        for key, value in found["values"].items():
            wanted = one_process["values"][key]
            if key != "selected":
                wanted = wanted[mine]
            elif rank >= tp:
                continue
            torch.testing.assert_close(value, wanted, atol=1e-5, rtol=1e-5, msg=key)
    for name, wanted in one_process["gradients"].items():
        dim = ranks[0]["dims"][name]
        parts = [rank["gradients"][name] for rank in ranks[:tp]]
        for part in parts[1:] if dim < 0 else ():
            assert part.equal(parts[0]), name
        joined = parts[0] if dim < 0 else torch.cat(parts, dim)
        real = min(len(joined), len(wanted))  # the vocabulary is padded to other lengths
        torch.testing.assert_close(joined[:real], wanted[:real], atol=1e-5, rtol=1e-4, msg=name)
        assert (joined[real:] == 0).all()
