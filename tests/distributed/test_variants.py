"""Precisions, offload, other optimizers, other layouts of ZeRO's buffers: same laws everywhere.

For each variant: losses agree with ZeRO 0 fp32 (exact arithmetic) or within the stated tolerance
(bf16: 8 significant bits), absent masters and moments are exactly zero, audits find nothing.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from sparsecl.checkpoint.reader import Reader
from sparsecl.model.shapes import layer_shapes
from sparsecl.topology.build import build_topologies
from tests.distributed import cases
from tests.distributed.pool import Pool

pytestmark = pytest.mark.dist

BF16_TOLERANCE = 0.03  # nats, after 20 steps at a high learning rate


def check_zeros(cache: Path, folder: Path, overrides: tuple[str, ...] = ()) -> list[str]:
    """All states of absent weights are zero in the checkpoint; returns the names of the states."""
    config = cases.load(str(cache), overrides)
    topologies = build_topologies(
        config.topology, layer_shapes(config.model.resolved()), seed=config.seed
    )
    reader = Reader(max(folder.glob("step_*")))
    states = reader.states()
    for name, topology in topologies.items():
        live = torch.from_numpy(topology.mask())
        for state in states:
            values = reader.read(state, f"{name}.weight")
            assert (values[~live] == 0).all(), (name, state)
            assert (values[live] != 0).any(), (name, state)
    return states


@pytest.fixture(scope="module")
def exact(pool: Pool, shared_cache, tmp_path_factory) -> dict[str, Any]:
    folder = str(tmp_path_factory.mktemp("exact"))
    return pool.run(cases.train, 1, str(shared_cache), "zero0", (), folder)[0]


@pytest.mark.parametrize(
    ("stage", "wrapper"),
    [
        ("zero0", "FP16_UnfusedOptimizer"),
        ("zero1", "DeepSpeedZeroOptimizer"),
        ("zero2", "DeepSpeedZeroOptimizer"),
        ("zero3", "DeepSpeedZeroOptimizer_Stage3"),
        ("zero2_offload", "DeepSpeedZeroOptimizer"),
    ],
)
def test_bf16_in_every_stage(pool, shared_cache, tmp_path, exact, stage, wrapper):
    tp = 2 if stage == "zero0" else 1
    overrides = ("precision=bf16", f"parallel.tensor={tp}", "batch.micro=2")
    results = pool.run(cases.train, 2, str(shared_cache), stage, overrides, str(tmp_path))
    assert results[0]["wrapper"] == wrapper
    for result in results:
        assert result["losses"] == pytest.approx(exact["losses"], abs=BF16_TOLERANCE)
        assert result["audit"] == (4, 0)
    assert check_zeros(shared_cache, tmp_path) == ["master", "exp_avg", "exp_avg_sq"]


def test_bf16_with_fp32_accumulation_uses_another_wrapper(pool, shared_cache, tmp_path, exact):
    json = {"data_types": {"grad_accum_dtype": "fp32"}}
    overrides = ("precision=bf16", "batch.micro=2")
    results = pool.run(cases.train, 2, str(shared_cache), "zero1", overrides, str(tmp_path), json)
    assert results[0]["wrapper"] == "BF16_Optimizer"
    assert results[0]["losses"] == pytest.approx(exact["losses"], abs=BF16_TOLERANCE)
    assert results[0]["audit"] == (4, 0)
    check_zeros(shared_cache, tmp_path)


@pytest.mark.parametrize(
    ("stage", "json"),
    [
        ("zero2_offload", {}),
        ("zero1", {"zero_optimization": {"stage": 1, "round_robin_gradients": True}}),
        ("zero2", {"zero_optimization": {"stage": 2, "round_robin_gradients": True}}),
        ("zero2", {"zero_optimization": {"stage": 2, "contiguous_gradients": False}}),
        ("zero2", {"zero_optimization": {"stage": 2, "reduce_bucket_size": 500}}),
        cases.slow(
            "zero3", {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}
        ),
        cases.slow("zero3", {"zero_optimization": {"stage": 3, "sub_group_size": 2000}}),
        (
            "zero3",
            {
                "zero_optimization": {
                    "stage": 3,
                    "offload_optimizer": {"device": "cpu", "pin_memory": False},
                },
                "zero_force_ds_cpu_optimizer": False,
            },
        ),
    ],
)
def test_layouts_of_buffers_change_nothing(pool, shared_cache, tmp_path, exact, stage, json):
    overrides = ("batch.micro=2",)
    results = pool.run(cases.train, 2, str(shared_cache), stage, overrides, str(tmp_path), json)
    for result in results:
        assert result["losses"] == pytest.approx(exact["losses"], abs=1e-5)
        assert result["norms"] == pytest.approx(exact["norms"], abs=1e-4)
        assert result["audit"] == (4, 0)
    check_zeros(shared_cache, tmp_path)


@pytest.mark.parametrize(
    ("overrides", "states"),
    [
        (("optimizer.kind=sgd", "optimizer.lr=0.3"), ["master", "momentum_buffer"]),
        (("optimizer.kind=adam",), ["master", "exp_avg", "exp_avg_sq"]),
    ],
)
def test_other_optimizers(pool, shared_cache, tmp_path, overrides, states):
    alone = pool.run(
        cases.train, 1, str(shared_cache), "zero0", overrides, str(tmp_path / "alone")
    )[0]
    for stage in ("zero2", "zero3"):
        folder = tmp_path / stage
        result = pool.run(cases.train, 2, str(shared_cache), stage, overrides, str(folder))[0]
        assert result["losses"] == pytest.approx(alone["losses"], abs=1e-5)
        assert result["audit"] == (4, 0)
        assert check_zeros(shared_cache, folder) == states


@pytest.mark.parametrize("stage", ["zero0", "zero2"])
def test_deepspeeds_own_choice_of_optimizer(pool, shared_cache, tmp_path, exact, stage):
    """An "optimizer" block in the JSON. It decays norms too, so losses differ a little."""
    json = {
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": 0.003, "betas": [0.9, 0.95], "eps": 1e-5, "weight_decay": 0.1,
                       "torch_adam": True},
        }
    }  # fmt: skip
    result = pool.run(cases.train, 2, str(shared_cache), stage, (), str(tmp_path), json)[0]
    assert result["losses"] == pytest.approx(exact["losses"], abs=0.01)
    check_zeros(shared_cache, tmp_path)


def test_activation_checkpointing_changes_nothing(pool, shared_cache, tmp_path, exact):
    overrides = ("model.activation_checkpointing=true", "batch.micro=4")
    for stage in ("zero2", "zero3"):
        results = pool.run(
            cases.train, 2, str(shared_cache), stage, overrides, str(tmp_path / stage)
        )
        assert results[0]["losses"] == pytest.approx(exact["losses"], abs=1e-5)


def test_all_live_equals_dense_bit_for_bit(pool, shared_cache, tmp_path):
    runs = []
    for number, topology in enumerate(("topology.density=1.0", "topology.kind=dense")):
        folder = tmp_path / str(number)
        results = pool.run(cases.train, 2, str(shared_cache), "zero2", (topology,), str(folder))
        runs.append((results[0]["losses"], cases.masters(folder)))
    (losses, weights), (dense_losses, dense_weights) = runs
    assert losses == dense_losses
    assert all(torch.equal(weights[name], dense_weights[name]) for name in dense_weights)
