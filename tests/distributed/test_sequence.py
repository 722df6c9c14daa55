"""Positions spread over tensor-parallel ranks train the same model, and spare activations."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sparsecl import dist
from sparsecl.benchmarks import wire
from sparsecl.engine.resume.changes import changes
from sparsecl.model.build import build_gpt
from sparsecl.model.config import ModelConfig
from sparsecl.model.memory import Layout, memory_per_rank
from sparsecl.model.shapes import layer_shapes
from sparsecl.planning.traffic import Exchange, Flow, flows
from sparsecl.topology.build import build_topologies
from sparsecl.topology.config import TopologyConfig
from tests.distributed import cases
from tests.distributed.pool import Pool
from tests.distributed.references.run import ReferenceRun, Trace
from tests.distributed.references.springs import SpringReference
from tests.distributed.test_parity import TOLERANCE
from tests.distributed.test_restore import assert_equal_states, go_on, train_part

pytestmark = pytest.mark.dist

SHORT = "phases.steps=10"
SPREAD = ("parallel.tensor=2", "parallel.sequence=true")
RECOMPUTED = "model.activation_checkpointing=true"
NAMES = {
    "all_reduce": "allreduce",
    "all_gather": "allgather_base",
    "reduce_scatter": "reduce_scatter_base",
}
# Nothing is kept whole between its uses, norms and positions included.
ALL_SHARDED = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}


@pytest.fixture(scope="module")
def reference(shared_cache: Path) -> Trace:
    return ReferenceRun(str(shared_cache), (SHORT,)).train()


def train(
    cache: str, stage: str, overrides: tuple[str, ...], folder: str, json: dict[str, Any]
) -> dict[str, Any]:
    """A whole run on this rank, and what it keeps of replicated parameters at the end."""
    config = cases.load(cache, overrides)
    trainer, _, built = cases.assemble(config, stage, folder, json)
    trainer.run()
    replicated = {
        item.name: item.master.clone()
        for item in built.slices
        if not getattr(built.slices.parameters()[item.name], "tensor_model_parallel", False)
    }
    return {
        "losses": trainer.losses(),
        "norms": [r["grad_norm"] for r in trainer.records if r["kind"] == "train"],
        "evals": [r["loss_sum"] for r in trainer.records if r["kind"] == "eval"],
        "replicated": replicated,
    }


def check_run(results: list[dict[str, Any]], reference: Trace, folder: Path) -> None:
    for result in results:
        assert result["losses"] == pytest.approx(reference.losses, abs=TOLERANCE)
        assert result["norms"] == pytest.approx(reference.norms, abs=1e-4)
    found = cases.masters(folder)
    for name, weight in reference.weights.items():
        assert found[name][: len(weight)].sub(weight).abs().max() < TOLERANCE, name


@pytest.mark.parametrize(
    ("stage", "dp", "json", "overrides"),
    [
        ("zero0", 1, {}, ("topology.storage=masked", RECOMPUTED)),
        cases.slow("zero0", 1, {}, ("topology.storage=packed",)),
        cases.slow("zero2", 1, {}, ("topology.storage=packed", RECOMPUTED)),
        cases.slow("zero3", 1, {}, ("topology.storage=masked",)),
        ("zero2", 2, {}, ("topology.storage=masked",)),
        cases.slow("zero3", 2, ALL_SHARDED, ("topology.storage=packed", RECOMPUTED)),
    ],
)
def test_spread_positions_equal_plain_pytorch(
    pool: Pool, shared_cache, tmp_path, reference, stage, dp, json, overrides
):
    overrides = (*SPREAD, SHORT, f"batch.micro={4 // dp}", *overrides)
    words = (str(shared_cache), stage, overrides, str(tmp_path), json)
    results = pool.run(train, 2 * dp, *words)
    check_run(results, reference, tmp_path)
    # Ranks of a tp group come one after the other. What they replicate is equal in every bit.
    for mine, other in zip(results[::2], results[1::2], strict=True):
        assert len(mine["replicated"]) > 0
        for name, values in mine["replicated"].items():
            assert torch.equal(values, other["replicated"][name]), name


def test_evaluations_are_those_of_whole_positions(pool, shared_cache, tmp_path):
    """100 predicted tokens: the last window of 16 is not full."""
    common = (SHORT, "parallel.tensor=2", "batch.micro=4", "eval.tokens=100", "eval.every=5")
    whole, spread = (
        pool.run(train, 2, str(shared_cache), "zero1", (*common, more), str(tmp_path / more), {})[0]
        for more in ("parallel.sequence=false", "parallel.sequence=true")
    )
    assert spread["losses"] != whole["losses"]  # other sums, so other roundings
    assert spread["losses"] == pytest.approx(whole["losses"], abs=TOLERANCE)
    assert spread["evals"] == pytest.approx(whole["evals"], rel=TOLERANCE)
    assert spread["evals"][0] == whole["evals"][0]  # before training: the same weights and path


def test_ewc_measures_whole_gradients(pool, shared_cache, tmp_path):
    overrides = (*cases.EWC, *SPREAD, "batch.micro=2")
    results = pool.run(train, 2, str(shared_cache), "zero2", overrides, str(tmp_path), {})
    check_run(results, SpringReference(str(shared_cache), cases.EWC).train(), tmp_path)


def test_a_run_goes_on_with_and_without(pool, shared_cache, tmp_path, reference):
    cache, folder = str(shared_cache), tmp_path / "parts"
    overrides = (*SPREAD, SHORT, "batch.micro=4")
    first = pool.run(train_part, 2, cache, "zero2", overrides, str(folder), 7)[0]
    whole = (SHORT, "parallel.tensor=2", "batch.micro=4")
    second = pool.run(go_on, 2, cache, "zero2", whole, str(folder))[0]
    assert_equal_states(folder / "step_7", folder / "again" / "step_7")
    assert first + second["losses"] == pytest.approx(reference.losses, abs=TOLERANCE)


def test_it_is_a_layout_and_no_other_run(shared_cache):
    on, off = (
        cases.configs.to_dict(cases.load(str(shared_cache), overrides))
        for overrides in (SPREAD, ("parallel.tensor=2",))
    )
    assert on != off
    assert changes(off, on) == changes(on, off) == []


# ---- what a rank keeps, and what it sends ------------------------------------------------------

MICRO, VOCABULARY = 8, 257


def model_config(recompute: bool) -> ModelConfig:
    return ModelConfig(
        preset=None,
        layers=4,
        width=256,
        heads=4,
        context=256,
        activation_checkpointing=recompute,
    )


def keep_and_send(recompute: bool) -> list[dict[str, Any]]:
    """Two passes on this rank, positions whole and spread: bytes that autograd keeps between the
    forward and the backward pass, and bytes that are handed to collectives."""
    dist.init(2)
    return [one_pass(model_config(recompute), sequence) for sequence in (False, True)]


def one_pass(config: ModelConfig, sequence: bool) -> dict[str, Any]:
    model = build_gpt(
        config, TopologyConfig(density=0.25), vocab_size=VOCABULARY, seed=0, sequence=sequence
    )
    state = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in state:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = torch.randint(VOCABULARY, (MICRO, config.resolved().context + 1))
    counter = wire.make_counter()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), counter:
        losses, _ = model(tokens[:, :-1], tokens[:, 1:])
    with counter:
        losses.mean().backward()
    return {"kept": sum(kept.values()), "bytes": dict(counter.bytes), "calls": dict(counter.calls)}


def ledger(sequence: bool, recompute: bool) -> int:
    """Bytes that the memory formula expects to be kept: those of blocks, and of both ends."""
    shape, topology = model_config(recompute).resolved(), TopologyConfig(density=0.25)
    layout = Layout(
        zero_stage=0,
        precision="fp32",
        tp_size=2,
        micro=MICRO,
        activation_checkpointing=recompute,
        sequence=sequence,
    )
    topologies = build_topologies(topology, layer_shapes(shape), seed=0)
    found = memory_per_rank(shape, VOCABULARY, topologies, topology, layout)
    stream = 4 * MICRO * shape.context * shape.width
    # The last norm's input and output, and the softmax of 192 rows of the padded vocabulary.
    ends = stream // (2 if sequence else 1) + stream + 4 * MICRO * shape.context * 192
    return found.activations + ends


def planned(sequence: bool, recompute: bool) -> list[Flow]:
    """What the planner expects to be sent over tp."""
    exchange = Exchange(
        shape=model_config(recompute).resolved(),
        sizes=[1],
        zero_stage=0,
        element=4,
        tp_size=2,
        dp_size=1,
        micro=MICRO,
        accumulation=1,
        activation_checkpointing=recompute,
        sequence=sequence,
    )
    return [flow for flow in flows(exchange) if flow.axis == "tp"]


@pytest.mark.parametrize("recompute", [False, True])
def test_a_rank_keeps_less_and_sends_the_same(pool, recompute):
    first, second = pool.run(keep_and_send, 2, recompute)
    assert first == second
    whole, spread = first
    for sequence, found in enumerate(first):
        # Masks of targets, and copies of gains, are not in the formula.
        assert found["kept"] == pytest.approx(ledger(bool(sequence), recompute), rel=0.01)
        expected = planned(bool(sequence), recompute)
        for collective, name in NAMES.items():
            flows_of = [flow for flow in expected if flow.collective == collective]
            assert found["bytes"].get(name, 0) == sum(flow.handed for flow in flows_of), name
            assert found["calls"].get(name, 0) == sum(flow.calls for flow in flows_of), name
    assert spread["kept"] < (0.7 if recompute else 0.9) * whole["kept"]
    # On the wire: but for positions and gains, a gather and a scatter are a sum.
    sent = [
        sum(flow.wire(2) for flow in planned(s, recompute=False) if flow.what == "activations")
        for s in (False, True)
    ]
    assert sent[1] == pytest.approx(sent[0], rel=0.01)
