"""The table for the terminal: its numbers, its width, and what it warns of."""

import numpy as np

from sparsecl.experiments.findings.collect import collect
from sparsecl.experiments.findings.study_table import study_table
from tests.experiments.fake_study import FakeArm, last_forgetting, scores, write_study

DENSE, SPARSE = FakeArm(name="dense", kind="dense", density=1.0), FakeArm(name="er", forgets=0.2)


def test_the_numbers_of_a_line(tmp_path):
    study = collect(
        write_study(tmp_path, [DENSE, SPARSE], seeds=range(8), failed={("er", 2): "loss is nan"})
    )
    text = study_table(study)
    head, _, names, dense, sparse = text.splitlines()[:5]
    assert head == "study fake: 15 of 16 runs done, 1 failed"
    assert names.split()[:3] == ["arm", "runs", "F_last"]
    folders = [r.folder for r in study.done("er")]
    values = [last_forgetting(folder) for folder in folders]
    final = np.mean([scores(folder)[1][-1].mean() for folder in folders])
    words = sparse.replace("[", "").replace("]", "").replace(",", "").split()
    assert words[:3] == ["er", "7/8", f"{np.mean(values):.3f}"]
    assert min(values) < float(words[3]) < np.mean(values) < float(words[4]) < max(values)
    assert words[6] == f"{final:.3f}"
    assert words[8] == f"{2 / 2**7:.4f}"  # all seven differences have one sign
    assert dense.split()[-1] == "-"  # the reference is not compared with itself
    assert "note: er/seed2 failed and is in no figure: loss is nan" in text


def test_it_never_is_wider_than_100_columns(tmp_path):
    arms = [DENSE, FakeArm(name="a" * 81, forgets=1000.0, level=9000.0, noise=99.0)]
    reason = "the loss is not finite " * 20
    study = collect(write_study(tmp_path, arms, seeds=range(6), failed={("dense", 0): reason}))
    lines = study_table(study).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[4].startswith("aaaaaaaaaaa..aaaaaaaaaaa ")


def test_too_few_seeds_and_no_runs_are_said(tmp_path):
    text = study_table(collect(write_study(tmp_path / "a", [DENSE, SPARSE], seeds=range(3))))
    assert "note: no p: 3 seeds" in text and text.splitlines()[4].endswith("-")
    assert "note: no interval: 3 of the 6 seeds that one needs" in text and "%" not in text
    nothing = [(arm, 0) for arm in ("dense", "er")]
    empty = collect(write_study(tmp_path / "b", [DENSE, SPARSE], seeds=[0], missing=nothing))
    text = study_table(empty)
    assert "0 of 2 runs done, 2 missing" in text and "0/1" in text
