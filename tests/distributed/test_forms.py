"""Every form of the model trains the same in every layout: against plain PyTorch in one process."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sparsecl import dist
from tests.distributed import cases
from tests.distributed.pool import Pool
from tests.distributed.references.cbp import CbpReference
from tests.distributed.references.run import ReferenceRun
from tests.model.test_forms import FORMS, build, real_text

pytestmark = pytest.mark.dist

TOLERANCE = 1e-5
DENSITY = "topology.density=0.1"
SETTINGS = {
    "gpt2": ("model.form=gpt2",),
    "llama": ("model.form=llama", "model.kv_heads=2", "model.rope_theta=5.0e5"),
    "qwen2": ("model.form=llama", "model.kv_heads=2", "model.qkv_bias=true", "model.tied=true"),
}
SPREAD = ("parallel.sequence=true",)
PACKED = ("topology.storage=packed",)
RECOMPUTED = ("model.activation_checkpointing=true",)


# ---- one pass ----------------------------------------------------------------------------------


def one_pass(form: str, tp_size: int) -> dict[str, Any]:
    """Logits, losses and gradients of this rank, on whole and on spread positions."""
    dist.init(tp_size)
    text, found = real_text(), {}
    for name, fields in {
        "whole": {},
        "recomputed": {"activation_checkpointing": True},
        "packed": {"storage": "packed"},
    }.items():
        for sequence in (False, True):
            model = build(form, sequence=sequence, **fields)
            loss, _ = model(text[:, :-1], text[:, 1:])
            loss.mean().backward()
            with torch.no_grad():
                logits = model.eval().logits(text[:, :-1])
            found[name, sequence] = {
                "logits": logits,
                "loss": loss.detach(),
                "gradients": {n: (p.grad, p.partition_dim) for n, p in model.named_parameters()},
            }
    return found


@pytest.mark.parametrize("form", FORMS)
def test_two_ranks_have_the_logits_and_gradients_of_one(pool: Pool, form):
    (alone,) = pool.run(one_pass, 1, form, 1)
    parts = pool.run(one_pass, 2, form, 2)
    largest = 0.0
    for key, one in alone.items():
        logits = torch.cat([part[key]["logits"] for part in parts], -1)
        real = torch.isfinite(one["logits"])
        width = one["logits"].shape[-1]
        apart = (logits[..., :width][real] - one["logits"][real]).abs().max()
        largest = max(largest, float(apart))
        for part in parts:
            torch.testing.assert_close(part[key]["loss"], one["loss"], rtol=0, atol=TOLERANCE)
        for name, (gradient, dim) in one["gradients"].items():
            local = [part[key]["gradients"][name][0] for part in parts]
            if dim < 0:
                assert torch.equal(local[0], local[1]), name
            if key[0] != "packed":  # whose live values lie in another order in each slice
                joined = torch.cat(local, dim) if dim >= 0 else local[0]
                torch.testing.assert_close(joined, gradient, rtol=1e-4, atol=1e-7)
    print(f"{form}: tp 2 against 1: {largest:.2e}")
    assert largest < TOLERANCE


# ---- training ----------------------------------------------------------------------------------

LAYOUTS = [
    ("gpt2", "zero0", 1, 1, ()),
    ("llama", "zero0", 1, 1, PACKED),
    ("qwen2", "zero0", 1, 1, RECOMPUTED),
    ("gpt2", "zero2", 2, 1, SPREAD),
    ("llama", "zero2", 2, 1, (*SPREAD, *RECOMPUTED)),
    ("qwen2", "zero1", 2, 1, PACKED),
    ("gpt2", "zero3", 1, 2, PACKED),
    ("llama", "zero3", 1, 2, ()),
    ("qwen2", "zero3", 2, 1, ()),
    cases.slow("gpt2", "zero3", 2, 2, ()),
    cases.slow("llama", "zero3", 2, 2, (*PACKED, *SPREAD)),
    cases.slow("qwen2", "zero3", 2, 2, SPREAD),
    cases.slow("gpt2", "zero1", 1, 2, ()),
    cases.slow("llama", "zero1", 2, 2, ()),
    cases.slow("llama", "zero3", 1, 1, RECOMPUTED),
]


@pytest.fixture(scope="module")
def references(shared_cache: Path) -> dict[str, Any]:
    """Made as they are asked for."""
    return {}


@pytest.mark.parametrize(("form", "stage", "tp", "dp", "more"), LAYOUTS)
def test_every_layout_equals_plain_pytorch(
    pool: Pool, shared_cache, tmp_path, references, form, stage, tp, dp, more
):
    settings = (*SETTINGS[form], DENSITY)
    if form not in references:
        references[form] = ReferenceRun(str(shared_cache), settings).train()
    reference = references[form]
    overrides = (*settings, *more, f"parallel.tensor={tp}", f"batch.micro={8 // dp // 2}")
    results = pool.run(cases.train, tp * dp, str(shared_cache), stage, overrides, str(tmp_path))
    for result in results:
        assert result["losses"] == pytest.approx(reference.losses, abs=TOLERANCE)
        assert result["norms"] == pytest.approx(reference.norms, abs=1e-4)
        assert result["audit"] == (4, 0)
    found = cases.masters(tmp_path)
    assert found.keys() == reference.weights.keys()
    for name, weight in reference.weights.items():
        assert found[name][: len(weight)].sub(weight).abs().max() < TOLERANCE, name
    apart = [abs(a - b) for a, b in zip(result["losses"], reference.losses, strict=True)]
    print(f"{form} {stage} tp {tp} dp {dp} {more}: losses of 20 steps within {max(apart):.2e}")
    moved = [name for name in found if name.endswith(".bias") and found[name].any()]
    assert bool(moved) is (form != "llama")


@pytest.mark.parametrize("form", ["gpt2", cases.slow("llama"), "qwen2"])
def test_bf16_learns_and_absent_weights_stay_zero(pool: Pool, shared_cache, tmp_path, form):
    overrides = (*SETTINGS[form], DENSITY, *SPREAD, "parallel.tensor=2", "precision=bf16")
    overrides += (*PACKED,) if form == "qwen2" else ()
    results = pool.run(cases.train, 2, str(shared_cache), "zero2", overrides, str(tmp_path))
    for result in results:
        assert result["losses"][-1] < result["losses"][0] - 0.3
        assert result["audit"] == (4, 0)


CBP = "methods.cbp={rate: 0.1, maturity: 3, decay: 0.9}"


@pytest.mark.parametrize(("form", "more"), [("gpt2", ()), ("llama", PACKED)])
def test_units_begin_anew_with_their_gates_and_biases(
    pool: Pool, shared_cache, tmp_path, form, more
):
    settings = (*SETTINGS[form], CBP)
    reference = CbpReference(str(shared_cache), settings).train()
    overrides = (*settings, *more, "parallel.tensor=2", "batch.micro=8")
    results = pool.run(cases.train, 2, str(shared_cache), "zero2", overrides, str(tmp_path))
    for result in results:
        assert result["losses"] == pytest.approx(reference.losses, abs=TOLERANCE)
        assert result["audit"] == (4, 0)
    found = cases.masters(tmp_path)
    for name, weight in reference.weights.items():
        assert found[name][: len(weight)].sub(weight).abs().max() < TOLERANCE, name
