"""Every method in every ZeRO stage, against a reference of some 30 lines in plain PyTorch.

20 steps over two domains, fp32: losses, gradient norms and final weights agree to 1e-5, and absent
and held weights pass the audits. test_method_laws.py has what holds beside it.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.distributed import cases
from tests.distributed.method_cases import BRIEF, CASES, PARTS, PROOFS, SPLIT, WHOLE, overrides_of
from tests.distributed.pool import Pool
from tests.distributed.references.run import ReferenceRun, Trace

pytestmark = pytest.mark.dist

STAGES = ("zero0", "zero1", "zero2", "zero3")
GRID = [
    *((stage, tp, dp) for stage in STAGES for tp, dp in ((1, 2), (2, 1))),
    *(("zero2", 2, 2), ("zero3", 2, 2)),
]
TURNS = (
    (("zero2", 1, 2), ("zero0", 2, 1), ("zero1", 1, 2), ("zero3", 2, 2)),
    (("zero3", 1, 2), ("zero0", 1, 2), ("zero1", 2, 1), ("zero2", 2, 2)),
)
"""A method is seen in each stage once, and with the splits apart and together. The next one has the
other turn: two neighbours see each stage with and without tensor parallelism."""
OFFLOAD = ("zero2_offload", 1, 2)
OFFLOADED = ("springs", "rigl", "chtss", "o_lora", "cbp")
"""One of each kind of state is enough where only the optimizer's place is another."""


def turn(name: str) -> tuple[tuple[str, int, int], ...]:
    kind = [other for other in WHOLE if (other in BRIEF) == (name in BRIEF)]
    return TURNS[kind.index(name) % 2]


def layouts(name: str) -> tuple[list[tuple[str, int, int]], list[tuple[str, int, int]]]:
    """Where a method is seen by the fast tests, and by the slow ones."""
    if name in PARTS:
        return [], [PARTS[name]]
    first, *others = turn(name)
    fast = [first, *([("zero2", 2, 1)] if name in SPLIT else [])]
    if name in PROOFS:
        return fast, [layout for layout in GRID if layout not in fast]
    if name in BRIEF:
        return fast, others[-1:]
    return fast, [*others, *([OFFLOAD] if name in OFFLOADED else [])]


EACH = [
    case
    for name in CASES
    for fast, late in [layouts(name)]
    for case in (*((name, *one) for one in fast), *(cases.slow(name, *one) for one in late))
]


@pytest.fixture(scope="module")
def references(shared_cache: Path) -> Any:
    """The trace of a method's reference, made once."""
    found: dict[str, Trace] = {}

    def trace(name: str) -> Trace:
        if name not in found:
            case = CASES[name]
            overrides = (*cases.TWO_DOMAINS, *case.overrides)
            found[name] = case.reference(str(shared_cache), overrides).train()
        return found[name]

    return trace


@pytest.fixture(scope="module")
def plain(shared_cache: Path) -> Any:
    """Losses of a run on a case's topology without any method, made once."""
    found: dict[tuple[str, ...], list[float]] = {}

    def losses(name: str) -> list[float]:
        topology = tuple(one for one in CASES[name].overrides if one.startswith("topology."))
        if topology not in found:
            overrides = (*cases.TWO_DOMAINS, *topology)
            found[topology] = ReferenceRun(str(shared_cache), overrides).train().losses
        return found[topology]

    return losses


@pytest.mark.parametrize(("name", "stage", "tp", "dp"), EACH)
def test_a_method_is_its_reference(
    pool: Pool, shared_cache, tmp_path, references, record_property, name, stage, tp, dp
):
    overrides = overrides_of(name, tp, dp)
    ranks = pool.run(cases.train, tp * dp, str(shared_cache), stage, overrides, str(tmp_path))
    trace = references(name)
    for rank in ranks:
        assert rank["losses"] == pytest.approx(trace.losses, abs=CASES[name].tolerance)
        assert rank["norms"] == pytest.approx(trace.norms, abs=1e-4)
        assert rank["audit"][1] == 0
        assert len(rank["figures"]) == len(trace.figures)
        for found, wanted in zip(rank["figures"], trace.figures, strict=True):
            assert found == {key: pytest.approx(value, abs=1e-3) for key, value in wanted.items()}
    found = cases.masters(tmp_path)
    apart = {
        key: float(found[key][: len(weight)].sub(weight).abs().max())
        for key, weight in trace.weights.items()
    }
    record_property("parity", [name, stage, tp, dp, max(apart.values())])
    assert max(apart.values()) < CASES[name].tolerance, max(apart, key=lambda key: apart[key])
    if (tp, dp) == (2, 1):
        run = (str(shared_cache), stage, overrides, str(tmp_path), str(tmp_path / "again"))
        assert all(pool.run(at_the_end, tp * dp, *run))


def at_the_end(cache: str, stage: str, overrides: tuple[str, ...], folder: str, out: str) -> bool:
    """A resume from the last checkpoint, after which a run has nothing but its end to write."""
    trainer, _, built = cases.assemble(cases.load(cache, overrides), stage, out)
    trainer.take_up(max(Path(folder).glob("step_*"), key=lambda path: int(path.name[5:])))
    built.guard.audit(trainer.step)
    trainer.run()
    last = len(trainer.schedule.phases) - 1
    domain = trainer.schedule.domain_name(trainer.schedule.phases[last])
    return (trainer.context.progress.phase, trainer.context.domain) == (last, domain)


@pytest.mark.parametrize("name", [cases.slow(name) if name in PARTS else name for name in CASES])
def test_a_method_does_something(plain, references, name):
    """Else agreement with the reference would say nothing."""
    apart = [abs(a - b) for a, b in zip(plain(name), references(name).losses, strict=False)]
    assert max(apart) > 1e-3
