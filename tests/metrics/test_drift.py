"""Records of drift read back, the measure KL, and two arms at equal movement: by hand, and planted
worlds that must be read rightly.

A world: KL doubles with log2(rate), forgetting goes with a power of it. An arm may need another
rate for the same (shift), or forget more at every KL (effect).
"""

import json

import numpy as np
import pytest

from sparsecl.errors import DataError
from sparsecl.experiments.study.measures import measures
from sparsecl.metrics.drift import equal_kl, path
from sparsecl.metrics.frontier import Curve
from sparsecl.metrics.records import read_records
from sparsecl.metrics.summary import summarize
from tests.metrics.fake_run import STEPS, from_matrix, write_lines

WORLDS = 200
ROOM = 3 * 0.0154

# ---- records

ORDER = (0, 1, 0)


def point(phase, kl, **changes):
    record = {
        "kind": "drift",
        "phase": phase,
        "step": (phase + 1) * STEPS,
        "tokens": 0,
        "kl": kl,
        "standard_error": {name: 0.01 for name in kl},
        "num_tokens": {name: 1024 for name in kl},
    }
    return {**record, **changes}


def run(tmp_path, *points, order=ORDER):
    loss = np.full((len(order) + 1, 2), 3.0)
    records = from_matrix(loss.tolist(), ("a", "b"), order)
    at = {(r["phase"], r["domain"]): k for k, r in enumerate(records) if r["kind"] == "eval"}
    for one in reversed(points):
        records.insert(at[one["phase"], "b"] + 1, one)
    write_lines(tmp_path / "scalars.jsonl", records)
    return tmp_path


def test_the_matrix_and_the_measure(tmp_path):
    folder = run(tmp_path, point(1, {"a": 0.3}), point(2, {"b": 0.25}))
    summary = json.loads(json.dumps(summarize(read_records(folder))))
    assert summary["drift"]["kl"] == [[None, None], [0.3, None], [None, 0.25]]
    assert summary["drift"]["standard_error"] == [[None, None], [0.01, None], [None, 0.01]]
    assert measures(summary)["KL"] == 0.25  # a is the last domain: nothing followed it


def test_the_mean_over_all_that_another_phase_followed(tmp_path):
    folder = run(tmp_path, point(1, {"a": 0.3}), order=(0, 1))
    assert measures(summarize(read_records(folder)))["KL"] == 0.3


@pytest.mark.parametrize("points", [(), (point(1, {"a": 0.3}),), (point(2, {"b": None}),)])
def test_what_was_not_measured_is_none(tmp_path, points):
    summary = summarize(read_records(run(tmp_path, *points)))
    assert measures(summary)["KL"] is None
    assert (summary["drift"] is None) == (not points)
    summary.pop("drift")  # of an earlier version
    assert measures(summary)["KL"] is None


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (point(1, {"x": 0.3}), "domain 'x' is not one of a, b"),
        (point(1, {"a": "much"}), "a must be a number"),
        (point(1, {"a": 0.3}, num_tokens={"a": -1}), "num_tokens must be counts"),
        (point(7, {"a": 0.3}, step=300), "phase 7 is outside"),
    ],
)
def test_records_that_make_no_sense(tmp_path, record, says):
    folder = run(tmp_path)
    with (folder / "scalars.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    with pytest.raises(DataError, match=says):
        read_records(folder)


# ---- equal movement


def compared(first, second, *, paired=True):
    return equal_kl(first, second, paired=paired, rng=np.random.default_rng(0))


def test_a_path_by_hand():
    found = path([0.4, 0.1, 0.1, None, -0.1, 0.2], [3.0, 1.0, 2.0, 9.0, 9.0, np.nan])
    assert found.along.tolist() == [0.1, 0.4] and found.forgotten.tolist() == [1.5, 3.0]
    assert found.at(0.2) == pytest.approx(2.25)  # half way in log KL
    for outside in (0.099, 0.401, np.nan):
        with pytest.raises(ValueError, match=r"from 0.1 to 0.4 only"):
            found.at(outside)


def test_forgetting_may_fall_along_a_path():
    assert path([0.1, 0.3, 0.2], [1.0, 2.0, 3.0]).forgotten.tolist() == [1.0, 3.0, 2.0]


def test_a_point_is_no_path():
    assert path([0.1, 0.1], [1.0, 2.0]) is None and path([], []) is None
    with pytest.raises(ValueError, match="one value for each run"):
        path([0.1, 0.2], [1.0])


def line(low, high, value):
    """Rises by 1 for each factor of e."""
    x = np.array([low, high])
    return Curve(log=True, along=x, forgotten=value + np.log(x))


def test_two_arms_by_hand():
    first = {seed: line(0.1, 0.4, 2.0 - 0.1 * seed) for seed in range(6)}
    second = {seed: line(0.2, 0.9, 2.0) for seed in range(6)}
    found = compared(first, second)
    assert (found.grid[0], found.grid[-1]) == (0.2, 0.4)
    assert found.differences == pytest.approx([-0.1 * seed for seed in range(6)])
    assert found.test.mean == pytest.approx(-0.25) and found.why == ""


def test_without_a_common_range_there_is_a_reason():
    first = {seed: line(0.1, 0.2, 2.0) for seed in range(6)}
    second = {seed: line(0.3, 0.9, 2.0) for seed in range(6)}
    found = compared(first, second)
    assert found.test is None and found.differences == () and len(found.grid) == 0
    assert found.why == (
        "no KL that every seed of both arms reaches "
        "(the first arm from 0.1 to 0.2; the second arm from 0.3 to 0.9)"
    )
    assert compared(first, {}).why == "no seed has both paths"
    assert compared(first, {}, paired=False).why == "an arm has no path"


def arm(rng, shared, rates, *, shift=0.0, effect=0.0):
    v = np.log2(rates) - shift
    log_kl = np.log(0.03) + v - 0.04 * v**2
    found = {}
    for seed, (further, more) in enumerate(shared):
        kl = np.exp(log_kl + further)
        y = 1.6 * kl**0.6 + effect + more + rng.normal(0, 0.02, len(v))
        found[seed] = path(kl * np.exp(rng.normal(0, 0.03, len(v))), y)
    return found


def share_that_holds(truth, rates, **second):
    hits, means = 0, []
    for number in range(WORLDS):
        rng = np.random.default_rng([number, 3])
        shared = rng.normal(0, 0.05, (8, 2))
        one, two = arm(rng, shared, rates), arm(rng, shared, rates, **second)
        test = compared(two, one).test
        hits += test.t.contains(truth)
        means.append(test.mean)
    return hits / WORLDS, float(np.mean(means))


@pytest.mark.parametrize("rates", [2.0 ** np.arange(5), 4.0 ** np.arange(3)])
@pytest.mark.parametrize("shift", [0.5, 1.5])
def test_arms_on_one_path_are_equal(rates, shift):
    share, mean = share_that_holds(0.0, rates, shift=shift)
    assert share > 0.95 - ROOM and abs(mean) < 0.005


def test_a_planted_difference_is_found():
    share, mean = share_that_holds(-0.1, 2.0 ** np.arange(5), shift=1.5, effect=-0.1)
    assert share > 0.95 - ROOM and mean == pytest.approx(-0.1, abs=0.005)
