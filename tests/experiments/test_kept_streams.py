"""What the page of the streams tells of kept results is made again from their tables."""

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
