"""What a run cost: read from its last record, and as lines of text."""

import json

import pytest

from sparsecl.errors import DataError
from sparsecl.metrics.performance import performance_lines, read_performance
from sparsecl.metrics.records import read_records
from sparsecl.metrics.summary import summarize
from sparsecl.metrics.table import report
from tests.metrics.fake_run import write_run

COST = {
    "tokens_per_second": 123456.7,
    "mfu": 0.381,
    "step_seconds": {"min": 0.2, "median": 0.25, "max": 0.3},
    "loader_wait_share": 0.001,
    "communication_share": 0.12,
    "exposed_communication_share": 0.04,
    "ranks": 2,
    "peak_memory_bytes": 3 * 2**29,
    "goodput": 0.5,
    "goodput_of_attempts": 0.75,
    "attempts": 2,
    "wall_seconds": 4000.0,
    "parts": {
        "startup": 400.0, "training": 2000.0, "evaluation": 100.0, "checkpoint": 60.0, "lost": 90.0,
        "other": 16.5, "between_attempts": 1333.5,
    },
}  # fmt: skip


def with_cost(folder, cost):
    """A finished run whose last record says so."""
    lines = (folder / "scalars.jsonl").read_text().splitlines()
    end = {**json.loads(lines[-1]), "performance": cost}
    (folder / "scalars.jsonl").write_text("\n".join([*lines[:-1], json.dumps(end)]) + "\n")
    return folder


def test_the_results_hold_the_block_as_it_was_written(tmp_path):
    found = summarize(read_records(with_cost(write_run(tmp_path / "run"), COST)))
    assert found["performance"] == COST
    assert type(found["performance"]["attempts"]) is int


def test_the_table_ends_with_it(tmp_path):
    folder = write_run(tmp_path / "run")
    old = report(summarize(read_records(folder)))
    assert "goodput" not in old and "time: " in old  # an older run has a line at the top only
    new = report(summarize(read_records(with_cost(folder, COST))))
    assert new.splitlines()[-3:] == [
        "speed: 123,457 tokens/s, step 250.0 ms, MFU 38.1%, waiting for data 0.1%, "
        "communication 12.0%",
        "wall time: 4,000 s in 2 attempts, goodput 50.0% (75.0% without the time between)",
        "memory: 1.50 GiB at most in one process",
    ]
    assert "321" not in new and all(len(line) <= 100 for line in new.splitlines())


def test_what_is_not_known_is_left_out():
    found = read_performance({"tokens_per_second": 10.0, "goodput": 0.9, "attempts": 1})
    assert set(found) == set(COST) and set(found["parts"]) == set(COST["parts"])
    assert performance_lines(found) == ["speed: 10 tokens/s"]
    found = read_performance({"wall_seconds": 7, "goodput": 0.9, "attempts": 1})
    assert performance_lines(found) == ["wall time: 7 s in 1 attempt, goodput 90.0%"]
    assert performance_lines(read_performance({})) == []


@pytest.mark.parametrize(
    "odd",
    [None, 7, [1], {"mfu": "1"}, {"mfu": True}, {"mfu": 10**30}, {"mfu": float("nan")},
     {"attempts": 1.5}, {"attempts": -1}, {"peak_memory_bytes": 10**30}, {"parts": [1]},
     {"parts": {"lost": "\x1b[2J"}}, {"step_seconds": "no"}],
)  # fmt: skip
def test_anything_else_is_refused(tmp_path, odd):
    folder = with_cost(write_run(tmp_path / "run"), odd)
    with pytest.raises(DataError, match=r"scalars.jsonl:\d+: .* must be") as problem:
        read_records(folder)
    assert len(str(problem.value).splitlines()) == 1 and "\x1b" not in str(problem.value)
