"""How often a text is read, by hand."""

import pytest

from sparsecl.metrics.passes import pass_warnings, passes, passes_text
from sparsecl.metrics.reading import reading
from sparsecl.metrics.records import read_records
from tests.metrics.fake_run import header, write_lines


def test_passes_are_tokens_read_over_tokens_there_are():
    by_phase = [{"a": 51_200}, {"b": 500}, {"a": 800, "b": 500}]
    found = passes(by_phase, {"a": 3200, "b": 2000, "c": 10})
    assert found == {"a": 16.25, "b": 0.5, "c": 0.0}
    assert passes_text(found) == "a 16.2, b 0.50, c 0.00"


def test_above_four_passes_there_is_a_warning_with_the_way_out():
    (line,) = pass_warnings([{"a": 51_200, "b": 400}], {"a": 3200, "b": 100})
    assert line.startswith("domain a: 51,200 planned tokens are 16.0 passes over the 3,200 that")
    assert "2305.16264" in line and "give more text, or lower phases.tokens or steps" in line


def mark(phase, tokens, event="end", **more):
    return {
        "kind": "phase",
        "phase": phase,
        "event": event,
        "step": tokens,
        "tokens": tokens,
        **more,
    }


def read(tmp_path, order, planned, marks):
    sizes = {"a": 100, "b": 200}
    first = header(("a", "b"), order, train_tokens=sizes, planned=planned)
    write_lines(tmp_path / "scalars.jsonl", [first, *marks])
    return reading(read_records(tmp_path), len(marks))


def test_what_was_read_is_told_beside_what_was_planned(tmp_path):
    """The first phase ends early; the second replays 30 tokens of it and 20 of its own."""
    marks = [mark(0, 400), mark(1, 900, replayed_by_phase=[30, 20])]
    found = read(tmp_path, [0, 1], [{"a": 500}, {"b": 520, "a": 30}], marks)
    assert [phase["read"] for phase in found["phases"]] == [{"a": 400}, {"b": 520, "a": 30}]
    assert found["planned_passes"] == {"a": 5.3, "b": 2.6}
    assert found["passes"] == {"a": 4.3, "b": 2.6}
    assert found["train_tokens"] == {"a": 100, "b": 200}


def test_a_phase_of_all_domains_is_parted_as_planned(tmp_path):
    found = read(tmp_path, [-1], [{"a": 300, "b": 100}], [mark(0, 400, replayed_by_phase=[40])])
    assert found["phases"][0]["read"] == {"a": 330, "b": 110}


def test_a_phase_to_come_has_read_nothing(tmp_path):
    found = read(tmp_path, [0, 1], [{"a": 500}, {"b": 500}], [mark(0, 500)])
    assert found["phases"][1] == {"planned": {"b": 500}, "read": None}
    assert found["passes"]["b"] == 0.0


def test_older_runs_do_not_tell(tmp_path):
    write_lines(tmp_path / "scalars.jsonl", [header(("a",), [0]), mark(0, 10)])
    assert reading(read_records(tmp_path), 1) is None


@pytest.mark.parametrize("planned", [[], [{"a": 1.5}, {}], {"a": 1}])
def test_a_plan_that_is_none_is_refused(tmp_path, planned):
    write_lines(tmp_path / "scalars.jsonl", [header(("a",), [0, 0], planned=planned)])
    with pytest.raises(Exception, match="planned must give tokens by domain of each phase"):
        read_records(tmp_path)
