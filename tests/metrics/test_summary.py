"""The summary: the keys of results.json, JSON-safe values, and the tables made from it."""

import json
import math

import numpy as np
import pytest

from sparsecl.errors import DataError
from sparsecl.metrics import comparison, table
from sparsecl.metrics.records import read_records
from sparsecl.metrics.summary import matrix_of, summarize
from tests.metrics.fake_run import from_matrix, header, with_identity, write_lines, write_run

LOSS = [[4, 4, 4], [2, 3.9, 4], [2.5, 2, 3.8], [3, 2.4, 2]]
DOMAINS = ["code", "math", "law"]


def summary_of(tmp_path, records):
    write_lines(tmp_path / "scalars.jsonl", records)
    return summarize(read_records(tmp_path))


@pytest.fixture
def reference(tmp_path):
    return summary_of(tmp_path, from_matrix(LOSS, DOMAINS, [0, 1, 2]))


def test_keys_that_outside_scripts_rely_on(reference):
    assert set(reference) >= {
        "domains", "matrix", "forgetting", "bwt", "fwt", "audit", "density", "parameters",
        "digests", "versions", "tokens_per_second", "seconds", "order", "averages",
        "learning_speed",
    }  # fmt: skip
    assert set(reference["matrix"]) == {"loss", "bits_per_byte", "accuracy", "perplexity"}
    assert {"F_last", "F_seed", "F_std", "per_domain", "NF"} <= set(reference["forgetting"])


def test_values_of_the_reference_vector(reference):
    assert reference["matrix"]["loss"] == [pytest.approx(row, rel=1e-14) for row in LOSS]
    figures = reference["forgetting"]
    assert figures["F_last"] == pytest.approx(0.7)
    assert figures["F_seed"] == pytest.approx(1.4 / 3)
    assert figures["per_domain"] == pytest.approx({"code": 1.0, "math": 0.4, "law": 0.0})
    assert figures["NF_per_domain"]["math"] == pytest.approx(0.4 / 1.9)
    assert reference["bwt"] == -figures["F_last"]
    assert reference["fwt"] == pytest.approx(0.15)
    assert reference["averages"]["loss"]["final"] == pytest.approx(7.4 / 3)
    assert reference["averages"]["loss"]["seen"] == [None, *map(pytest.approx, (2, 2.25, 7.4 / 3))]
    # Bits per byte are the losses times one constant here, and so is their forgetting.
    scale = 20_000 / 71_000 / math.log(2)
    assert reference["forgetting_bits_per_byte"]["F_last"] == pytest.approx(0.7 * scale)


def test_stored_results_equal_a_later_recomputation(tmp_path):
    folder = write_run(tmp_path / "run")
    stored = json.dumps(summarize(read_records(folder)), allow_nan=False)
    assert json.loads(stored) == summarize(read_records(folder))
    assert (matrix_of(json.loads(stored)).loss == matrix_of(json.loads(stored)).loss).all()


def test_a_diverged_run_is_json_safe_and_says_so(tmp_path):
    loss = [[4, 4, 4], [2, 3.9, 4], [2.5, 2, 3.8], [math.nan, 2.4, math.inf]]
    summary = summary_of(tmp_path, from_matrix(loss, DOMAINS, [0, 1, 2]))
    assert summary["matrix"]["loss"][3] == [None, pytest.approx(2.4), None]
    assert summary["forgetting"]["F_last"] is None
    assert summary["forgetting"]["per_domain"]["math"] == pytest.approx(0.4)
    assert any("diverged" in warning for warning in summary["warnings"])
    json.dumps(summary, allow_nan=False)
    assert "nan" not in table.report(summary)


def test_a_huge_loss_has_no_perplexity_but_a_loss(tmp_path):
    summary = summary_of(tmp_path, from_matrix([[1e4]], ["code"], []))
    assert summary["matrix"]["perplexity"] == [[None]]


def test_replayed_tokens_are_counted_to_the_last_finished_phase(tmp_path, reference):
    assert reference["replayed_tokens"] is None
    records = from_matrix(LOSS, DOMAINS, [0, 1, 2])
    train = [
        {"kind": "train", "phase": phase, "step": step, "tokens": 8 * step, "loss": 2.0}
        | ({"replayed_tokens": again} if again else {})
        for phase, step, again in ((0, 1, 0), (0, 100, 300), (1, 200, 700), (2, 300, 1100))
    ]
    written = [records[0], *sorted([*train, *records[1:]], key=lambda record: record["step"])]
    assert summary_of(tmp_path, written)["replayed_tokens"] == 1100
    # Killed in the evaluation after phase 2: its training belongs to no finished phase.
    assert summary_of(tmp_path, written[:-1])["replayed_tokens"] == 700


