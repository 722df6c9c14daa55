"""Every number that the kept results tell is made again from their tables, by a few plain lines."""

import csv
import itertools
import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from scipy.interpolate import CubicSpline

RESULTS = Path(__file__).resolve().parents[2] / "launch" / "experiments" / "results"
STREAMS = RESULTS.parents[1] / "streams" / "results"
KEPT = sorted(RESULTS.glob("*/")) + sorted(STREAMS.glob("*/"))
DOMAINS = ("code", "math", "medical", "legal", "dialogue")
SENTENCE = re.compile(
    r"^- (\S+) minus (\S+), (\w+): ([+-]?[\d.]+) \S.*?"
    r"(95 % interval|seeds from) \D*?([+-]?[\d.]+)\D+?([+-]?[\d.]+)[\])], (\d+) of (\d+) seeds",
    re.MULTILINE,
)
"""Below 6 seeds there is no interval, and the range of the seeds in its place."""


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    with open(folder / "tables" / f"{name}.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def by_seed(folder: Path, arm: str, measure: str) -> dict[str, float]:
    """Seed -> mean over the orders."""
    found = defaultdict(list)
    for row in rows(folder, "seeds"):
        if row["arm"] == arm:
            found[row["seed"]].append(float(row[measure]))
    return {seed: float(np.mean(values)) for seed, values in found.items()}


def differences(folder: Path, arm: str, against: str, measure: str) -> np.ndarray:
    one, two = by_seed(folder, arm, measure), by_seed(folder, against, measure)
    return np.array([one[seed] - two[seed] for seed in one if seed in two])


def matrix(folder: Path, arm: str) -> list[dict[str, str]]:
    """Mean losses, one row after each phase."""
    return rows(folder, f"matrix-{arm}")[1:]


@pytest.fixture(params=KEPT, ids=lambda path: path.name)
def kept(request):
    return request.param


def test_the_sentences_are_those_of_the_runs(kept):
    text = (kept / "README.md").read_text()
    found = SENTENCE.findall(text)
    assert found, "no sentence with an interval"
    for arm, against, measure, mean, what, low, high, n, planned in found:
        values = differences(kept, arm, against, measure)
        assert len(values) == int(n) <= int(planned)
        half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
        ends = values.mean() + np.array([-half, half])
        if what == "seeds from":
            ends = np.array([values.min(), values.max()])
        told = [float(mean), float(low), float(high)]
        again = [values.mean(), *ends]
        assert told == pytest.approx(again, abs=6e-5, rel=6e-4), (arm, against, measure)


def test_the_p_of_every_planned_contrast_is_that_of_its_signs(kept):
    plan = json.loads((kept / "plan.json").read_text())
    primary = plan["analysis"]["metrics"][0]
    told = [row for row in rows(kept, "tests-primary") if row["p"]]
    for row in told:
        values = differences(kept, row["arm"], row["against"], primary)
        signs = np.array(list(itertools.product([1, -1], repeat=len(values))))
        sums = np.abs(signs @ values)
        p = np.mean(sums >= np.abs(values.sum()) - 1e-12)
        assert float(row["p"]) == pytest.approx(p), row
    raw = sorted(float(row["p"]) for row in told)
    holm = np.maximum.accumulate([min(1.0, (len(raw) - k) * p) for k, p in enumerate(raw)])
    assert sorted(float(row["p_corrected"]) for row in told) == pytest.approx(list(holm))


def test_each_arm_has_the_values_with_the_best_mean_of_its_trials(kept):
    plan = json.loads((kept / "plan.json").read_text())
    if not plan["tuning"]:
        return
    by = plan["tuning"]["config"]["by"]
    for arm in plan["tuning"]["arms"]:
        keys = list(arm["best"])
        scores = defaultdict(list)
        for row in rows(kept, "trials"):
            if row["arm"] == arm["arm"]:
                scores[tuple(float(row[key]) for key in keys)].append(float(row[by]))
        means = {values: np.mean(found) for values, found in scores.items()}
        best = min(means, key=lambda values: means[values])
        assert tuple(arm["best"].values()) == pytest.approx(best)
        as_good = [arm["best"], *({key: tie[key] for key in keys} for tie in arm["ties"])]
        assert arm["taken"] in as_good


def test_what_is_kept_is_small_and_names_no_machine(kept):
    files = [path for path in kept.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2_000_000
    for path in files:
        if path.suffix != ".png":
            assert not re.search(r"/(work|home|tmp|root)/", path.read_text()), path


@pytest.mark.skipif(not (RESULTS / "exp3_crossover").exists(), reason="not kept")
def test_what_the_page_of_the_studies_tells_of_experiment_3():
    text = " ".join((RESULTS.parent / "README.md").read_text().split())
    folder = RESULTS / "exp3_crossover"

    def interval(arm: str, measure: str) -> str:
        values = differences(folder, arm, "dense", measure)
        half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
        return f"by {values.mean():.3f} [{values.mean() - half:.3f}, {values.mean() + half:.3f}]"

    for arm, label in (("rho_05", "5 %"), ("rho_10", "10 %")):
        ends = interval(arm, "final_loss")
        mean = np.mean(list(by_seed(folder, arm, "final_loss").values()))
        assert f"{mean:.3f} at {label} ({ends})" in text
        assert f"{interval(arm, 'F_last')} at {label}" in text
    verdicts = [row["verdict"] for row in rows(folder, "tests-secondary") if row["margin"]]
    assert verdicts == ["worse, yet equivalent within 0.05"] * 2 and "margin of 0.05" in text
    dense = np.mean(list(by_seed(folder, "dense", "final_loss").values()))
    assert f"final loss {dense:.3f} dense" in text
    told = {row["arm"]: row for row in rows(folder, "crossover") if row["curve"] == "all domains"}
    five, ten = (f"{told[a]['round']} [{told[a]['low']}, {told[a]['high']}]" for a in told)
    assert f"in round {five} and {ten}" in text
    assert all(row["text"].endswith("not below in every later round") for row in told.values())
    assert all(not row["round"] for row in rows(folder, "crossover") if row["curve"] == "code")
    # The difference of the mean curves changes its sign for good at about round 30.
    curves = {
        arm: np.mean(
            [[float(v) for k, v in row.items() if k in DOMAINS] for row in matrix(folder, arm)],
            axis=1,
        )
        for arm in ("dense", "rho_05", "rho_10")
    }
    for arm in ("rho_05", "rho_10"):
        gap = np.convolve(curves[arm] - curves["dense"], np.ones(3) / 3, mode="valid")
        assert gap[8:20].max() < 0 < gap[36:].min()


def frontier(folder: Path, arm: str, seed: str) -> tuple[np.ndarray, np.ndarray]:
    """Learned loss, rising, and the smallest forgetting at it, on 4,000 rates."""
    found = [row for row in rows(folder, "trials") if (row["arm"], row["seed"]) == (arm, seed)]
    points = sorted(
        (float(r["optimizer.lr"]), float(r["learned_loss"]), float(r["F_last"])) for r in found
    )
    rates, learned, forgotten = map(np.array, zip(*points, strict=True))
    at = np.linspace(*np.log(rates[[0, -1]]), 4000)
    x, y = (CubicSpline(np.log(rates), values)(at) for values in (learned, forgotten))
    as_run = (x >= learned.min()) & (y >= forgotten.min())
    order = np.argsort(np.append(x[as_run], learned))
    x = np.append(x[as_run], learned)[order]
    return x, np.minimum.accumulate(np.append(y[as_run], forgotten)[order])


def at_equal_loss(folder: Path, arm: str, against: str) -> np.ndarray:
    """Difference of the mean forgetting over the learned losses that all seeds reach, by seed."""
    seeds = sorted({row["seed"] for row in rows(folder, "trials")})
    curves = {(a, s): frontier(folder, a, s) for a in (arm, against) for s in seeds}
    low = max(x[0] for x, _ in curves.values())
    high = min(x[np.argmin(y)] for x, y in curves.values())
    grid = np.linspace(low, high, 200)
    mean = {key: np.interp(grid, x, y).mean() for key, (x, y) in curves.items()}
    return np.array([mean[arm, seed] - mean[against, seed] for seed in seeds])


@pytest.mark.skipif(not (RESULTS / "exp1_density").exists(), reason="not kept")
def test_what_the_pages_tell_of_experiment_1():
    folder = RESULTS / "exp1_density"
    page, first = (
        " ".join(path.read_text().split())
        for path in (RESULTS.parent / "README.md", RESULTS.parents[2] / "README.md")
    )
    labels = {f"rho_{share:02}": f"{share} %" for share in (1, 5, 10, 20, 30)}
    means = {}
    for row in rows(folder, "frontier"):
        if row["compared"] != "at equal learned loss":
            continue
        arm, values = row["family"], at_equal_loss(folder, row["family"], "dense")
        half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
        told = [float(row[key]) for key in ("difference", "low", "high")]
        again = [values.mean(), values.mean() - half, values.mean() + half]
        assert told == pytest.approx(again, abs=4e-3), arm
        means[arm] = told
    assert set(means) == set(labels)
    for arm, (mean, low, high) in means.items():
        ends = f"{mean:.3f} [{low:.3f}, {high:.3f}]"
        assert (f"{ends} at {labels[arm]}" if arm != "rho_01" else ends) in page, arm
        assert (low < 0 < high) == (arm != "rho_01")
    others = [mean for arm, (mean, *_) in means.items() if arm != "rho_01"]
    assert f"differs by {min(others):.3f} to {max(others):.3f} nats" in first
    size, *ends = (abs(value) for value in means["rho_01"])
    assert f"forgets less, by {size:.3f} [{min(ends):.3f}, {max(ends):.3f}]" in first
    # The smallest p of 6 pairs, times the family.
    assert f"{min(1.0, 5 * 2 / 2**6):.3f}"[:5] in page and "0.156" in first

    def interval(arm: str, against: str, measure: str) -> str:
        values = differences(folder, arm, against, measure)
        half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
        size, ends = abs(values.mean()), sorted(abs(values.mean() + x) for x in (half, -half))
        return f"{size:.3f} [{ends[0]:.3f}, {ends[1]:.3f}]"

    assert f"1 % forgets {interval('rho_01', 'dense', 'F_last')}" in page
    assert f"5 % {interval('rho_05', 'dense', 'F_last')} less than dense" in page
    assert f"by {interval('rho_01', 'dense', 'final_loss')}" in page
    assert f"final loss, by {interval('rho_01', 'dense', 'final_loss')}" in first
    assert f"forgets {interval('rho_10', 'rho_10.equal_parameters', 'F_last')} less" in page
    small, ten = (
        np.mean(list(by_seed(folder, arm, "learned_loss").values()))
        for arm in ("rho_10.equal_parameters", "rho_10")
    )
    assert f"({small:.3f} against {ten:.3f})" in page
    moved = [
        abs(float(row["difference"]))
        for row in rows(folder, "frontier")
        if row["compared"] == "at equal movement"
    ]
    assert f"by {min(moved):.3f} to {max(moved):.3f}, which" in page
    taken = {row["arm"]: float(row["optimizer.lr_taken"]) for row in rows(folder, "tuned")}
    assert taken == {"dense": 1e-3, **dict.fromkeys(labels, 2e-3)}


def test_the_page_tells_experiment_2_as_its_tables_do():
    page = " ".join((RESULTS.parent / "README.md").read_text().split())
    text = page[page.index("**Experiment 2**") : page.index("**Experiment 3**")]
    told = re.findall(r"(-?[\d.]+) \[(-?[\d.]+), (-?[\d.]+)\]", text)
    found = rows(RESULTS / "exp2_topology", "tests-primary")
    assert len(told) == len(found) == 6
    for numbers, row in zip(told, found, strict=True):
        again = [float(row[key]) for key in ("difference", "low", "high")]
        assert list(map(float, numbers)) == pytest.approx(again, abs=5.1e-4)
    equal = [row["arm"] for row in found if row["verdict"] == "equivalent within 0.05"]
    assert equal == ["brf_r03", "bsw", "expander"]


def test_the_page_tells_of_graphs_that_move_as_the_tables_do():
    folder = RESULTS / "rewiring_10"
    page = " ".join((RESULTS.parent / "README.md").read_text().split())
    text = page[page.index("**Graphs that move**") : page.index("**Graphs that move, at 5 %**")]
    told = re.findall(r"(-?[\d.]+) \[(-?[\d.]+), (-?[\d.]+)\]", text)
    planned = [(row["arm"], "final_loss") for row in rows(folder, "tests-primary")]
    order = [*planned, ("rigl", "learned_loss"), ("granet", "F_last"), ("chtss", "F_last")]
    arms = ["set", "chts", "rigl", "frozen_set", "frozen_rigl", "frozen_chts"]
    order[:6] = sorted(planned, key=lambda found: arms.index(found[0]))
    for numbers, (arm, measure) in zip(told, order, strict=True):
        values = differences(folder, arm, "static", measure)
        half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
        again = [values.mean(), values.mean() - half, values.mean() + half]
        assert list(map(float, numbers)) == pytest.approx(again, abs=5.1e-4)
    verdicts = {row["arm"]: row["verdict"] for row in rows(folder, "tests-primary")}
    equal = {arm for arm, verdict in verdicts.items() if verdict == "equivalent within 0.05"}
    assert equal == {"set", "chts", "frozen_set", "frozen_chts"} and verdicts["rigl"] == "worse"
    p = {row["arm"]: f"{float(row['p_corrected']):.3f}" for row in rows(folder, "tests-primary")}
    assert f"p {p['rigl']} after" in text and f"not shown, p {p['frozen_rigl']})" in text
    learned = [
        -differences(folder, arm, "static", "learned_loss").mean() for arm in ("granet", "chtss")
    ]
    assert "learn more (by {:.3f} and {:.3f})".format(*learned) in text
    assert {row["optimizer.lr_taken"] for row in rows(folder, "tuned")} == {"0.004"}
    assert "all of them to 4e-3" in text


def test_the_page_tells_of_graphs_that_move_at_5_percent_as_the_tables_do():
    folder = RESULTS / "rewiring_05"
    page = " ".join((RESULTS.parent / "README.md").read_text().split())
    text = page[page.index("**Graphs that move, at 5 %**") : page.index("**Tickets**")]
    told = re.findall(r"(-?[\d.]+) \[(-?[\d.]+), (-?[\d.]+)\]", text)
    arms = ["set", "chts", "rigl", "frozen_set", "frozen_chts", "frozen_rigl"]
    order = [*((arm, "final_loss") for arm in arms), ("granet", "F_last"), ("chtss", "F_last")]
    for numbers, (arm, measure) in zip(told, order, strict=True):
        values = differences(folder, arm, "static", measure)
        half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
        again = [values.mean(), values.mean() - half, values.mean() + half]
        assert list(map(float, numbers)) == pytest.approx(again, abs=5.1e-4)
    verdicts = {row["arm"]: row["verdict"] for row in rows(folder, "tests-primary")}
    equal = {arm for arm, verdict in verdicts.items() if verdict == "equivalent within 0.05"}
    assert equal == {"set", "chts", "frozen_set", "frozen_chts"}
    assert verdicts["frozen_rigl"] == "worse" and verdicts["rigl"] == "difference not shown"
    p = {row["arm"]: f"{float(row['p_corrected']):.3f}" for row in rows(folder, "tests-primary")}
    assert f"not shown, p {p['rigl']})" in text and f"worse, p {p['frozen_rigl']})" in text
    taken = {row["arm"]: row["optimizer.lr_taken"] for row in rows(folder, "tuned")}
    lower = {arm for arm, rate in taken.items() if rate == "0.002"}
    assert lower == {"frozen_granet", "frozen_chtss"} and set(taken.values()) == {"0.002", "0.004"}


@pytest.mark.skipif(not (RESULTS / "tickets").exists(), reason="not kept")
def test_what_the_page_of_the_studies_tells_of_tickets():
    text = " ".join((RESULTS.parent / "README.md").read_text().split())
    text = text[text.index("**Tickets**") : text.index("**Methods**")]
    folder = RESULTS / "tickets"

    def interval(arm: str, against: str, sign: int = 1) -> str:
        values = sign * differences(folder, arm, against, "first_loss")
        half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
        told = [f"{v:.3f}" for v in (values.mean(), values.mean() - half, values.mean() + half)]
        return f"{told[0]} [{told[1]}, {told[2]}]"

    def mean(arm: str) -> str:
        return f"{np.mean(list(by_seed(folder, arm, 'first_loss').values())):.3f}"

    assert f"reaches a loss of {mean('imp.4')}: {interval('imp.4', 'imp.4.one_shot', -1)}" in text
    assert f"{interval('imp.4', 'imp.4.random', -1)} below a random mask" in text
    assert f"{interval('imp.4', 'imp.4.reinit', -1)} below the same mask" in text
    assert f"{interval('imp.4', 'rewound', -1)} below the dense model" in text
    assert f"a random one by {interval('imp.4.reinit', 'imp.4.random')}" in text
    assert f"as good as the ticket, {interval('imp.1', 'imp.1.random')}" in text
    assert f"9 % reach {mean('layer.4')}" in text
    shares = defaultdict(list)
    for row in rows(folder, "overlap"):
        shares[row["first"], row["second"]].append(float(row["both"]) / float(row["chance"]))
    ratios = {pair: float(np.mean(values)) for pair, values in shares.items()}
    assert len(ratios) == 10 and all(len(values) == 8 for values in shares.values())
    least, most = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
    assert (set(least), set(most)) == ({"legal", "dialogue"}, {"math", "manual"})
    assert f"{ratios[least]:.2f} (legal, dialogue) to {ratios[most]:.2f} times (math" in text


@pytest.mark.skipif(not (RESULTS / "compare_methods").exists(), reason="not kept")
def test_what_the_page_of_the_studies_tells_of_methods():
    text = " ".join((RESULTS.parent / "README.md").read_text().split())
    text = text[text.index("**Methods**") : text.index("**All methods, a first look**")]
    folder, names = RESULTS / "compare_methods", ("ewc", "si", "replay", "derpp", "o_lora")
    pairs = [(f"{kind}_{name}", kind) for kind in ("dense", "sparse") for name in names]
    told = re.findall(r"(-?[\d.]+) \[(-?[\d.]+), (-?[\d.]+)\]", text)
    for numbers, (arm, against) in zip(told, [*pairs, ("sparse", "dense")], strict=True):
        values = differences(folder, arm, against, "F_last")
        half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
        again = [values.mean(), values.mean() - half, values.mean() + half]
        assert list(map(float, numbers)) == pytest.approx(again, abs=5.1e-4)
    ends = [
        f"{np.mean(list(by_seed(folder, arm, 'final_loss').values())):.3f}"
        for name in ("derpp", "replay", "", "o_lora")
        for arm in (f"dense_{name}".rstrip("_"), f"sparse_{name}".rstrip("_"))
    ]
    assert re.findall(r"\d\.\d{3}", text[text.index("Final loss") :])[:8] == ends
    assert min(float(row["p_corrected"]) for row in rows(folder, "tests-primary")) > 0.343


@pytest.mark.skipif(not (RESULTS / "all_methods").exists(), reason="not kept")
def test_what_the_page_of_the_studies_tells_of_all_methods():
    text = " ".join((RESULTS.parent / "README.md").read_text().split())
    text = text[text.index("**All methods, a first look**") : text.index("**Sleep, down-scaling")]
    folder, kinds = RESULTS / "all_methods", ("dense", "sparse")
    told = {row["arm"]: row for row in rows(folder, "told")}

    def mean(arm: str, measure: str = "F_last") -> float:
        return float(np.mean(list(by_seed(folder, arm, measure).values())))

    names = ("ewc", "si", "mas", "lwf", "agem", "gem", "replay", "self_replay", "derpp")
    again = [mean(arm) for k in kinds for arm in (k, *(f"{k}_{name}" for name in names))]
    again += [float(told[f"{kind}_xdg"]["F_last told"]) for kind in kinds]
    again += [mean("sparse_xdg")]
    ends = [*kinds, "dense_o_lora", "sparse_o_lora", "dense_memory", "sparse_memory"]
    again += [mean(arm, "final_loss") for arm in ends]
    assert re.findall(r"-?\d\.\d{3}", text) == [f"{value:.3f}" for value in again]
    for kind, name in itertools.product(kinds, ("lwf", "si", "derpp")):
        assert differences(folder, f"{kind}_{name}", kind, "F_last").max() < 0
    for kind in kinds:
        for name in ("packnet", "progressive"):
            assert float(told[f"{kind}_{name}"]["F_last told"]) == 0
        assert float(told[f"{kind}_xdg"]["F_last told"]) < mean(kind)
        for name in ("cbp", "redo", "shrink_perturb"):
            assert abs(mean(f"{kind}_{name}") - mean(kind)) < 0.02
    hardly = {f"{k}_{n}" for k in kinds for n in ("packnet", "lora", "o_lora", "n_lora", "memory")}
    for arm in (*hardly, "sparse_dst_cl"):
        kind = arm.split("_")[0]
        assert differences(folder, arm, kind, "final_loss").min() > 0
        assert mean(arm, "learned_loss") > mean(kind, "learned_loss") + 0.9


@pytest.mark.skipif(not (RESULTS / "hst").exists(), reason="not kept")
def test_what_the_page_of_the_studies_tells_of_the_four_switches():
    text = " ".join((RESULTS.parent / "README.md").read_text().split())
    text = text[text.index("**Sleep, down-scaling") : text.index("## The plan for sizes")]
    folder, switches = RESULTS / "hst", ("sleep", "down", "rewire", "sparse")

    def mean(arm: str, measure: str = "F_last") -> str:
        return f"{np.mean(list(by_seed(folder, arm, measure).values())):.3f}"

    def arm(on: set[str]) -> str:
        return "_".join(switch for switch in switches if switch in on) or "plain"

    def told(values: np.ndarray) -> str:
        return f"{values.mean():.3f} (seeds from {values.min():.3f} to {values.max():.3f})"

    def effect(switch: str, measure: str) -> np.ndarray:
        """Of a switch over the eight pairs of arms that it alone sets apart, by seed."""
        others = [one for one in switches if one != switch]
        subsets = [set(on) for k in range(4) for on in itertools.combinations(others, k)]
        pairs = [differences(folder, arm(on | {switch}), arm(on), measure) for on in subsets]
        assert len(pairs) == 8
        return np.mean(pairs, axis=0)

    words = {"sleep": "sleep", "down-scaling": "down", "rewiring": "rewire"}
    table = re.findall(r"\| ([a-z+ -]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", text)
    assert len({name for name, *_ in table}) == 8
    for name, *numbers in table:
        on = {words[word] for word in name.split(" + ")} if name != "none" else set()
        arms = (arm(on), arm(on | {"sparse"}))
        assert numbers == [mean(a, m) for m in ("F_last", "final_loss") for a in arms]
    for switch, name in (("sparse", "sparse connection"), ("rewire", "rewiring")):
        assert f"{name} by {told(differences(folder, switch, 'plain', 'F_last'))}" in text
    for switch, name in (("sleep", "sleep changes `F_last`"), ("down", "down-scaling")):
        assert f"{name} by {told(differences(folder, switch, 'plain', 'F_last'))}" in text
    assert f"sleep changes it by {told(effect('sleep', 'F_last'))}" in text
    assert f"and final loss by {told(effect('sleep', 'final_loss'))}" in text
    learned = [mean(a, "learned_loss") for a in ("sparse", "plain", "rewire_sparse")]
    assert "({} against {})".format(*learned[:2]) in text and f"({learned[2]})" in text
    assert learned[2] < learned[1] < learned[0]
    assert abs(differences(folder, "sparse", "plain", "final_loss").mean()) < 0.02
    for on in ({"sleep"}, {"sleep", "down"}, {"sleep", "rewire"}, {"sleep", "down", "rewire"}):
        assert differences(folder, arm(on | {"sparse"}), arm(on), "F_last").min() > 0
        assert differences(folder, arm(on | {"sparse"}), arm(on), "final_loss").mean() < 0
    rates = {row["arm"]: row["optimizer.lr_taken"] for row in rows(folder, "tuned")}
    fast = {name for name in rates if "sparse" in name and "sleep" in name} | {"rewire_sparse"}
    assert {name for name, rate in rates.items() if rate == "0.008"} == fast
    assert set(rates.values()) == {"0.004", "0.008"}
    assert f"Dense: {mean('dense')} and {mean('dense', 'final_loss')}." in text
