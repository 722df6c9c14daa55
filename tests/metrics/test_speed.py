"""Learning speed on curves small enough to integrate by hand."""

import pytest

from sparsecl.experiments.study.measures import learned_losses
from sparsecl.metrics import speed
from sparsecl.metrics.matrix import ResultMatrix
from sparsecl.metrics.records import read_records
from sparsecl.metrics.speed import PhaseCurve
from tests.metrics.fake_run import evaluation, header, write_lines, write_run


def curve(tokens, loss):
    return PhaseCurve(
        phase=0, domain="code", source="validation", tokens=tuple(tokens), loss=tuple(loss)
    )


def test_area_is_the_mean_loss_over_the_phase():
    # (4+2)/2 over 10 tokens and (2+2)/2 over 30: (30 + 60) / 40.
    assert speed.area(curve([0, 10, 40], [4, 2, 2])) == pytest.approx(2.25)
    assert speed.area(curve([0, 10, 40], [4, 2, 2]), first_tokens=10) == pytest.approx(3.0)
    # Half of the first piece: the loss has fallen to 3.
    assert speed.area(curve([0, 10, 40], [4, 2, 2]), first_tokens=5) == pytest.approx(3.5)
    assert speed.area(curve([0, 10], [4, 2]), first_tokens=11) is None
    assert speed.area(curve([0, 10], [4, float("nan")])) is None


def test_tokens_to_a_threshold_are_interpolated_or_censored():
    line = curve([0, 10, 40], [4, 2, 1])
    assert speed.tokens_to_reach(line, 3.0) == pytest.approx(5.0)
    assert speed.tokens_to_reach(line, 1.5) == pytest.approx(25.0)
    assert speed.tokens_to_reach(line, 1.0) == pytest.approx(40.0)
    assert speed.tokens_to_reach(line, 4.5) == 0.0
    assert speed.tokens_to_reach(line, 0.9) is None


def test_tokens_to_half_of_the_own_improvement():
    assert speed.tokens_to_half(curve([0, 10, 40], [4, 2, 1])) == pytest.approx(7.5)
    assert speed.tokens_to_half(curve([0, 10], [4, 4])) is None


def test_a_faster_learner_has_the_smaller_area():
    slow, fast = curve([0, 5, 10], [4, 3, 2]), curve([0, 5, 10], [4, 2, 2])
    assert speed.area(fast) < speed.area(slow)
    assert speed.tokens_to_half(fast) < speed.tokens_to_half(slow)


def test_curves_of_a_run_start_where_the_phase_before_ended(tmp_path):
    records = read_records(write_run(tmp_path, domains=("code", "math")))
    first, second = speed.phase_curves(records)
    assert (first.domain, second.domain) == ("code", "math")
    assert first.tokens == second.tokens == tuple(4096 * k for k in (0, 20, 40, 60, 80, 100))
    assert {first.source, second.source} == {"validation"}
    before = [e for e in records.evaluations if e.domain == "math" and e.at == "phase_end"][0]
    assert second.loss[0] == before.loss


def test_a_curve_is_of_one_text(tmp_path):
    """Borders are scored on more text; a curve takes of them what is scored inside phases."""
    inside = {"num_tokens": 10, "num_bytes": 30, "num_correct": 1}
    lines = [
        header(["code"], [0]),
        evaluation("code", 9.0, phase=-1, at="start", step=0)
        | {"inside": {"loss_sum": 40.0, **inside}},
        evaluation("code", 3.0, phase=0, at="during", step=1, tokens=10),
        evaluation("code", 9.0, phase=0, at="phase_end", step=2, tokens=20)
        | {"inside": {"loss_sum": 20.0, **inside}},
    ]
    write_lines(tmp_path / "scalars.jsonl", lines)
    records = read_records(tmp_path)
    (found,) = speed.phase_curves(records)
    assert found.loss == (4.0, 3.0, 2.0)
    assert learned_losses(records) == [2.0]  # what until_loss of a stopped control is given
    assert ResultMatrix.from_records(records).loss.tolist() == [[9.0], [9.0]]


def test_without_evaluations_in_between_the_training_losses_stand_in(tmp_path):
    records = read_records(write_run(tmp_path, domains=("code", "math"), every=0))
    first, _ = speed.phase_curves(records)
    assert first.source == "train"
    assert first.tokens[0] == 5 * 4096 and len(first.tokens) == 20


def test_without_phase_marks_and_training_losses_two_points_are_what_there_is(tmp_path):
    file = tmp_path / "scalars.jsonl"
    scores = [(-1, "start", 0, 4.0), (0, "phase_end", 5, 2.0), (1, "phase_end", 9, 1.0)]
    lines = [
        evaluation("code", loss, phase=phase, at=at, step=step, tokens=10 * step)
        for phase, at, step, loss in scores
    ]
    write_lines(file, [header(["code"], [0, 0]), *lines])
    curves = speed.phase_curves(read_records(file))
    assert [(c.tokens, c.loss) for c in curves] == [((0, 50), (4.0, 2.0)), ((0, 40), (2.0, 1.0))]


def test_a_phase_that_never_began_has_no_curve(tmp_path):
    file = tmp_path / "scalars.jsonl"
    write_lines(
        file, [header(["code"], [0, 0]), evaluation("code", 4.0, phase=-1, at="start", step=0)]
    )
    assert speed.phase_curves(read_records(file)) == []