METHODS = {
    "first": {"flags": "D C", "extra_parameters": 0},
    "second": {"flags": "D", "extra_parameters": 0},
    "third": {"flags": "B F", "extra_parameters": 4096},
}


def test_methods_have_their_flags_parameters_and_tokens(tmp_path, reference):
    assert reference["methods"] == {}
    records = from_matrix(LOSS, DOMAINS, [0, 1, 2])
    head, *rest = [records[0] | {"methods": METHODS}, *records[1:]]
    none = summary_of(tmp_path, [head, *rest])["methods"]
    assert none == {name: known | {"replayed_tokens": 0} for name, known in METHODS.items()}
    train = [
        {"kind": "train", "phase": phase, "step": step, "tokens": 8 * step, "loss": 2.0}
        | {"replayed_tokens": sum(by.values()), "replayed_by_method": by}
        for phase, step, by in ((0, 100, {"first": 300}), (2, 300, {"first": 700, "second": 40}))
    ]
    written = [head, *sorted([*train, *rest], key=lambda record: record["step"])]
    summary = summary_of(tmp_path, written)
    found = {name: method["replayed_tokens"] for name, method in summary["methods"].items()}
    assert found == {"first": 700, "second": 40, "third": 0}
    assert sum(found.values()) == summary["replayed_tokens"]
    # Killed in the evaluation after phase 2: its training belongs to no finished phase.
    killed = summary_of(tmp_path, written[:-1])
    assert killed["methods"]["first"]["replayed_tokens"] == 300 == killed["replayed_tokens"]
    assert (
        "methods: first (D C; 700 tokens trained again), second (D; 40 tokens trained again), "
        "third (B F; 4,096 parameters more)"
    ) in " ".join(table.report(summary).split())
    assert "methods:" not in table.report(reference)


def test_what_methods_measure_of_themselves_stands_by_phase(tmp_path):
    records = from_matrix(LOSS, DOMAINS, [0, 1, 2])
    head = records[0] | {"methods": METHODS}
    ends = [
        {"kind": "phase", "event": "end", "phase": phase, "step": step, "tokens": 8 * step}
        | ({"methods": {"third": {"shared": 0.25 * phase, "odd": None}}} if phase else {})
        for phase, step in ((0, 100), (1, 200), (2, 300))
    ]
    written = [head, *sorted([*records[1:], *ends], key=lambda record: record["step"])]
    summary = summary_of(tmp_path, written)
    assert "phase_ends" not in summary["methods"]["first"]
    expected = [{}, {"shared": 0.25, "odd": None}, {"shared": 0.5, "odd": None}]
    assert summary["methods"]["third"]["phase_ends"] == expected
    text = " ".join(table.report(summary).split())
    assert "third: shared at the end of each phase - 0.250 0.500" in text
    broken = [
        record | {"methods": {"third": 0.5}} if record in ends else record for record in written
    ]
    write_lines(tmp_path / "scalars.jsonl", broken)
    with pytest.raises(DataError, match="third"):
        read_records(tmp_path)


@pytest.mark.parametrize(
    "methods",
    [
        ["first"],
        {"first": None},
        {"first": {"flags": "D"}},
        {"first": {"flags": "D", "extra_parameters": -1}},
        {"first": {"flags": "D", "extra_parameters": True}},
        {"first": {"flags": "\x1b[2J", "extra_parameters": 0}},
        {"\x1b[2J": {"flags": "D", "extra_parameters": 0}},
    ],
)
def test_methods_that_are_none_are_refused(tmp_path, methods):
    write_lines(tmp_path / "scalars.jsonl", [header(DOMAINS, [0, 1, 2], methods=methods)])
    with pytest.raises(DataError, match="methods must give flags and extra_parameters of each"):
        read_records(tmp_path)


