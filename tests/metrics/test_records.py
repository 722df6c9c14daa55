"""Reading scalars.jsonl: what is kept, what is forgiven, what is refused."""

import hashlib
import json
import math

import pytest

from sparsecl.errors import DataError, MissingInputError
from sparsecl.metrics.records import read_records
from sparsecl.seal import seal
from tests.metrics.fake_run import evaluation, from_matrix, header, write_lines, write_run


def train(step, loss=3.0, phase=0):
    return {"kind": "train", "phase": phase, "step": step, "tokens": step * 10, "loss": loss}


def test_a_run_is_read_back(tmp_path):
    records = read_records(write_run(tmp_path / "run", domains=("code", "math")))
    assert (records.name, records.domains, records.order) == ("demo", ("code", "math"), (0, 1))
    assert records.header["parameters"]["live"] == 1_234_567
    assert (records.audit_checks, records.audit_nonzero) == (24, 0)
    assert (records.seconds, records.tokens_per_second) == (321.5, 9123.4)
    assert len(records.train) == 40 and records.train[0].step == 5
    # Row 0, two phases of 4 evaluations in between and one at the end, for both domains.
    assert len(records.evaluations) == 2 * (1 + 2 * 5)
    assert records.warnings == ()
    assert read_records(tmp_path / "run" / "scalars.jsonl") == records


def test_scores_of_one_evaluation_by_hand(tmp_path):
    file = tmp_path / "scalars.jsonl"
    record = evaluation("code", 2.0, phase=-1, at="start", step=0)
    record |= {"loss_sum": 6.0, "num_tokens": 3, "num_bytes": 4, "num_correct": 1}
    write_lines(file, [header(["code"], [0]), record])
    (found,) = read_records(file).evaluations
    assert found.loss == 2.0
    assert found.bits_per_byte == pytest.approx(6.0 / math.log(2) / 4)
    assert found.accuracy == pytest.approx(1 / 3)


def test_the_text_inside_phases_is_read_beside_that_of_a_border(tmp_path):
    file = tmp_path / "scalars.jsonl"
    border = evaluation("code", 2.0, phase=-1, at="start", step=0)
    sums = {"loss_sum": 6.0, "num_tokens": 3, "num_bytes": 4, "num_correct": 1}
    write_lines(file, [header(["code"], [0]), border | {"inside": sums}])
    (found,) = read_records(file).evaluations
    assert (found.loss, found.inside.loss) == (2.0, 2.0) and found.inside.num_tokens == 3
    write_lines(file, [header(["code"], [0]), border])  # one text, or an earlier version
    (found,) = read_records(file).evaluations
    assert found.inside.loss_sum == found.loss_sum and found.inside.num_tokens == found.num_tokens
    write_lines(file, [header(["code"], [0]), border | {"inside": {**sums, "num_tokens": 0}}])
    with pytest.raises(DataError, match="num_tokens must be >= 1"):
        read_records(file)


def test_unknown_kinds_and_keys_are_ignored(tmp_path):
    file = tmp_path / "scalars.jsonl"
    write_lines(
        file,
        [{"kind": "memory", "gib": 3}, header(["code"], [0], mood="good"), train(1) | {"x": 1}],
    )
    assert len(read_records(file).train) == 1


@pytest.mark.parametrize("tail", ['{"kind": "train", "st', '{"kind"', "\0\0\0", "\xff{", "3"])
def test_a_torn_last_line_is_forgiven_with_a_warning(tmp_path, tail):
    file = tmp_path / "scalars.jsonl"
    write_lines(file, [header(["code"], [0]), train(1)])
    file.write_bytes(file.read_bytes() + tail.encode("latin-1"))
    records = read_records(file)
    assert len(records.train) == 1
    assert len(records.warnings) == 1 and "scalars.jsonl:3: the last line" in records.warnings[0]


def test_a_broken_line_elsewhere_names_file_and_line(tmp_path):
    file = tmp_path / "scalars.jsonl"
    lines = [json.dumps(header(["code"], [0])), '{"kind": "tra', json.dumps(train(1))]
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"scalars\.jsonl:2: not a JSON object"):
        read_records(file)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"kind": "train", "phase": 0, "tokens": 1, "loss": 1.0}, "step must be an integer"),
        (train(1) | {"loss": "low"}, "loss must be a number, got 'low'"),
        (train(1, phase=2), "phase 2 is outside the 1 phases"),
        (evaluation("latin", 3.0, phase=0, at="during", step=1), "domain 'latin' is not one of"),
        (
            evaluation("code", 3.0, phase=0, at="during", step=1) | {"num_tokens": 0},
            "num_tokens must be >= 1",
        ),
        (header(["code", "math"], [0, 1]), "a second run with other domains"),
        (header(["code", "code"], [0]), "domains must be distinct"),
        (header(["code"], [1]), "order must list indices"),
        ({"kind": "end", "seconds": "many"}, "seconds must be a number"),
    ],
)
def test_odd_values_name_file_line_and_key(tmp_path, record, message):
    file = tmp_path / "scalars.jsonl"
    write_lines(file, [header(["code"], [0]), record, train(2)])
    with pytest.raises(DataError, match=f"scalars.jsonl:2: {message}"):
        read_records(file)


