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

RESULTS = Path(__file__).resolve().parents[2] / "launch" / "experiments" / "results"
KEPT = sorted(RESULTS.glob("*/"))
DOMAINS = ("code", "math", "medical", "legal", "dialogue")
SENTENCE = re.compile(
    r"^- (\S+) minus (\S+), (\w+): ([+-]?[\d.]+) \S.*?"
    r"95 % interval \[([+-]?[\d.]+), ([+-]?[\d.]+)\], (\d+) of (\d+) seeds",
    re.MULTILINE,
)


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
    for arm, against, measure, mean, low, high, n, planned in found:
        values = differences(kept, arm, against, measure)
        assert len(values) == int(n) <= int(planned)
        half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
        told = [float(mean), float(low), float(high)]
        again = [values.mean(), values.mean() - half, values.mean() + half]
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


def test_each_arm_has_the_rate_with_the_best_mean_of_its_trials(kept):
    plan = json.loads((kept / "plan.json").read_text())
    if not plan["tuning"]:
        return
    by, key = plan["tuning"]["config"]["by"], "optimizer.lr"
    for arm in plan["tuning"]["arms"]:
        scores = defaultdict(list)
        for row in rows(kept, "trials"):
            if row["arm"] == arm["arm"]:
                scores[float(row[key])].append(float(row[by]))
        means = {rate: np.mean(values) for rate, values in scores.items()}
        assert arm["best"][key] == min(means, key=lambda rate: means[rate])
        as_good = [arm["best"][key], *(tie[key] for tie in arm["ties"])]
        assert arm["taken"][key] in as_good


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
