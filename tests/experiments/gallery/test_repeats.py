"""Statements about chance: each world anew under many master seeds, all of them fixed.

Rates that must be expected: where there is no effect a test of size 0.05 says "a difference" in 3
or fewer of 20 studies, and in 2 or fewer of 12, each with chance 0.98; of 8 in 2 or fewer with
chance 0.99. A 95 % interval holds the truth in all others.
"""

from functools import cache

import pytest

from sparsecl.experiments.findings import tuned
from sparsecl.experiments.findings.collect import collect
from sparsecl.experiments.findings.orders import order_effects
from sparsecl.experiments.findings.trends import crossovers
from sparsecl.experiments.study.study_plan import read_plan
from tests.experiments.gallery.pipeline import CONTROL, read_world
from tests.experiments.gallery.worlds import Crossing, NoEffect, Orders, Rate, Saturation, Topology

pytestmark = pytest.mark.slow

CYCLES = {NoEffect: 2, Crossing: 4}
"""Those whose crossovers are looked for; a crossover needs 6 rounds."""
RATES = {Rate: (1e-3, 2e-3, 4e-3, 8e-3, 16e-3)}


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """(world, number) -> readings; each is made once."""

    @cache
    def read(world, number):
        more = CONTROL if world is Saturation else ""
        size = {
            "cycles": CYCLES.get(world, 1),
            "rates": RATES.get(world, (1e-3, 2e-3, 4e-3, 8e-3)),
            "seeds": range(7),
            "tuning_seeds": range(100, 106),
        }
        place = tmp_path_factory.mktemp(world.__name__)
        found = []
        for master in range(1, 1 + number):
            (place / f"{master}").mkdir()
            found.append(read_world(world(master), place / f"{master}", more, **size))
        return found

    with pytest.MonkeyPatch.context() as patch:
        # Trials are read three times by a study, and do not change in between.
        patch.setattr(tuned, "collect", cache(collect))
        patch.setattr(tuned, "read_plan", cache(read_plan))
        yield read


def holding(tests, truth):
    return sum(test.t.low <= truth <= test.t.high for test in tests)


def test_no_effect_is_rarely_told_as_one(many):
    found = many(NoEffect, 20)
    assert sum(one.primary.significant for one in found) <= 3
    assert sum(one.equal_loss.adjusted <= 0.05 for one in found) <= 3
    assert holding([one.primary.test for one in found], 0.0) >= 17
    assert holding([one.equal_loss.test for one in found], 0.0) >= 17
    assert sum(one.primary.test.equivalence.inside for one in found) >= 17
    assert sum(c.result.round is not None for one in found for c in crossovers(one.study)) <= 3


def test_the_rate_is_rarely_told_as_topology(many):
    found = many(Rate, 12)
    assert {tuple(one.taken.values()) for one in found} == {(0.002, 0.008)}
    assert sum(one.primary.significant for one in found) <= 2
    assert sum(one.equal_loss.adjusted <= 0.05 for one in found) <= 2
    assert holding([one.equal_loss.test for one in found], 0.0) >= 10
    for one in found:
        assert all(each.test.t.high < 0 for each in one.over_rates("one rate"))


def test_topology_is_found_every_time(many):
    found = many(Topology, 5)
    for one in found:
        assert one.primary.significant and one.primary.improves
        assert one.equal_loss.adjusted <= 0.05 and one.equal_loss.test.mean < 0
    assert holding([one.primary.test for one in found], -0.3) >= 3
    assert holding([one.equal_loss.test for one in found], -0.3) >= 3


def test_saturation_is_rarely_told_as_topology(many):
    found = many(Saturation, 8)
    assert all(one.primary.significant and not one.primary.improves for one in found)
    assert sum(one.control.significant for one in found) <= 2
    assert holding([one.control.test for one in found], 0.0) >= 6


def test_a_crossover_is_found_where_it_is(many):
    for one in many(Crossing, 4):
        (found,) = crossovers(one.study)
        low, high = found.result.interval
        assert low <= Crossing.at <= high and high - low <= 2
        assert abs(found.result.round - Crossing.at) <= 1


def test_orders_of_opposite_sign_are_rarely_told_as_a_difference(many):
    found = many(Orders, 5)
    assert sum(one.primary.significant for one in found) <= 1
    for one in found:
        forth, back = (e.interval for e in order_effects(one.study)[:2])
        assert forth.high < 0 < back.low
