"""Garbage where nothing may be: zeros stay, or the audit ends the run. Nothing passes silently."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sparsecl import dist
from sparsecl.checkpoint.reader import Reader
from sparsecl.errors import InvariantError
from sparsecl.methods.base import Method
from sparsecl.methods.context import MethodContext
from sparsecl.methods.several import Methods
from sparsecl.sparse.registry import sparse_parameters
from tests.distributed import cases
from tests.distributed.test_variants import check_zeros

pytestmark = pytest.mark.dist

STAGES = ["zero0", "zero1", "zero2", "zero2_offload", "zero3"]
LAYER = "layers.1.mlp.up.weight"


def slow(*values: Any) -> list[Any]:
    """Cases that only `make test-slow` runs."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


class Saboteur(Method):
    """Writes `value` into absent entries of one layer, in one copy, on one rank, at one step."""

    name = "saboteur"

    def __init__(self, dead: torch.Tensor, copy: str, *, at: int, on: int, value: float) -> None:
        self.dead, self.copy, self.at, self.on, self.value = dead, copy, at, on, value

    def after_backward(self, context: MethodContext) -> None:
        if context.progress.step != self.at or dist.rank() != self.on:
            return
        for item in context.slices:
            if item.name == LAYER:
                copies = {"weight": item.weight, "master": item.master}
                copies |= context.slices.moments(item)
                if self.copy == "gradient":
                    gradient = context.slices.grad(item)
                    assert gradient is not None
                    copies["gradient"] = gradient
                copies[self.copy][item.part(self.dead)] = self.value


def sabotage(
    cache: str,
    stage: str,
    copy: str,
    value: float,
    at: int,
    overrides: tuple[str, ...],
    folder: str,
) -> dict[str, Any]:
    """A run in which rank 1 writes garbage in the backward of step `at`."""
    trainer, _, built = cases.assemble(cases.load(cache, overrides), stage, folder)
    dead = sparse_parameters(built.model)[LAYER].dead
    trainer.context.methods = Methods([Saboteur(dead, copy, at=at, on=1, value=value)])
    try:
        trainer.run()
    except InvariantError as error:
        return {"error": str(error), "losses": trainer.losses()}
    return {"error": None, "losses": trainer.losses()}


def poke_and_audit(cache: str, stage: str, copy: str, overrides: tuple[str, ...]) -> str:
    """After two steps, garbage in one copy on rank 1, then an audit; the error of the audit."""
    trainer, _, built = cases.assemble(cases.load(cache, overrides), stage, "unused")
    for _ in range(2):
        trainer._train_step(1e-3, audited=False, logged=False)
        trainer.position.step += 1
    built.guard.audit(2)
    dead = sparse_parameters(built.model)[LAYER].dead
    saboteur = Saboteur(dead, copy, at=2, on=1, value=1e-3)
    saboteur.after_backward(trainer.context)
    with pytest.raises(InvariantError) as caught:
        built.guard.audit(2)
    return str(caught.value)


@pytest.mark.fault("C7")
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("copy", ["weight", "master", *slow("exp_avg", "exp_avg_sq")])
def test_the_audit_names_layer_copy_and_rank(pool, shared_cache, stage, copy):
    overrides = ("precision=bf16", "batch.micro=2")
    messages = pool.run(poke_and_audit, 2, str(shared_cache), stage, copy, overrides)
    assert messages[0] == messages[1]
    assert f"{LAYER} ({copy}):" in messages[0]
    assert "rank 1:" in messages[0]
    assert "rank 0:" not in messages[0]
    assert messages[0].startswith("audit at step 2: ")


@pytest.fixture(scope="module")
def undisturbed(request, pool, shared_cache, tmp_path_factory) -> tuple[str, list[float]]:
    """A stage, and the losses of its run when nobody disturbs it."""
    folder = str(tmp_path_factory.mktemp("clean"))
    overrides = ("phases.steps=8",)
    runs = pool.run(cases.train, 2, str(shared_cache), request.param, overrides, folder)
    return request.param, runs[0]["losses"]


NAN = float("nan")
GARBAGE = [
    *((stage, "master", NAN) for stage in STAGES),
    cases.slow("zero3", "master", 1.0),
    *(cases.slow(stage, "exp_avg", NAN if turn % 2 else 1.0) for turn, stage in enumerate(STAGES)),
    *(
        cases.slow(stage, "exp_avg_sq", 1.0 if turn % 2 else NAN)
        for turn, stage in enumerate(STAGES)
    ),
]
"""Every copy in every stage; every value in each of them."""


