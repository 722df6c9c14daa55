"""Plasticity records: read back, rewound, and flattened for results.json."""

import pytest

from sparsecl.errors import DataError
from sparsecl.metrics.records import read_records
from sparsecl.metrics.summary import summarize
from tests.metrics import fake_run


def point(phase: int, *, step: int, erank: float = 4.0, **changes):
    record = {
        "kind": "plasticity",
        "phase": phase,
        "at": "start" if phase < 0 else "phase_end",
        "step": step,
        "tokens": 10 * step,
        "probe_tokens": 64,
        "layers": {
            "layers.0": {"erank": erank, "weight_mean_abs": 0.1},
            "layers.1": {"erank": erank + 2.0, "weight_mean_abs": 0.9},
        },
        "final": {"erank": 3.0},
        "total": {"weight_mean_abs": 0.3, "grad_norm": None, "p": None if phase < 0 else 0.25},
    }
    return {**record, **changes}


def write(tmp_path, *points):
    domains, order = ["a", "b"], [0, 1]
    records = fake_run.from_matrix([[4, 4], [2, 4], [3, 2]], domains, order)
    fake_run.write_lines(tmp_path / "scalars.jsonl", [*records[:3], *points])
    return tmp_path


def test_rows_of_results_json(tmp_path):
    folder = write(tmp_path, point(-1, step=0), point(0, step=100), point(1, step=200, erank=6.0))
    rows = summarize(read_records(folder))["plasticity"]
    assert [row["phase"] for row in rows] == [-1, 0, 1]
    assert rows[2] == {
        "phase": 1,
        "step": 200,
        "tokens": 2000,
        "erank": 7.0,  # mean over blocks
        "weight_mean_abs": 0.3,  # the model's own: blocks may differ in size
        "final_erank": 3.0,
        "grad_norm": None,
        "p": 0.25,
    }
    assert rows[0]["p"] is None


def test_a_resumed_run_replaces_what_it_repeats(tmp_path):
    lost = [point(0, step=100), point(1, step=200, erank=99.0)]
    folder = write(tmp_path, point(-1, step=0), *lost, point(0, step=100, erank=5.0))
    rows = summarize(read_records(folder))["plasticity"]
    assert [(row["phase"], row["erank"]) for row in rows] == [(-1, 5.0), (0, 6.0)]


def test_a_run_without_the_panel_has_no_rows(tmp_path):
    assert summarize(read_records(write(tmp_path)))["plasticity"] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": None}, "layers must be an object, got None"),
        ({"total": {"p": "high"}}, "p must be a number, got 'high'"),
        ({"phase": 2}, "phase 2 is outside the 2 phases"),
    ],
)
def test_a_broken_record_names_its_line(tmp_path, changes, message):
    folder = write(tmp_path, {**point(1, step=200), **changes})
    with pytest.raises(DataError, match=rf"scalars.jsonl:4: {message}"):
        read_records(folder)
