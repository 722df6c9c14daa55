"""Live sets of another size in masked storage: density falls and rises in the middle of a run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparsecl.checkpoint.reader import Reader
from sparsecl.methods.base import Method
from tests.distributed import cases

pytestmark = pytest.mark.dist

SHRINKS, GROWS = 4, 14

RUN = (
    *cases.TWO_DOMAINS,
    "methods.ewc={strength: 100.0, sequences: 3}",  # springs go with their weights
    "checkpoint.every=4",
    "checkpoint.keep=9",
)


class Breathing(Method):
    """Half of each layer goes at one step; at another a quarter of the absent cells comes."""

    name = "breathing"

    def after_step(self, context, *, applied: bool) -> None:
        step = context.progress.step
        for name in context.sparse if step in (SHRINKS, GROWS) else ():
            live = context.joined(name, context.sparse[name].layer.live_mask().float()).bool()
            if step == SHRINKS:
                size = context.matrix(name).abs()
                mask = size > size[live].median()
            else:
                rng = context.generator("breathing", name)
                mask = live | torch.from_numpy(rng.random(live.shape) < 0.25)
            grown = context.set_live(name, mask)
            assert torch.equal(context.joined(name, grown.float()).bool(), mask & ~live)
            tensors = [None, *context.methods.slice_tensors()]
            for values in tensors if step == GROWS else [None]:
                matrix = context.matrix(name, values)
                assert (matrix[~mask] == 0).all() and (matrix[mask & ~live] == 0).all()
                assert (matrix[mask & live] != 0).any()


def run(cache: str, stage: str, overrides: tuple[str, ...], folder: str, start: str = "") -> Any:
    """A run, or what follows a checkpoint of it."""
    trainer, _, built = cases.assemble(cases.load(cache, overrides), stage, folder)
    trainer.methods.methods.append(Breathing())
    trainer.methods.rewires = True
    if start:
        try:
            trainer.take_up(Path(start))
        except Exception as error:
            return str(error)
        built.guard.audit(trainer.step)
    trainer.run()
    assert built.guard.checks >= 2 and built.guard.nonzero == 0
    return trainer.losses()


def recorded(cache: str, overrides: tuple[str, ...], folder: str, moves: bool) -> Any:
    """Records of phase ends, and what was drawn of the topology."""
    trainer, _, _ = cases.assemble(cases.load(cache, (*RUN, *overrides)), "zero1", folder)
    if moves:
        trainer.methods.methods.append(Breathing())
        trainer.methods.rewires = True
    drawn: list[Any] = []
    trainer.journal.scalars = lambda values, **_: drawn.append(values)
    trainer.run()
    ends = [r for r in trainer.records if r["kind"] == "phase" and r["event"] == "end"]
    return ends, [
        {key: value for key, value in some.items() if key.startswith("topology/")} for some in drawn
    ]


def layout(tp: int, dp: int) -> tuple[str, ...]:
    return (f"parallel.tensor={tp}", f"batch.micro={8 // dp // 2}")


@pytest.fixture(scope="module")
def alone(pool, shared_cache, tmp_path_factory) -> Any:
    folder = tmp_path_factory.mktemp("alone")
    losses = pool.run(run, 1, str(shared_cache), "zero0", (*RUN, *layout(1, 1)), str(folder))[0]
    return losses, folder


def test_phase_ends_and_curves_say_how_many_weights_live(pool, shared_cache, alone, tmp_path):
    """Global counts, the same whatever the layout; nothing where no method moves them."""
    _, folder = alone
    shrunk, grown = (Reader(folder / f"step_{step}").topologies for step in (4, 20))
    live = [sum(graph.num_live for graph in graphs.values()) for graphs in (shrunk, grown)]
    cells = sum(graph.num_cells for graph in grown.values())
    for tp in (1, 2):
        places = (str(shared_cache), layout(tp, 1), str(tmp_path / str(tp)))
        for ends, drawn in pool.run(recorded, tp, *places, True):
            assert [(end["step"], end["live"], end["cells"]) for end in ends] == [
                (10, live[0], cells),
                (20, live[1], cells),
            ]
            points = [some for some in drawn if some]
            counts = [point["topology/live"] for point in points]
            # At every logged step but a process's first, and at the ends of phases.
            assert counts == [cells // 4] * 2 + [live[0]] * 11 + [live[1]] * 8
            densities = [point["topology/density"] for point in points]
            assert densities == [count / cells for count in counts]
    places = (str(shared_cache), layout(1, 1), str(tmp_path / "still"))
    ends, drawn = pool.run(recorded, 1, *places, False)[0]
    assert all("live" not in end for end in ends) and not any(drawn)


def test_counts_fall_and_rise(alone):
    _, folder = alone
    counts = [
        sum(graph.num_live for graph in Reader(folder / f"step_{step}").topologies.values())
        for step in (0, 8, 18)
        if (folder / f"step_{step}").exists()
    ]
    first = Reader(folder / "step_4").topologies.values()  # saved after the step's rewire
    assert all(abs(graph.density - 0.125) < 0.01 for graph in first)
    last = Reader(folder / "step_20").topologies.values()
    assert all(0.3 < graph.density < 0.4 for graph in last)
    assert counts == sorted(counts)


@pytest.mark.parametrize(
    ("stage", "tp", "dp", "extra"),
    [
        ("zero2", 2, 1, ()),
        ("zero3", 1, 2, ()),
        cases.slow("zero1", 1, 2, ("topology.backend=csr",)),
        cases.slow("zero3", 2, 2, ()),
        cases.slow("zero2_offload", 1, 2, ()),
    ],
)
def test_every_layout_has_the_same_graph(pool, shared_cache, tmp_path, alone, stage, tp, dp, extra):
    losses, folder = alone
    overrides = (*RUN, *layout(tp, dp), *extra)
    for found in pool.run(run, tp * dp, str(shared_cache), stage, overrides, str(tmp_path)):
        assert found == pytest.approx(losses, abs=1e-5)
    mine, other = (Reader(path / "step_20").topologies for path in (tmp_path, folder))
    assert all(mine[name].digest == graph.digest for name, graph in other.items())


@pytest.mark.parametrize("stage", ["zero2", cases.slow("zero0"), cases.slow("zero3")])
def test_bf16_passes_its_audits(pool, shared_cache, tmp_path, stage):
    overrides = (*RUN, *layout(1, 2), "precision=bf16")
    for losses in pool.run(run, 2, str(shared_cache), stage, overrides, str(tmp_path)):
        assert len(losses) == 20 and np.isfinite(losses).all()


def test_a_resume_knows_the_new_live_set(pool, shared_cache, tmp_path, alone):
    losses, folder = alone
    overrides = (*RUN, *layout(1, 1))
    start = str(folder / "step_14")
    found = pool.run(run, 1, str(shared_cache), "zero0", overrides, str(tmp_path), start)[0]
    assert found == losses[14:]


def test_packed_storage_has_no_room_for_another_count(pool, shared_cache, tmp_path, alone):
    overrides = (*RUN, *layout(1, 1), "topology.storage=packed")
    start = str(alone[1] / "step_14")
    found = pool.run(run, 1, str(shared_cache), "zero0", overrides, str(tmp_path), start)[0]
    assert "room for" in found and "Use topology.storage=masked." in found