def test_tokens_by_method_are_counts(tmp_path):
    train = {"kind": "train", "phase": 0, "step": 1, "tokens": 8, "loss": 2.0}
    broken = train | {"replayed_by_method": {"first": -1}}
    write_lines(tmp_path / "scalars.jsonl", [header(DOMAINS, [0, 1, 2]), broken])
    with pytest.raises(DataError, match="replayed_by_method must be counts by name"):
        read_records(tmp_path)


def test_the_density_at_the_end_is_that_of_the_last_finished_phase(tmp_path, reference):
    assert "final_density" not in reference and "at the end" not in table.report(reference)
    records = from_matrix(LOSS, DOMAINS, [0, 1, 2])
    # 2,000 of 5,000 parameters lie on a topology, and 500 of them live at first.
    head = records[0] | {
        "parameters": {"live": 3500, "total": 5000},
        "density": {"masked": 0.25, "model": 0.7},
    }
    ends = [
        {"kind": "phase", "event": "end", "phase": phase, "step": step, "tokens": 8 * step}
        | {"live": live, "cells": 2000, "came": 0.1 * phase, "lifetime": step / 4, "ever": 0.5}
        for phase, step, live in ((0, 100, 400), (1, 200, 300), (2, 300, 200))
    ]
    written = [head, *sorted([*records[1:], *ends], key=lambda record: record["step"])]
    summary = summary_of(tmp_path, written)
    assert summary["final_density"] == {"masked": 0.1, "model": 3200 / 5000}
    assert summary["density"] == {"masked": 0.25, "model": 0.7}
    assert "at the end 0.100 and 0.640" in table.report(summary)
    assert summary["turnover"] == {"came": [0.0, 0.1, 0.2], "lifetime": 75.0, "ever": 0.5}
    told = "came in each phase 0.000 0.100 0.200 of the live weights; a weight lives 75.0 steps"
    text = " ".join(table.report(summary).split())
    assert f"graph: {told}; 0.500 of all cells have lived" in text
    partial = summary_of(tmp_path, written[: written.index(ends[1]) + 1])
    assert partial["final_density"]["masked"] == 0.15


@pytest.mark.parametrize("more", [{"live": -1, "cells": 5}, {"live": 5}, {"live": 6, "cells": 5}])
def test_live_weights_are_counts_of_cells(tmp_path, more):
    mark = {"kind": "phase", "event": "end", "phase": 0, "step": 1, "tokens": 8}
    write_lines(tmp_path / "scalars.jsonl", [header(DOMAINS, [0, 1, 2]), mark | more])
    with pytest.raises(DataError, match="live must be a count of cells"):
        read_records(tmp_path)


def test_a_partial_run_says_so(tmp_path):
    records = from_matrix(LOSS, DOMAINS, [0, 1, 2])
    summary = summary_of(tmp_path, records[:8])  # row 2 has one of three domains
    assert summary["phases"] == {"finished": 1, "planned": 3}
    assert summary["order"] == [0, 1, 2]
    assert summary["forgetting"]["F_last"] is None and summary["forgetting"]["F_seed"] == 0.0
    assert summary["warnings"] == [
        "partial run: 1 of 3 phases are finished; not all domains were scored after phase 1"
    ]
    assert summary["tokens_per_second"] is None
    assert "1 of 3 phases" in table.report(summary)
    json.dumps(summary, allow_nan=False)


def test_without_row_0_forgetting_is_still_there(tmp_path):
    records = from_matrix(LOSS, DOMAINS, [0, 1, 2])
    summary = summary_of(tmp_path, [records[0], *records[4:]])
    assert summary["forgetting"]["F_last"] == pytest.approx(0.7)
    assert summary["fwt"] is None
    assert any("row 0" in warning for warning in summary["warnings"])


def test_no_evaluations_is_an_error(tmp_path):
    with pytest.raises(DataError, match="demo: no evaluations yet"):
        summary_of(tmp_path, [header(DOMAINS, [0, 1, 2])])


def test_the_matrix_as_text(reference):
    lines = table.matrix_table(reference).splitlines()
    assert lines[2:] == [
        "                       code    math     law",
        "before training       4.000   4.000   4.000",
        "after 0 code         [2.000]  3.900   4.000",
        "after 1 math          2.500  [2.000]  3.800",
        "after 2 law           3.000   2.400  [2.000]",
        "-------------------------------------------",
        "final bits per byte   1.219   0.975   0.813",
        "final accuracy        0.050   0.091   0.135",
        "forgotten, nats       1.000   0.400       -",
        "forgotten, share      0.500   0.211       -",
        "scored tokens         20000   20000   20000",
    ]


