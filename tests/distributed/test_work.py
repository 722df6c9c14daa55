"""What moving the graph costs: as planned, and as counted in real runs."""

from typing import Any

import pytest

from sparsecl.engine import ledger
from sparsecl.engine.run import vocabulary
from sparsecl.engine.schedule import make_schedule
from sparsecl.engine.topology import draw_topologies
from sparsecl.methods.dst import hebb
from sparsecl.planning.estimate import estimate
from sparsecl.planning.machines import MACHINES
from sparsecl.planning.subjects import Counter, Subject
from tests.distributed import cases
from tests.distributed.pool import Pool

pytestmark = pytest.mark.dist

TOKENS = 8 * 16
METHODS = {
    "rigl": "methods.rigl={every: 3}",
    "snfs": "methods.snfs={every: 3}",
    "granet": "methods.granet={every: 3, final_density: 0.1}",
    "chtss": "methods.chts={every: 3, final_density: 0.1}",
    "em_s": "methods.chts={every: 3, em_s: [0.05, 0.025], per_head: true}",
    "cht": "methods.cht={every: 3, percolate: false, stop_overlap: 1.0}",
}
DOES = {
    "rigl": (6, 0),
    "snfs": (20, 0),
    "granet": (6, 0),
    "cht": (0, 72),
    "chtss": (0, 60),
    "em_s": (0, 5 * (3 * 4 + 3) * 2),
}
"""Steps that show gradients, layers that are scored. At the end of its cosine nothing goes."""


def counted(cache: str, overrides: tuple[str, ...], folder: str) -> dict[str, Any]:
    """A run, and what it does: live weights of each step, those of steps that show dense gradients,
    and the graphs that were scored; beside the ledger."""
    config = cases.load(cache, overrides)
    trainer, data, built = cases.assemble(config, "zero2", folder)
    arm, watch, score = trainer.context.arm_dense_gradients, trainer._step_and_watch, hebb.scores
    live, shown, scored = list[int](), list[int](), list[tuple[int, int, int]]()

    def num_live() -> int:
        return sum(entry.topology.num_live for entry in trainer.context.sparse.values())

    def armed() -> None:
        shown.append(num_live())
        arm()

    def step(*given: Any) -> Any:
        live.append(num_live())
        return watch(*given)

    def scores(mask: Any, name: Any) -> Any:
        scored.append((*mask.shape, int(mask.sum())))
        return score(mask, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.context, "arm_dense_gradients", armed)
        patch.setattr(trainer, "_step_and_watch", step)
        patch.setattr(hebb, "scores", scores)
        trainer.run()
    counts = ledger.count(config, data.tokenizer.vocab_size, built.topologies)
    found = ledger.flops(config, trainer.schedule, counts, built.topologies)
    return {"live": live, "shown": shown, "scored": scored, "parts": found.parts()}


@pytest.mark.parametrize(
    "name", ["granet", "chtss", *map(cases.slow, ("rigl", "snfs", "cht", "em_s"))]
)
def test_the_ledger_is_what_a_run_does_and_what_is_planned(
    pool: Pool, shared_cache, tmp_path, name
):
    overrides = (*cases.TWO_DOMAINS, METHODS[name])
    (found,) = pool.run(counted, 1, str(shared_cache), overrides, str(tmp_path))
    cells, start = 2 * 12 * 32 * 32, found["live"][0]
    assert len(found["live"]) == 20 and start == cells // 4
    # Per token: 6 FLOPs a live weight, 6 for each row of the output, 12 L W T in attention.
    rows = 6 * vocabulary(cases.load("unused", overrides)) * 32 + 12 * 2 * 32 * 16
    training = sum(TOKENS * (6 * live + rows) for live in found["live"])
    path = 2 if name == "cht" else 0  # for each link; beside A A^T, A^T A, and in l3n two more
    scores = sum(
        o * i * ((2 if path else 4) * (o + i) + path * num) for o, i, num in found["scored"]
    )
    parts = found["parts"]
    assert parts["training"] == training
    assert parts["dense_gradients"] == sum(2 * TOKENS * (cells - live) for live in found["shown"])
    assert parts["scores"] == scores
    assert parts["executed"] == 20 * TOKENS * (6 * cells + rows) + scores
    assert (len(found["shown"]), len(found["scored"])) == DOES[name]
    assert (found["live"][-1] < start) == (name in ("granet", "chtss", "em_s"))
    config = cases.load(str(shared_cache), overrides)
    counter, place = Counter(), cases.ROOT / "ds_configs" / "zero2.json"
    subject = Subject("tiny", config, place, 1, counter.counts(config), counter.topologies(config))
    assert estimate(subject, MACHINES["cpu"], 1, disk=1e9).flops.parts() == parts
    price = counter.price(config, place)
    assert price.flops == pytest.approx(training + parts["dense_gradients"] + scores, rel=1e-5)


def test_packed_storage_has_no_dense_gradient_to_begin_with():
    """One product of all cells more, at 6 of 20 steps."""
    config = cases.load("unused", ("methods.rigl={every: 3}", "topology.storage=packed"))
    drawn = draw_topologies(config)
    counts = ledger.count(config, vocabulary(config), drawn)
    found = ledger.flops(config, make_schedule(config, world_size=1), counts, drawn)
    cells = counts.masked_total
    assert found.executed == found.per_token.executed * found.tokens + 6 * 2 * TOKENS * cells
    assert found.gradients == 6 * 2 * TOKENS * (cells - counts.masked_live)
