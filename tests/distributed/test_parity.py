"""Every layout trains the same model: against plain PyTorch in one process.

The reference knows nothing of DeepSpeed, tensor parallelism or masked gradients: dense weights
times mask in the forward pass, torch's AdamW, clip_grad_norm_.
"""

from pathlib import Path

import pytest
import torch

from sparsecl.data.batches import PhaseStream, sample_indices
from sparsecl.data.prepare import prepare
from sparsecl.engine.plan import learning_rate, make_plan
from sparsecl.model.build import build_gpt
from sparsecl.sparse.registry import sparse_parameters
from tests.distributed import cases
from tests.distributed.pool import Pool
from tests.reference import ReferenceGPT

pytestmark = pytest.mark.dist

LAYOUTS = [(tp, dp) for tp in (1, 2) for dp in (1, 2)]
TOLERANCE = 1e-5


def train_reference(
    cache: str, overrides: tuple[str, ...]
) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """Losses, gradient norms and final weights of the run, in plain PyTorch."""
    config = cases.load(cache, overrides)
    plan = make_plan(config, world_size=1)
    data = prepare(config.data, config.tokenizer, context=16, seed=0, show_progress=False)
    model = build_gpt(config.model, config.topology, vocab_size=257, seed=config.seed)
    masks = {name: ~found.dead for name, found in sparse_parameters(model).items()}
    reference = ReferenceGPT(dict(model.state_dict()), masks, heads=4, vocab_size=257)
    params = reference.params
    groups = [
        {"params": [p for p in params.values() if p.dim() == 2], "weight_decay": 0.1},
        {"params": [p for p in params.values() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=config.optimizer.eps)
    stream = PhaseStream(
        data.domains[0].train, context=16, seed=config.seed, phase=0, domain_name="a"
    )
    losses, norms = [], []
    for step in range(plan.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, plan.phases[0], step)
        index = sample_indices(
            step, sequences=8, micro=8, dp_rank=0, dp_size=1, micro_step=0
        )
        rows = torch.from_numpy(stream.rows(index))
        loss = reference.loss(rows[:, :-1], rows[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(params.values(), config.optimizer.clip)))
        optimizer.step()
        losses.append(loss.item())
    return losses, norms, {name: p.detach() for name, p in params.items()}


@pytest.fixture(scope="module")
def reference(shared_cache: Path) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    return train_reference(str(shared_cache), ())


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(("tp", "dp"), LAYOUTS)
@pytest.mark.parametrize("stage", ["zero0", "zero1", "zero2", "zero3"])
def test_every_layout_equals_plain_pytorch(
    pool: Pool, shared_cache, tmp_path, reference, stage, tp, dp, accumulation
):
    overrides = (f"parallel.tensor={tp}", f"batch.micro={8 // dp // accumulation}")
    results = pool.run(
        cases.train, tp * dp, str(shared_cache), stage, overrides, str(tmp_path)
    )
    losses, norms, weights = reference
    for result in results:
        assert result["losses"] == pytest.approx(losses, abs=TOLERANCE)
        assert result["norms"] == pytest.approx(norms, abs=1e-4)
        assert result["audit"] == (4, 0)
    found = cases.masters(tmp_path)
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        assert found[name][: len(weight)].sub(weight).abs().max() < TOLERANCE, name
