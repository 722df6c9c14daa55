"""What a repository keeps of a study: small, whole or absent, and enough to recompute it all."""

import csv
import re

import numpy as np
import pytest

from sparsecl.errors import CannotCreateError, UserError
from sparsecl.experiments.findings.collect import collect
from sparsecl.experiments.report.publish import publish
from sparsecl.experiments.study.study_plan import read_plan
from tests.experiments.fake_study import FakeArm, write_study

ARMS = (FakeArm(name="dense", kind="dense", density=1.0), FakeArm(name="er", forgets=0.2))


def test_every_number_can_be_made_again_from_what_is_kept(tmp_path):
    study = collect(write_study(tmp_path / "s", ARMS))
    text = publish(study, tmp_path / "kept").read_text()
    assert read_plan(tmp_path / "kept") == study.plan
    with open(tmp_path / "kept" / "tables" / "seeds.csv") as file:
        rows = list(csv.DictReader(file))
    f_last = {(row["arm"], int(row["seed"])): float(row["F_last"]) for row in rows}
    assert len(f_last) == 16
    mean = np.mean([f_last["er", seed] - f_last["dense", seed] for seed in range(8)])
    (told,) = re.findall(r"er minus dense, F_last: ([+-][\d.]+) nats", text)
    assert float(told) == pytest.approx(mean, rel=1e-3)
    for name in re.findall(r"\((figures/\w+\.png)\)", text):
        assert (tmp_path / "kept" / name).stat().st_size > 1000
    for word in ("python launch/study.py --config studies/fake.yaml", "commit: 0123abcd"):
        assert word in text
    again = publish(study, tmp_path / "kept")  # in the place of the older one
    assert again.read_text() == text
    assert sum(f.stat().st_size for f in (tmp_path / "kept").rglob("*.*")) < 1_000_000


@pytest.mark.parametrize("num_seeds", [5, 6])
def test_crossovers_are_kept_where_an_arm_was_tested_for_one(num_seeds, tmp_path):
    order = (0, 1, 0, 1, 0, 1)
    study = collect(write_study(tmp_path / "s", ARMS, seeds=range(num_seeds), order=order))
    text = publish(study, tmp_path / "kept").read_text()
    assert ("Crossover with the reference" in text) == (num_seeds == 6)
    assert (tmp_path / "kept" / "figures" / "crossover.png").exists() == (num_seeds == 6)


def test_what_is_not_done_or_not_ours_is_left_alone(tmp_path):
    study = collect(write_study(tmp_path / "s", ARMS, missing=[("er", 3)]))
    with pytest.raises(UserError, match="1 of 16 runs are still to come"):
        publish(study, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("mine")
    study = collect(write_study(tmp_path / "t", ARMS))
    before = sorted((tmp_path / "t").rglob("*"))
    for place in (tmp_path / "other", tmp_path / "t"):  # a study has a plan.json too
        with pytest.raises(CannotCreateError, match="is not a kept result; name another folder"):
            publish(study, place)
    assert sorted((tmp_path / "t").rglob("*")) == before