@pytest.mark.fault("N5")
@pytest.mark.parametrize(("undisturbed", "copy", "value"), GARBAGE, indirect=["undisturbed"])
def test_garbage_in_state_is_gone_after_the_step(
    pool, shared_cache, tmp_path, undisturbed, copy, value
):
    """Weight decay, momentum and clipping are on; garbage arrives between backward and step."""
    stage, losses = undisturbed
    overrides = ("phases.steps=8", "audit.every=1")
    results = pool.run(
        sabotage, 2, str(shared_cache), stage, copy, value, 4, overrides, str(tmp_path)
    )
    assert results[0]["error"] is None
    # Not a trace is left: the run equals one that nobody disturbed.
    assert results[0]["losses"] == losses
    check_zeros(shared_cache, tmp_path)


OTHERS = [(stage, (0.5, float("inf"))[turn % 2]) for turn, stage in enumerate(STAGES)]


@pytest.mark.fault("N5")
@pytest.mark.parametrize(
    ("stage", "value"),
    [*((stage, NAN) for stage in STAGES), *(cases.slow(*other) for other in OTHERS)],
)
def test_a_gradient_of_an_absent_weight_ends_the_run(pool, shared_cache, tmp_path, stage, value):
    overrides = ("phases.steps=8", "audit.every=1")
    results = pool.run(
        sabotage, 2, str(shared_cache), stage, "gradient", value, 4, overrides, str(tmp_path)
    )
    assert f"{LAYER} (gradient):" in results[0]["error"]
    assert "rank 1:" in results[0]["error"]


def train_update(cache: str, stage: str, overrides: tuple[str, ...], folder: str) -> dict[str, Any]:
    """Role update; the initial global weights travel in a checkpoint of step 0."""
    config = cases.load(cache, (*overrides, "checkpoint.keep=9"))
    trainer, _, _ = cases.assemble(config, stage, folder)
    trainer._save()
    trainer.run()
    return {"losses": trainer.losses()}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("precision", [*slow("fp32"), "bf16"])
def test_role_update_moves_live_weights_only(pool, shared_cache, tmp_path, stage, precision):
    overrides = (
        f"precision={precision}",
        "topology.role=update",
        f"parallel.tensor={2 if stage == 'zero2' else 1}",
        "batch.micro=2",
        "optimizer.weight_decay=0.5",
    )
    pool.run(train_update, 2, str(shared_cache), stage, overrides, str(tmp_path))
    before, after = Reader(tmp_path / "step_0"), Reader(tmp_path / "step_20")
    live = live_masks(shared_cache, overrides)
    for name, mask in live.items():
        old, new = before.read("master", name), after.read("master", name)
        assert torch.equal(old[~mask], new[~mask]), name
        assert (old[~mask] != 0).any()
        assert (old[mask] != new[mask]).float().mean() > 0.9, name
        for state in ("exp_avg", "exp_avg_sq"):
            assert (after.read(state, name)[~mask] == 0).all(), (name, state)


def live_masks(cache: Path, overrides: tuple[str, ...]) -> dict[str, torch.Tensor]:
    from sparsecl.model.shapes import layer_shapes
    from sparsecl.topology.build import build_topologies

    config = cases.load(str(cache), overrides)
    topologies = build_topologies(
        config.topology, layer_shapes(config.model.resolved()), seed=config.seed
    )
    return {f"{name}.weight": torch.from_numpy(t.mask()) for name, t in topologies.items()}


def train_fp16(cache: str, stage: str, folder: str) -> dict[str, Any]:
    """fp16 on the CPU, which DeepSpeed refuses: its check is overridden. The scale overflows."""
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    kind = type(accelerator)
    kept = kind.is_fp16_supported
    kind.is_fp16_supported = lambda self: True
    try:
        json = {"fp16": {"enabled": True, "initial_scale_power": 26, "hysteresis": 1}}
        config = cases.load(cache, ("precision=fp16", "audit.every=1"))
        trainer, _, built = cases.assemble(config, stage, folder, json)
        scale = built.slices.loss_scale
        trainer.run()
        return {
            "losses": trainer.losses(),
            "skipped": built.engine.skipped_steps,
            "audit": (built.guard.checks, built.guard.nonzero),
            "scales": (scale, built.slices.loss_scale),
        }
    finally:
        kind.is_fp16_supported = kept


@pytest.mark.fault("N2")
@pytest.mark.parametrize("stage", ["zero0", *slow("zero1", "zero2"), "zero2_offload", "zero3"])
def test_fp16_steps_that_overflow(pool, shared_cache, tmp_path, stage):
    result = pool.run(train_fp16, 2, str(shared_cache), stage, str(tmp_path))[0]
    assert result["skipped"] >= 2
    assert result["scales"][1] < result["scales"][0]
    assert result["audit"] == (20, 0)
    assert result["losses"][-1] < result["losses"][0] - 0.3  # the steps that count do train
    check_zeros(shared_cache, tmp_path)