def test_the_text_behind_the_scores_is_stated(tmp_path):
    """Runs of earlier versions know tokens and bytes; later ones documents and windows too."""
    records = from_matrix(LOSS, DOMAINS, [0, 1, 2])
    all_of_it = {"documents": 21, "windows": 999, "tokens": 31_000}
    ends = {"documents": 12, "windows": 640, "tokens": 20_000}
    inside = {"documents": 9, "windows": 64, "tokens": 2000}
    scored = dict.fromkeys(DOMAINS, {"ends": ends, "inside": inside, "all": all_of_it})
    more = {
        "scored": scored,
        "train_tokens": dict.fromkeys(DOMAINS, 409_600),
        "planned": [{"code": 409_600}, {"math": 409_600}, {"law": 4_096_000}],
    }
    found = summary_of(tmp_path, [records[0] | more, *records[1:]])
    assert found["scored"]["math"] == {
        **ends, "inside": inside, "all": all_of_it, "bytes": 71_000,
    }  # fmt: skip
    lines = table.matrix_table(found).splitlines()[-4:]
    assert [line.split() for line in lines] == [
        ["scored", "documents", *["12/21"] * 3],
        ["scored", "windows", *["640"] * 3],
        ["scored", "tokens", *["20000"] * 3],
        ["passes", "over", "its", "text", *["0.00"] * 3],  # these records have no marks of phases
    ]
    (warning,) = found["warnings"]
    assert warning.startswith("domain law: 4,096,000 planned tokens are 10.0 passes")
    old = summary_of(tmp_path, records)
    assert old["scored"]["math"] == {"tokens": 20_000, "bytes": 71_000} and old["reading"] is None


def test_the_heading_tells_the_runs_apart(tmp_path):
    config = {"name": "x", "seed": 3, "topology": "er_fixed", "density": 0.1, "lr": 0.001}
    records = from_matrix(LOSS, DOMAINS, [0, 1, 2])
    text = table.report(summary_of(tmp_path, [records[0] | {"config": config}, *records[1:]]))
    assert "settings: seed 3, topology er_fixed, density 0.1, lr 0.001" in text
    nested = {"seed": 3, "topology": {"kind": "brf", "role": "control"}, "data": {"x": [1]}}
    text = table.report(summary_of(tmp_path, [records[0] | {"config": nested}, *records[1:]]))
    assert "settings: seed 3, kind brf, role control\n" in text
    assert "density: 0.100 of the masked matrices, 0.230 of the model" in text


def test_the_lowest_possible_score_is_shown_where_it_is_known(tmp_path):
    records = from_matrix(LOSS, DOMAINS, [0, 1, 2])
    known = {"entropy_rate": {"math": 0.5 * math.log(2)}}  # half a bit per byte
    lines = table.matrix_table(summary_of(tmp_path, [records[0] | known, *records[1:]])).split("\n")
    (line,) = [line for line in lines if line.startswith("lowest possible b/B")]
    assert line.split()[-3:] == ["-", "0.500", "-"]


def test_the_figures_as_text(reference):
    text = table.figures_table(reference)
    for name, value in (("F_last", "0.700"), ("F_seed", "0.467"), ("BWT", "-0.700")):
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {name} ")]
        assert line.split()[1] == value
        assert line.endswith("higher is better" if name == "BWT" else "lower is better")


def test_the_audit_line(tmp_path):
    records = from_matrix(LOSS, DOMAINS, [0, 1, 2])
    audit = {"kind": "audit", "step": 300, "checks": 12, "nonzero": 0}
    summary = summary_of(tmp_path, [*records, audit])
    assert table.audit_line(summary) == "audit: 12 checks, 0 nonzero absent entries"
    summary = summary_of(tmp_path, records)
    assert table.audit_line(summary) == "audit: no checks were recorded"