def test_what_is_not_a_run_folder(tmp_path):
    with pytest.raises(MissingInputError, match="no such run folder"):
        read_records(tmp_path / "nowhere")
    with pytest.raises(MissingInputError, match="not a run folder"):
        read_records(tmp_path)
    (tmp_path / "scalars.jsonl").write_text("\n")
    with pytest.raises(DataError, match="the file is empty"):
        read_records(tmp_path)
    write_lines(tmp_path / "scalars.jsonl", [{"kind": "other"}])
    with pytest.raises(DataError, match='no record of kind "run"'):
        read_records(tmp_path)
    write_lines(tmp_path / "scalars.jsonl", [train(1), header(["code"], [0])])
    with pytest.raises(DataError, match='kind "train" comes before kind "run"'):
        read_records(tmp_path)


def test_a_resumed_run_drops_what_it_repeats(tmp_path):
    """Killed at step 5 after a checkpoint at step 2; the resumed part has other losses."""
    first = [train(step, loss=9.0) for step in range(1, 6)]
    torn_eval = evaluation("code", 9.0, phase=0, at="during", step=5)
    resumed = [header(["code"], [0]), train(3, loss=1.0), train(4, loss=1.0)]
    file = tmp_path / "scalars.jsonl"
    write_lines(file, [header(["code"], [0]), *first, torn_eval, {"kind": "end"}, *resumed])
    records = read_records(file)
    assert [(p.step, p.loss) for p in records.train] == [(1, 9.0), (2, 9.0), (3, 1.0), (4, 1.0)]
    assert records.evaluations == ()
    assert records.seconds is None


def test_of_two_records_for_one_slot_the_later_counts(tmp_path):
    records = from_matrix([[4.0], [2.0]], ["code"], [0])
    file = tmp_path / "scalars.jsonl"
    write_lines(file, [*records, evaluation("code", 1.0, phase=0, at="phase_end", step=100)])
    assert [e.loss for e in read_records(file).evaluations] == [4.0, 1.0]


def write_sealed(file, records, *unsealed):
    """As a run writes them: header, ends of phases and the end are sealed. Then other lines."""
    content = b""
    for record in records:
        line = json.dumps(record).encode() + b"\n"
        border = record["kind"] in ("run", "end") or record.get("event") == "end"
        content += seal(line, hashlib.sha256(content)) if border else line
    file.write_bytes(content + b"".join(json.dumps(x).encode() + b"\n" for x in unsealed))


BETTER = evaluation("code", 0.5, phase=0, at="phase_end", step=100)


@pytest.mark.fault("R1")
@pytest.mark.parametrize(
    "more",
    [
        [BETTER],
        [header(["code"], [0]), BETTER, {"kind": "end", "seconds": 1.0}],
        [{"kind": "nobody knows"}],
    ],
    ids=["score", "another run", "unknown"],
)
def test_nothing_stands_after_the_end_of_a_run(tmp_path, more):
    """No seal vouches for it, and a score there would count as the later one of its place."""
    file = tmp_path / "scalars.jsonl"
    records = from_matrix([[4.0], [2.0]], ["code"], [0])
    records = [*records, {"kind": "end", "seconds": 9.0}]
    write_sealed(file, records)
    assert read_records(file).ended
    write_sealed(file, records, *more)
    with pytest.raises(
        DataError, match=rf"scalars\.jsonl:{len(records) + 1}: stands after the end"
    ):
        read_records(file)


@pytest.mark.fault("R1")
def test_a_header_without_its_seal_takes_no_seal_away(tmp_path):
    file = tmp_path / "scalars.jsonl"
    records = from_matrix([[4.0], [2.0]], ["code"], [0])
    write_sealed(file, records, header(["code"], [0]), BETTER, {"kind": "end", "seconds": 1.0})
    with pytest.raises(DataError, match="its seal is missing"):
        read_records(file)


def test_values_that_are_not_finite_become_nan(tmp_path):
    file = tmp_path / "scalars.jsonl"
    write_lines(file, [header(["code"], [0]), train(1, loss=math.inf), train(2, loss=None)])
    assert all(math.isnan(point.loss) for point in read_records(file).train)
