"""Every layout trains the same model: against plain PyTorch in one process.

The reference knows nothing of DeepSpeed, tensor parallelism or masked gradients: dense weights
times mask in the forward pass, torch's AdamW, clip_grad_norm_.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparsecl.data.batches import PhaseStream
from sparsecl.data.prepare import prepare
from sparsecl.engine.plan import learning_rate, make_plan
from sparsecl.model.build import build_gpt
from sparsecl.sparse.registry import sparse_parameters
from tests.distributed import cases
from tests.distributed.pool import Pool
from tests.reference import ReferenceGPT

pytestmark = pytest.mark.dist

# Four ranks wait for each other on two cores: one such case in the short half of the suite.
LAYOUTS = [
    cases.slow(stage, tp, dp) if (tp, dp) == (2, 2) and stage != "zero2" else (stage, tp, dp)
    for stage in ("zero0", "zero1", "zero2", "zero3")
    for tp in (1, 2)
    for dp in (1, 2)
]
TOLERANCE = 1e-5
STRENGTH = 1000.0  # of EWC; the penalty's gradient is then of the size of the loss's
TWO_DOMAINS = (
    "data.domains=[{name: a, source: synthetic, synthetic: {train_tokens: 4000, "
    "validation_tokens: 400, num_symbols: 8}}, {name: b, source: synthetic, synthetic: "
    "{train_tokens: 4000, validation_tokens: 400, num_symbols: 8}}]",
    "phases.steps=10",
)
EWC = (*TWO_DOMAINS, f"methods.ewc={{strength: {STRENGTH}, sequences: 5}}")


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
    losses, norms, springs = [], [], []
    for phase in plan.phases:
        domain = data.domains[phase.domain]
        stream = PhaseStream(
            domain.train, context=16, seed=config.seed, phase=phase.index, domain_name=domain.name
        )
        for step in range(phase.num_steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, phase, step)
            loss = reference_loss(reference, stream, np.arange(8) + 8 * step)
            penalty = sum(
                (fisher[name] * (params[name] - anchor[name]) ** 2).sum() / 2
                for fisher, anchor in springs
                for name in params
            )
            optimizer.zero_grad()
            (loss + STRENGTH * penalty).backward()
            norm = torch.nn.utils.clip_grad_norm_(params.values(), config.optimizer.clip)
            optimizer.step()
            losses.append(loss.item())
            norms.append(float(norm))
        if config.methods.ewc is not None:
            springs.append(reference_spring(reference, stream, config.methods.ewc.sequences))
    return losses, norms, {name: p.detach() for name, p in params.items()}


def reference_loss(reference: ReferenceGPT, stream: PhaseStream, index: Any) -> torch.Tensor:
    rows = torch.from_numpy(stream.rows(index))
    return reference.loss(rows[:, :-1], rows[:, 1:])


def reference_spring(reference: ReferenceGPT, stream: PhaseStream, sequences: int) -> Any:
    """The empirical Fisher per sequence, and the weights it was measured at."""
    params = reference.params
    fisher = {name: torch.zeros_like(p) for name, p in params.items()}
    for index in range(sequences):
        loss = reference_loss(reference, stream, np.array([index]))
        for (name, _), g in zip(
            params.items(), torch.autograd.grad(loss, list(params.values())), strict=True
        ):
            fisher[name] += g**2 / sequences
    return fisher, {name: p.detach().clone() for name, p in params.items()}


@pytest.fixture(scope="module")
def reference(shared_cache: Path) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    return train_reference(str(shared_cache), ())


@pytest.mark.parametrize("accumulation", [cases.slow(1), 2])
@pytest.mark.parametrize(("stage", "tp", "dp"), LAYOUTS)
def test_every_layout_equals_plain_pytorch(
    pool: Pool, shared_cache, tmp_path, reference, stage, tp, dp, accumulation
):
    overrides = (f"parallel.tensor={tp}", f"batch.micro={8 // dp // accumulation}")
    results = pool.run(cases.train, tp * dp, str(shared_cache), stage, overrides, str(tmp_path))
    losses, norms, weights = reference
    for result in results:
        assert result["losses"] == pytest.approx(losses, abs=TOLERANCE)
        assert result["norms"] == pytest.approx(norms, abs=1e-4)
        assert result["audit"] == (4, 0)
    found = cases.masters(tmp_path)
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        assert found[name][: len(weight)].sub(weight).abs().max() < TOLERANCE, name


@pytest.fixture(scope="module")
def reference_ewc(shared_cache: Path) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    return train_reference(str(shared_cache), EWC)


def test_ewc_of_the_reference_holds_weights_back(shared_cache, reference_ewc):
    losses, norms, _ = train_reference(str(shared_cache), TWO_DOMAINS)
    assert losses[:11] == reference_ewc[0][:11]  # the spring starts with the second phase
    assert max(abs(a - b) for a, b in zip(losses, reference_ewc[0], strict=True)) > 0.01


@pytest.mark.parametrize(
    ("stage", "tp", "dp"),
    [
        ("zero0", 1, 1),
        ("zero0", 2, 1),
        ("zero1", 1, 2),
        cases.slow("zero2", 2, 2),
        ("zero2_offload", 1, 2),
        ("zero3", 1, 1),
        ("zero3", 1, 2),
    ],
)
def test_ewc_in_every_layout(pool: Pool, shared_cache, tmp_path, reference_ewc, stage, tp, dp):
    overrides = (*EWC, f"parallel.tensor={tp}", "batch.micro=2")
    results = pool.run(cases.train, tp * dp, str(shared_cache), stage, overrides, str(tmp_path))
    losses, norms, weights = reference_ewc
    for result in results:
        assert result["losses"] == pytest.approx(losses, abs=TOLERANCE)
        assert result["norms"] == pytest.approx(norms, abs=1e-4)
        assert result["audit"][1] == 0
    found = cases.masters(tmp_path)
    for name, weight in weights.items():
        assert found[name][: len(weight)].sub(weight).abs().max() < TOLERANCE, name


def test_ewc_of_strength_zero_is_plain_training_bit_for_bit(pool, shared_cache, tmp_path):
    runs = [
        pool.run(
            cases.train, 2, str(shared_cache), "zero2", overrides, str(tmp_path / str(number))
        )[0]["losses"]
        for number, overrides in enumerate(
            (TWO_DOMAINS, (*TWO_DOMAINS, "methods.ewc={strength: 0.0, sequences: 2}"))
        )
    ]
    assert runs[0] == runs[1]
