"""Every number of the answer, computed again from the CSV tables of the report, in a few lines."""

import itertools
import re

import numpy as np
import pytest
from scipy import optimize, stats
from scipy.interpolate import CubicSpline

from sparsecl.experiments.findings.frontier import frontier_text
from sparsecl.experiments.report import answer
from tests.experiments.gallery.worlds import WORLDS

MARGIN = 0.05


def numbers(text):
    """All numbers of a text, with a sign that follows a space or a bracket."""
    return [float(found) for found in re.findall(r"(?<![\w.])[-+]?\d+(?:\.\d+)?", text)]


def differences(rows, arm, against, order=None):
    """One for each seed: mean over the orders, or in one of them."""

    def of(name):
        found = {}
        for row in rows:
            if row["arm"] == name and order in (None, row["order"]):
                found.setdefault(row["seed"], []).append(float(row["F_last"]))
        return {seed: np.mean(values) for seed, values in found.items()}

    first, second = of(arm), of(against)
    return np.array([first[seed] - second[seed] for seed in sorted(first)])


def t_ends(values, level):
    return stats.t.interval(level, len(values) - 1, values.mean(), stats.sem(values))


def sign_flip(values):
    sums = [abs(np.dot(s, values)) for s in itertools.product((1, -1), repeat=len(values))]
    return np.mean(np.array(sums) >= abs(values.sum()) - 1e-12)


def detectable(values, alpha=0.05, wanted=0.8):
    n, hurdle = len(values), stats.t.ppf(1 - alpha / 2, len(values) - 1)

    def missing(shift):
        return stats.nct.sf(hurdle, n - 1, shift) + stats.nct.cdf(-hurdle, n - 1, shift) - wanted

    return optimize.brentq(missing, 0, 8) * stats.sem(values)


def contrast_numbers(values):
    """What the sentence of one contrast must hold, where one contrast is corrected."""
    p, n = sign_flip(values), len(values)
    found = [values.mean(), 95, *t_ends(values, 0.95), n, n, p, 1]
    low, high = t_ends(values, 0.90)
    inside = -MARGIN <= low and high <= MARGIN
    if p > 0.05 or inside:
        found += [90, low, high, MARGIN]
    found += [MARGIN] if inside else []  # "equivalent within"
    return found, p, inside


@pytest.mark.parametrize("name", WORLDS)
def test_of_the_planned_contrast(reading, name):
    one = reading(name)
    values = differences(one.seeds, "sparse", "dense")
    expected, p, inside = contrast_numbers(values)
    expected += [] if p <= 0.05 or inside else [detectable(values), 80]
    (sentence,) = answer.sentences(one.study, one.comparison)
    assert numbers(sentence) == pytest.approx(expected, abs=5.1e-5)
    shown = [1, 1, 0.05] if p <= 0.05 else [0.05]
    assert numbers(answer.headline(one.study, one.comparison)) == shown


def test_of_the_control(reading):
    one = reading("Saturation")
    values = differences(one.seeds, "sparse", "sparse.equal_parameters")
    (said,) = answer.cautions(one.study, one.comparison, one.trends)
    assert numbers(said) == pytest.approx(contrast_numbers(values)[0], abs=5.1e-5)


def test_of_the_orders(reading):
    one = reading("Orders")
    expected = []
    for order in ("forth", "back"):
        values = differences(one.seeds, "sparse", "dense", order)
        expected += [values.mean(), *t_ends(values, 0.95)]
    (said,) = answer.cautions(one.study, one.comparison, one.trends)
    assert numbers(said) == pytest.approx(expected, abs=5.1e-5)


def least_forgetting(rows, arm, seed):
    """Learned losses, rising, and the least that is forgotten at each or below."""
    own = [row for row in rows if (row["arm"], row["seed"]) == (arm, seed)]
    rate, x, y = np.array(
        [[float(row[k]) for k in ("optimizer.lr", "learned_loss", "F_last")] for row in own]
    ).T
    u = np.log(rate)
    fine = np.concatenate([np.linspace(u[k], u[k + 1], 33) for k in range(len(u) - 1)])
    fine_x, fine_y = CubicSpline(u, x)(fine), CubicSpline(u, y)(fine)
    kept = (fine_x >= x.min()) & (fine_y >= y.min())
    x, y = np.concatenate([x, fine_x[kept]]), np.concatenate([y, fine_y[kept]])
    best = [k for k in np.argsort(x) if y[k] <= y[x <= x[k]].min()]
    return x[best], y[best]


@pytest.mark.parametrize("name", [name for name in WORLDS if name != "Noisy"])
def test_at_equal_learned_loss(reading, name):
    """From trials.csv. Holm has one contrast to correct over."""
    one = reading(name)
    seeds = sorted({row["seed"] for row in one.trials})
    curves = {
        (arm, s): least_forgetting(one.trials, arm, s) for arm in ("sparse", "dense") for s in seeds
    }
    low = max(x[0] for x, _ in curves.values())
    high = min(x[-1] for x, _ in curves.values())
    grid = np.linspace(low, high, 33)
    means = {key: np.interp(grid, *curve).mean() for key, curve in curves.items()}
    values = np.array([means["sparse", s] - means["dense", s] for s in seeds])
    (line,) = frontier_text(one.trends.family_contrasts)
    expected = [values.mean(), *t_ends(values, 0.95), len(seeds), low, high, sign_flip(values)]
    assert numbers(line) == pytest.approx(expected, abs=6e-4)  # learned losses: 4 digits in all
    assert numbers(line)[:3] == pytest.approx(expected[:3], abs=5.1e-5)


@pytest.mark.parametrize("name", WORLDS)
def test_of_the_choice_of_the_rates(reading, name):
    """The rate that is taken has the lowest mean final loss, or is as good and nearer to 0.002."""
    one = reading(name)
    for arm, taken in one.taken.items():
        scores = {}
        for row in one.trials:
            if row["arm"] == arm:
                scores.setdefault(float(row["optimizer.lr"]), []).append(float(row["final_loss"]))
        best = min(scores, key=lambda rate: np.mean(scores[rate]))
        as_good = [
            rate
            for rate in scores
            for gaps in [np.subtract(scores[rate], scores[best])]
            if rate == best or gaps.mean() <= stats.sem(gaps)
        ]
        assert taken == min(as_good, key=lambda rate: (abs(np.log(rate / 0.002)), rate))