def test_what_is_held_is_counted_in_the_audit(tmp_path):
    records = from_matrix(LOSS, DOMAINS, [0, 1, 2])
    audits = [
        {"kind": "audit", "step": step, "checks": step // 100, "nonzero": 0, **held}
        for step, held in ((100, {}), (200, {"held": 7}), (300, {"held": 1234}))
    ]
    summary = summary_of(tmp_path, [*records, *audits])
    assert summary["audit"] == {"checks": 3, "nonzero": 0, "held": 1234}
    assert table.audit_line(summary) == (
        "audit: 3 checks, 0 moved entries of absent and held weights; 1,234 weights held at the "
        "last one"
    )


def test_what_is_scored_with_identity_stands_beside_and_changes_no_figure(tmp_path):
    records = from_matrix(LOSS, DOMAINS, [0, 1, 2])
    plain = summary_of(tmp_path, records)
    assert "matrix_with_identity" not in plain
    found = summary_of(tmp_path, with_identity(records, 0.5))
    beside = found.pop("matrix_with_identity")
    assert np.allclose(np.array(beside["loss"]) * 2, found["matrix"]["loss"])
    forgetting = found.pop("forgetting_with_identity")
    assert forgetting["F_last"] == pytest.approx(plain["forgetting"]["F_last"] / 2)
    same = [key for key in found if key not in ("records", "name")]
    assert {key: found[key] for key in same} == {key: plain[key] for key in same}


def test_the_page_says_which_matrix_is_which(tmp_path):
    records = from_matrix(LOSS, DOMAINS, [0, 1, 2])
    text = table.report(summary_of(tmp_path, with_identity(records, 0.5)))
    first, second = text.index("No method is told which"), text.index("a method is told which")
    assert first < text.index("before training") < second < text.rindex("before training")
    assert "Where a method is told the domain: F_last 0.350" in text
    assert "is told" not in table.report(summary_of(tmp_path, records))
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("num_domains", [1, 2, 5, 20])
def test_every_line_fits_the_width(tmp_path, num_domains):
    domains = [f"a-rather-long-domain-name-{i}" for i in range(num_domains)]
    summary = summarize(read_records(write_run(tmp_path, domains=domains)))
    text = table.report(summary)
    assert max(map(len, text.splitlines())) <= 100
    assert text.isascii()
    # No column is lost in the wrapping: each final loss is there in its own brackets or bare.
    for loss in summary["matrix"]["loss"][-1]:
        assert f"{loss:.3f}" in text


def test_five_domains_fit_in_one_block(tmp_path):
    text = table.matrix_table(summarize(read_records(write_run(tmp_path))))
    assert text.count("before training") == 1


def test_numbers_as_text():
    assert [table.number(v) for v in (None, math.nan, -0.0001, 1.23456, -2.0)] == [
        "-", "-", "0.000", "1.235", "-2.000",
    ]  # fmt: skip
    assert table.clip("dialogue", 12) == "dialogue"
    assert table.clip("er-fixed-density-0.1-seed1", 12) == "er-fi..seed1"


def two_runs(tmp_path):
    sparse = write_run(tmp_path / "a", name="sparse", domains=("code", "math", "law"))
    dense = write_run(
        tmp_path / "b", name="dense", domains=("math", "code"), density=1.0, forgetting=0.6
    )
    return [summarize(read_records(folder)) for folder in (sparse, dense)]


def test_side_by_side_columns_line_up(tmp_path):
    folder = write_run(tmp_path / "a", name="sparse")
    other = write_run(tmp_path / "b", name="dense-" + "x" * 60, density=1.0, forgetting=0.6)
    summaries = [summarize(read_records(f)) for f in (folder, other)]
    head, first, second = comparison.side_by_side(summaries).splitlines()[:3]
    assert len(head) == len(first) == len(second) <= 100
    columns = head.split()
    cells = dict(zip(columns, first.split(), strict=True))
    assert cells["run"] == "sparse"
    assert cells["density"] == "0.100"
    assert cells["F_last"] == table.number(summaries[0]["forgetting"]["F_last"])
    assert cells["BWT"] == table.number(summaries[0]["bwt"])
    assert cells["loss"] == table.number(summaries[0]["averages"]["loss"]["all"][-1])
    assert cells["tok/s"] == "9123"
    assert second.startswith("dense-x") and ".." in second


def test_side_by_side_compares_what_is_common_and_says_so(tmp_path):
    summaries = two_runs(tmp_path)
    assert comparison.common_domains(summaries) == ["code", "math"]
    text = comparison.side_by_side(summaries)
    assert "note: sparse: not compared, absent elsewhere: law" in text
    assert "note: compared over 2 common domains: code, math" in text
    assert "not train the same domains in the same order" in text
    # Over code and math alone, both were exposed in the three-domain run (law came last).
    forgotten = summaries[0]["forgetting"]["per_domain"]
    row = dict(zip(text.splitlines()[0].split(), text.splitlines()[1].split(), strict=True))
    assert row["F_last"] == table.number((forgotten["code"] + forgotten["math"]) / 2)


def test_side_by_side_warns_of_partial_runs_and_bad_audits(tmp_path):
    summary = summary_of(
        tmp_path,
        [
            *from_matrix(LOSS, DOMAINS, [0, 1, 2])[:7],
            {"kind": "audit", "step": 200, "checks": 3, "nonzero": 7},
        ],
    )
    text = comparison.side_by_side([summary])
    assert "note: demo: partial run: 1 of 3 phases are finished" in text
    assert "note: demo: the audit found 7 nonzero absent entries" in text


def other_run(tmp_path, name, **changes):
    """A finished run whose header differs in `changes`; num_bytes as the others."""
    records = from_matrix(LOSS, DOMAINS, [0, 1, 2])
    records[0] = header(DOMAINS, [0, 1, 2], name=name, **changes)
    write_lines(tmp_path / f"{name}.jsonl", records)
    return summarize(read_records(tmp_path / f"{name}.jsonl"))


def test_what_makes_runs_unlike_is_said_in_a_line(tmp_path):
    one = other_run(tmp_path, "one", config={"context": 64, "lr": 0.1, "density": 0.1})
    two = other_run(
        tmp_path, "two", config={"context": 128, "lr": 0.1, "density": 1.0}, parameters={"total": 7}
    )
    (note,) = [
        line for line in comparison.side_by_side([one, two]).splitlines() if "differ" in line
    ]
    assert (
        note == "note: the runs differ in parameters of the model (5000000, 7); context (64, 128)"
    )
    assert "differ" not in comparison.side_by_side([one, one])
    two["trained"]["steps"] = 7
    two["scored"]["code"]["bytes"] = 1
    text = comparison.side_by_side([one, two])
    assert "steps (300, 7)" in text and "evaluated bytes (213000, 142001)" in text


def test_across_tokenizers_only_bits_per_byte_are_compared(tmp_path):
    runs = [other_run(tmp_path, n, digests={"tokenizer": n * 9}) for n in ("a", "b")]
    text = comparison.side_by_side(runs)
    head, row = (line.split() for line in text.splitlines()[:2])
    assert head == ["run", "density", "F_last", "F_std", "F_seed", "BWT", "FWT", "bits/B"]
    cells = dict(zip(head, row, strict=True))
    bits = runs[0]["forgetting_bits_per_byte"]["F_last"]
    assert cells["F_last"] == table.number(bits) != table.number(runs[0]["forgetting"]["F_last"])
    assert "nats" not in text and "forgetting in bits per byte" in text
    assert "note: the tokenizers differ, so a token is not the same text in all runs" in text


def test_nf_side_by_side_is_over_the_domains_that_every_run_learned(tmp_path):
    one = other_run(tmp_path, "one")
    matrix = [list(row) for row in LOSS]
    matrix[1][0] = matrix[0][0]  # nothing learned of the first domain
    records = from_matrix(matrix, DOMAINS, [0, 1, 2])
    write_lines(tmp_path / "two.jsonl", records)
    two = summarize(read_records(tmp_path / "two.jsonl"))
    assert two["forgetting"]["NF_domains"] == {"counted": 1, "of": 2}
    text = comparison.side_by_side([one, two])
    rows = [
        dict(zip(text.split("\n")[0].split(), line.split(), strict=True))
        for line in text.split("\n")[1:3]
    ]
    second = DOMAINS[1]
    for row, run in zip(rows, (one, two), strict=True):
        assert row["NF"] == table.number(run["forgetting"]["NF_per_domain"][second])
    assert "note: NF is over the 1 of 2 domains that every run learned by 0.01" in text
    assert "NF: 1 of 2 domains count; the others gained under 0.01" in table.report(two)
    assert "domains count" not in table.report(one)


def test_nothing_in_common_is_refused(tmp_path):
    summaries = two_runs(tmp_path)
    summaries[1]["domains"] = ["x", "y"]
    with pytest.raises(ValueError, match="no domain in common"):
        comparison.side_by_side(summaries)
    with pytest.raises(ValueError, match="no run to compare"):
        comparison.side_by_side([])
