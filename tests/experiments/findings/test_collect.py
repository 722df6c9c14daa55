"""A study folder read back: what is done counts, everything else is named."""

import pytest

from sparsecl.errors import DataError, MissingInputError
from sparsecl.experiments.findings.collect import (
    Sides,
    collect,
    nf_notes,
    pairing_problems,
    status_of,
)
from sparsecl.files import write_json
from sparsecl.metrics.records import read_records
from sparsecl.metrics.significance import pair
from sparsecl.metrics.summary import summarize
from tests.experiments.fake_study import DOMAINS, FakeArm, last_forgetting, scores, write_study
from tests.metrics.fake_run import from_matrix, write_lines

DENSE, SPARSE = FakeArm(name="dense", kind="dense", density=1.0), FakeArm(name="er", forgets=0.2)


def test_every_run_has_its_status_and_only_done_ones_have_values(tmp_path):
    folder = write_study(
        tmp_path,
        [DENSE, SPARSE],
        seeds=range(4),
        failed={("er", 1): "loss is not finite"},
        missing=[("er", 2)],
        begun=[("dense", 3)],
    )
    study = collect(folder)
    assert study.counts() == {"done": 5, "failed": 1, "begun": 1, "missing": 1}
    assert [r.status for r in study.of("er")] == ["done", "failed", "missing", "done"]
    assert [r.reason for r in study.of("er")] == ["", "loss is not finite", "", ""]
    assert [r.run.seed for r in study.done("dense")] == [0, 1, 2]
    for result in study.results:
        assert (result.values is None) == (result.records is None) == (result.status != "done")
        assert (result.matrix is None) == (result.status != "done")
        assert status_of(folder, result.run) == (result.status, result.reason)


def test_values_are_those_of_the_records(tmp_path):
    study = collect(write_study(tmp_path, [DENSE, SPARSE], seeds=range(3)))
    for arm in ("dense", "er"):
        expected = {r.run.seed: last_forgetting(r.folder) for r in study.of(arm)}
        assert study.values(arm, "F_last") == pytest.approx(expected)
        for result in study.of(arm):
            order, loss = scores(result.folder)
            values = result.values or {}
            assert values["final_loss"] == pytest.approx(loss[-1].mean())
            assert values["first_loss"] == pytest.approx(loss[1, order[0]])
            learned = [loss[phase + 1, i] for phase, i in enumerate(order)]
            assert values["learned_loss"] == pytest.approx(sum(learned) / len(learned))


def test_pairs_are_the_seeds_that_both_arms_have(tmp_path):
    folder = write_study(
        tmp_path, [DENSE, SPARSE], seeds=range(4), failed={("er", 1): "x"}, missing=[("dense", 2)]
    )
    study = collect(folder)
    sides = study.sides("er", "dense", "F_last", paired=True)
    pairs = pair(sides.first, sides.second)
    assert pairs.seeds == (0, 3) and sides.domains == []
    for seed, difference in zip(pairs.seeds, pairs.differences, strict=True):
        mine, other = (last_forgetting(folder / f"runs/{a}/seed{seed}") for a in ("er", "dense"))
        assert difference == pytest.approx(mine - other)


def write_matrices(folder, by_arm):
    """Runs of chosen loss matrices: arm -> [P + 1, D], the same for all seeds."""
    for place in folder.glob("runs/*/*"):
        matrix = by_arm[place.parent.name]
        end = {"kind": "end", "seconds": 1.0, "tokens_per_second": 1.0}
        lines = [*from_matrix(matrix, DOMAINS, (0, 1, 2)), end]
        write_lines(place / "scalars.jsonl", lines)
        write_json(place / "results.json", summarize(read_records(place)))
    return collect(folder)


LEARNED = [[8.0, 8.0, 8.0], [3.0, 8.0, 8.0], [4.0, 3.0, 8.0], [5.0, 4.0, 3.0]]
"""NF 0.4 (2 of 5) on the first domain, 0.2 on the second; the third was followed by nothing."""

HALF = [[8.0, 8.0, 8.0], [7.999, 8.0, 8.0], [7.999, 3.0, 8.0], [7.999, 3.5, 3.0]]
"""Learned nothing of the first domain: NF 0.1, of the second alone."""

NOTHING = [[8.0] * 3] * 4


def test_nf_is_compared_over_the_domains_that_count_in_both_runs(tmp_path):
    arms = [DENSE, SPARSE, FakeArm(name="none")]
    folder = write_study(tmp_path, arms, seeds=range(2))
    study = write_matrices(folder, {"dense": LEARNED, "er": HALF, "none": NOTHING})
    own = [study.values(arm.name, "NF") for arm in arms]
    assert [sorted(one.values()) for one in own] == [pytest.approx([v] * 2) for v in (0.3, 0.1)] + [
        []
    ]
    for paired in (True, False):
        sides = study.sides("er", "dense", "NF", paired=paired)
        # On the second domain alone the dense model lost 0.2, not the 0.3 of its own domains.
        assert list(sides.first.values()) == pytest.approx([0.1, 0.1])
        assert list(sides.second.values()) == pytest.approx([0.2, 0.2])
        assert sides.domains == [1] * 4
        assert study.sides("none", "dense", "NF", paired=paired) == Sides({}, {})
    assert nf_notes(study) == [
        "NF of er: 1 of 2 domains count; the others gained under 0.01 nats per token",
        "none has no NF: each domain gained under 0.01 nats per token",
    ]


def test_runs_of_one_seed_must_have_the_same_data(tmp_path):
    other = FakeArm(name="er", extra={"digests": {"data": "data1", "tokenizer": "tok"}})
    assert pairing_problems(collect(write_study(tmp_path / "a", [DENSE, SPARSE], seeds=[1]))) == []
    study = collect(write_study(tmp_path / "b", [DENSE, other], seeds=[0, 1]))
    (problem,) = pairing_problems(study)
    assert problem == "seed 0: runs have different data digests: dense/seed0, er/seed0"


def test_a_joint_run_has_no_forgetting(tmp_path):
    joint = FakeArm(name="dense.joint", role="joint", of="dense", kind="dense", density=1.0)
    study = collect(write_study(tmp_path, [DENSE, joint], seeds=[0]))
    (result,) = study.of("dense.joint")
    assert (result.values or {})["F_last"] is None
    _, loss = scores(result.folder)
    assert (result.values or {})["final_loss"] == pytest.approx(loss[1].mean())


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(MissingInputError, match="not the folder of a study"):
        collect(tmp_path)
    folder = write_study(tmp_path, [DENSE], seeds=[0, 1], failed={("dense", 1): "x"})
    (folder / "failures" / "dense-seed1.json").write_text("[")
    assert collect(folder).of("dense")[1].reason == "dense-seed1.json cannot be read"
    (folder / "runs/dense/seed0/scalars.jsonl").write_text("{}\n{\n{}\n")
    with pytest.raises(DataError, match="scalars.jsonl"):
        collect(folder)
