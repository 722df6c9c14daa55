"""Precisions, offload, other optimizers, other layouts of ZeRO's buffers: same laws everywhere.

For each variant: losses agree with ZeRO 0 fp32 (exact arithmetic) or within the stated tolerance
(bf16: 8 significant bits), absent masters and moments are exactly zero, audits find nothing.
"""

import contextlib
import io
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from sparsecl.checkpoint.reader import Reader
from sparsecl.engine import build
from sparsecl.errors import UserError
from sparsecl.model.shapes import layer_shapes
from sparsecl.topology.build import build_topologies
from tests.distributed import cases
from tests.distributed.pool import Pool
from tests.faults import fp16

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
        ("zero1", "BF16_Optimizer"),
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


def sum_of_micro_batches(
    cache: str, stage: str, precision: str, folder: str, json: dict[str, Any]
) -> tuple[float, bool]:
    """The gradient of 16 micro-batches against the fp32 sum of theirs: its relative error, whether
    it is fp32."""
    with fp16.allowed():
        overrides = (f"precision={precision}", "batch.sequences=16", "batch.micro=1")
        config = cases.load(cache, overrides)
        blocks = json | (fp16.scaling(8) if precision == "fp16" else {})
        trainer, _, built = cases.assemble(config, stage, folder, blocks)
        engine, slices = built.engine, built.slices
        params = dict(engine.module.named_parameters())
        scale = slices.loss_scale / 16
        expected = {name: 0.0 for name in params}
        rows = torch.from_numpy(trainer._phase_stream(0).rows(np.arange(16)))
        for row in rows[:, None]:
            losses, _ = engine.module(row[:, :-1], row[:, 1:])
            gradients = torch.autograd.grad(losses.mean() * scale, list(params.values()))
            for name, gradient in zip(params, gradients, strict=True):
                expected[name] = expected[name] + gradient.float()
        for number, row in enumerate(rows[:, None]):
            losses, _ = engine(row[:, :-1], row[:, 1:])
            engine.backward(losses.mean() * slices.wrapper.missing_scale)
            if number < 15:
                engine.step()
        pairs = [(slices.grad(item), item.part(expected[item.name])) for item in slices]
        off = sum(float((found.float() - sums).square().sum()) for found, sums in pairs)
        whole = sum(float(sums.square().sum()) for _, sums in pairs)
        return (off / whole) ** 0.5, all(found.dtype == torch.float32 for found, _ in pairs)


def said_while_built(cache: str, stage: str, folder: str) -> str:
    """What the parts of a run print."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        cases.assemble(cases.load(cache, ("precision=bf16", "batch.micro=1")), stage, folder)
    return said.getvalue()


def test_deepspeed_prints_nothing_beside_the_runs_own_header(pool, shared_cache, tmp_path):
    arguments = (str(shared_cache), "zero1", str(tmp_path))
    assert pool.run(said_while_built, 1, *arguments) == [""]


@pytest.mark.fault("G10")
@pytest.mark.parametrize("precision", ["bf16", cases.slow("fp16")])
@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3", "zero2_offload"])
def test_gradients_of_many_micro_batches_are_summed_in_fp32(
    pool, shared_cache, tmp_path, stage, precision
):
    arguments = (str(shared_cache), stage, precision, str(tmp_path))
    found = pool.run(sum_of_micro_batches, 1, *arguments, {})[0]
    lower = {"data_types": {"grad_accum_dtype": precision}}
    low = pool.run(sum_of_micro_batches, 1, *arguments, lower)[0]
    # Stage 1 sends the sum in lower precision: it is rounded once.
    assert found[1] and found[0] < 0.6 * low[0]


@pytest.mark.fault("G9")
@pytest.mark.parametrize(
    ("stage", "json"),
    [
        ("zero2_offload", {}),
        ("zero1", {"zero_optimization": {"stage": 1, "round_robin_gradients": True}}),
        ("zero2", {"zero_optimization": {"stage": 2, "round_robin_gradients": True}}),
        cases.slow("zero2", {"zero_optimization": {"stage": 2, "contiguous_gradients": False}}),
        cases.slow("zero2", {"zero_optimization": {"stage": 2, "reduce_bucket_size": 500}}),
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
        cases.slow(("optimizer.kind=adam",), ["master", "exp_avg", "exp_avg_sq"]),
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


def built_without_a_kernel(cache: str, folder: str) -> str:
    """The error that ends a run whose optimizer cannot be compiled."""
    json = {"optimizer": {"type": "AdamW", "params": {"torch_adam": True}}}
    lacking = mock.patch.object(build, "_load_kernel", side_effect=UserError("no compiler"))
    with lacking, pytest.raises(UserError) as caught:
        cases.assemble(cases.load(cache, ()), "zero1", folder, json)
    return str(caught.value)


@pytest.mark.fault("G8")
def test_the_kernel_of_an_optimizer_is_asked_for_before_deepspeed(pool, shared_cache, tmp_path):
    found = pool.run(built_without_a_kernel, 1, str(shared_cache), str(tmp_path))
    assert found == ["no compiler"]


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
