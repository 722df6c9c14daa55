"""What the page of the streams tells of kept results is made again from their tables."""

import json
import re

import numpy as np
import pytest
from scipy import stats

from tests.experiments.test_kept_results import STREAMS, by_seed, differences, rows


@pytest.mark.skipif(not (STREAMS / "permuted_mnist").exists(), reason="not kept")
def test_what_the_page_of_the_streams_tells_of_permuted_mnist():
    text = " ".join((STREAMS.parent / "README.md").read_text().split())
    text = text[text.index("**Online permuted MNIST**") : text.index("What to hold against it")]
    folder = STREAMS / "permuted_mnist"

    def mean(arm: str, measure: str) -> float:
        return float(np.mean(list(by_seed(folder, arm, measure).values())))

    def interval(arm: str, against: str) -> str:
        values = differences(folder, arm, against, "last_third")
        half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
        return f"{values.mean():.3f} [{values.mean() - half:.3f}, {values.mean() + half:.3f}]"

    steps = ("backprop_slow", "backprop", "backprop_fast")
    for measure in ("best_window", "last_third", "lost"):
        assert "{:.3f}, {:.3f} and {:.3f}".format(*(mean(arm, measure) for arm in steps)) in text
    assert all(min(by_seed(folder, arm, "lost").values()) > 0 for arm in steps)
    for name in ("cbp", "l2", "shrink_perturb"):
        both = (interval(name, "backprop"), interval(f"{name}_fast", "backprop_fast"))
        assert "by {} and {}".format(*both) in text
    assert f"({mean('cbp', 'lost'):.3f} and {mean('cbp_fast', 'lost'):.3f})" in text
    for measure, digits in (("dead", 3), ("weight_size", 3), ("erank", 1)):
        one, two = (f"{mean(arm, measure):.{digits}f}" for arm in ("backprop", "cbp"))
        assert f"{one} against {two}" in text
    assert {f"{float(row['p_corrected']):.3f}" for row in rows(folder, "tests-primary")} == {
        "0.012"
    }
    assert re.search(r"each p 0\.012, Holm over six", text)


@pytest.mark.skipif(not (STREAMS / "density").exists(), reason="not kept")
def test_what_the_page_of_the_streams_tells_of_density():
    text = " ".join((STREAMS.parent / "README.md").read_text().split())
    text = text[text.index("**Density**") : text.index("## Slippery Ant")]
    folder, shares = STREAMS / "density", {f"er{n:02}": f"{n} %" for n in (1, 5, 10, 20, 30)}

    def mean(arm: str, measure: str) -> str:
        return f"{np.mean(list(by_seed(folder, arm, measure).values())):.3f}"

    def interval(arm: str, against: str) -> str:
        values = differences(folder, arm, against, "last_third")
        half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
        return f"{values.mean():.3f} [{values.mean() - half:.3f}, {values.mean() + half:.3f}]"

    lost = ", ".join(f"{mean(arm, 'lost')} at {share}" for arm, share in shares.items())
    assert f"{lost} against {mean('dense', 'lost')}" in text
    ends = ", ".join(mean(arm, "last_third") for arm in shares)
    assert f"({ends} against {mean('dense', 'last_third')}; each p 0.023, Holm over" in text
    small = [mean(f"{arm}.equal_parameters", "lost") for arm in ("er10", "er30")]
    assert "ends {} below its best at the size of 10 % and {} at".format(*small) in text
    for arm, share in shares.items():
        assert differences(folder, arm, "dense", "lost").mean() < 0
        assert interval(arm, f"{arm}.equal_parameters") in text, share
        if arm != "er01":
            assert differences(folder, arm, f"{arm}.equal_parameters", "lost").max() < 0
    verdicts = {(r["arm"], r["against"]): r["verdict"] for r in rows(folder, "tests-primary")}
    assert {verdicts[arm, "dense"] for arm in shares} == {"worse"}
    small = [verdicts[arm, f"{arm}.equal_parameters"] for arm in shares]
    assert small == ["worse", "worse", "difference not shown", "better", "better"]
    for arm in ("brf10", "expander10"):
        assert verdicts[arm, "er10"] == "difference not shown" and interval(arm, "er10") in text


def told(title: str, until: str = "What to hold against it") -> str:
    """What the page tells under a title, on one line."""
    text = " ".join((STREAMS.parent / "README.md").read_text().split())
    text = text[text.index(f"**{title}**") :]
    return text[: text.index(until)]


def mean_of(study: str, arm: str, measure: str, digits: int = 3) -> str:
    return f"{np.mean(list(by_seed(STREAMS / study, arm, measure).values())):.{digits}f}"


def interval_of(study: str, arm: str, against: str, measure: str) -> str:
    values = differences(STREAMS / study, arm, against, measure)
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{values.mean():.3f} [{values.mean() - half:.3f}, {values.mean() + half:.3f}]"


@pytest.mark.skipif(not (STREAMS / "upgd").exists(), reason="not kept")
def test_what_the_page_of_the_streams_tells_of_upgd():
    text, others = told("UPGD"), ("not_protecting", "shrink_perturb", "adam", "sgd")
    assert f"all tasks is {mean_of('upgd', 'upgd', 'accuracy')} with UPGD" in text
    for arm in others:
        assert f"by {interval_of('upgd', 'upgd', arm, 'accuracy')}" in text
    lost = [mean_of("upgd", arm, "lost") for arm in others]
    against = "it loses {}, against {}, {}, {} and {}."
    assert against.format(mean_of("upgd", "upgd", "lost"), *lost) in text
    for measure, digits, words in (("dead", 3, "of its units are dead"), ("erank", 1, "against")):
        own, *rest = (
            mean_of("upgd", arm, measure, digits) for arm in ("upgd", "shrink_perturb", "adam")
        )
        assert f"{own} {words}" in text and all(value in text for value in rest)
    assert interval_of("upgd", "not_protecting", "shrink_perturb", "accuracy") in text
    found = rows(STREAMS / "upgd", "tests-primary")
    assert {row["verdict"] for row in found} == {
        "better"
    } and "each p 0.008, Holm over four" in text
    assert {f"{float(row['p_corrected']):.3f}" for row in found} == {"0.008"}


@pytest.mark.skipif(not (STREAMS / "regularisers").exists(), reason="not kept")
def test_what_the_page_of_the_streams_tells_of_l1_and_l2():
    study, text = "regularisers", told("L1 or L2")
    for arm, against in (("l2_strong", "none"), ("l1_strong", "none"), ("l1_strong", "l2_strong"),
                         ("l2", "none"), ("l1", "none")):  # fmt: skip
        assert interval_of(study, arm, against, "last_third") in text
    arms = ("none", "l2_strong", "l1_strong")
    for measure, digits in (("weight_size", 3), ("erank", 1), ("change_erank", 1)):
        values = [mean_of(study, arm, measure, digits) for arm in arms]
        words = "{} with none, {} with the stronger L2, {} with the stronger L1"
        assert (words if digits == 3 else "{}, {} and {}").format(*values) in text
    verdicts = {
        (r["arm"], r["against"]): (r["verdict"], f"{float(r['p_corrected']):.3f}")
        for r in rows(STREAMS / study, "tests-primary")
    }
    assert verdicts["l2_strong", "none"] == verdicts["l1_strong", "none"] == ("better", "0.012")
    assert verdicts["l1_strong", "l2_strong"] == ("worse", "0.012")
    assert verdicts["l2", "none"] == ("better", "0.035")
    assert verdicts["l1", "none"][0] == "difference not shown"
    assert "each p 0.012, Holm over six" in text and "(p 0.035)" in text


def test_what_the_page_of_the_streams_tells_of_tickets():
    kept = json.loads((STREAMS / "stream_tickets.json").read_text())
    text = told("Tickets once plasticity is lost")
    ticket, mask = (
        {n: np.mean(found[kind], axis=0) for n, found in kept["after"].items()}
        for kind in ("ticket", "random")
    )
    assert list(ticket) == ["0", "10", "50", "100"] and len(kept["after"]["0"]["ticket"]) == 10
    words = "{:.3f}, {:.3f}, {:.3f} and {:.3f}"
    for values in (
        [curve[0] for curve in ticket.values()],
        [curve.max() for curve in ticket.values()],
        gains := [curve.max() - curve[0] for curve in ticket.values()],
    ):
        assert words.format(*values) in text
    assert gains[3] > gains[0] - 0.005
    assert kept["densities"][-1] == pytest.approx(0.107, abs=0.001)
    assert f"({ticket['100'][-1]:.3f})" in text and f"fallen to {ticket['0'][-1]:.3f}." in text
    assert ticket["100"].max() - ticket["100"][-1] < 0.01
    assert f"{mask['100'][-1]:.3f} against {mask['0'][-1]:.3f}" in text


@pytest.mark.skipif(not (STREAMS / "renewal").exists(), reason="not kept")
def test_what_the_page_of_the_streams_tells_of_renewal():
    study, text = "renewal", told("Units that begin anew, or weights that move")
    assert f"accuracy is {mean_of(study, 'fixed', 'last_third')} on a fixed" in text
    for arm in ("cbp", "rigl", "set_size", "set"):
        assert interval_of(study, arm, "fixed", "last_third") in text
    found = rows(STREAMS / study, "tests-primary")
    verdicts = {(r["arm"], r["against"]): r["verdict"] for r in found}
    assert verdicts.pop(("cbp", "fixed")) == "better"
    same = {verdicts.pop((arm, "fixed")) for arm in ("rigl", "set_size")}
    assert same == {"difference not shown"} and set(verdicts.values()) == {"worse"}
    shown = {r["p_corrected"] for r in found if r["verdict"] != "difference not shown"}
    assert {f"{float(p):.3f}" for p in shown} == {"0.018"} and len(found) == 9
    dead = [mean_of(study, arm, "dead") for arm in ("rigl", "set_size", "fixed", "cbp")]
    words = "{} with RigL, {} with SET by size, {} on the fixed graph after the last task, {} with"
    assert words.format(*dead) in text
    sizes = [mean_of(study, arm, "weight_size") for arm in ("set", "fixed")]
    assert "weight is {} against {}".format(*sizes) in text


@pytest.mark.skipif(not (STREAMS / "utilities").exists(), reason="not kept")
def test_what_the_page_of_the_streams_tells_of_utilities():
    study, text = "utilities", told("Which units")
    found = rows(STREAMS / study, "tests-primary")
    for row in found:
        assert interval_of(study, row["arm"], row["against"], "last_third") in text
    better = {row["arm"] for row in found if row["verdict"] == "better"}
    assert better == {
        "contribution", "zero_contribution", "adaptable_contribution", "feature_by_input", "weight",
    }  # fmt: skip
    assert {f"{float(row['p_corrected']):.3f}" for row in found} == {"0.018"} and len(found) == 9
