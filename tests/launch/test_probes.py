"""Probes of real runs, killed in between: each begins with the model that its phase has left."""

import csv
import signal

import numpy as np
import pytest

from sparsecl.experiments.findings.collect import collect
from sparsecl.experiments.findings.onset import probed_arms
from tests.events import HANG, wait_for
from tests.launch.test_sweep import ROOT, STUDY, start

ARMS = """
arms:
  dense: {{topology: {{kind: dense}}}}
  sparse: {{topology: {{density: 0.25}}}}
probes: {{domain: c, after: [1, 2], length: 2}}
"""


@pytest.fixture
def study(tmp_path, shared_cache):
    path = tmp_path / "study.yaml"
    base = STUDY.partition("arms:")[0].replace("steps: 30", "steps: 6, order: [a, b]")
    new = "      - {{name: c, source: synthetic, synthetic: {{train_tokens: 4000}}}}\n"
    base = base.replace("  phases:", new + "  phases:")
    path.write_text((base + ARMS).format(root=ROOT, cache=shared_cache))
    return path


@pytest.mark.slow
def test_killed_in_between_each_probe_begins_where_its_phase_ended(study, tmp_path):
    folder = tmp_path / "study"
    first = folder / "runs" / "dense.probe.1" / "seed0" / "scalars.jsonl"
    process = start(study, folder)
    wait_for(first.exists, "a probe", alive=lambda: process.poll() is None)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=HANG)
    process = start(study, folder)
    _, err = process.communicate(timeout=HANG)
    assert process.returncode == 0, err

    found = collect(folder)
    assert found.counts()["done"] == len(found.results) == 8
    for arm in ("dense", "sparse"):
        (whole,) = found.of(arm)
        for k in (0, 1, 2):
            (probe,) = found.of(f"{arm}.probe.{k}")
            # Losses of equal weights on equal text, of all domains.
            np.testing.assert_array_equal(probe.matrix.loss[0], whole.matrix.loss[k])
        assert [path.name for path in sorted((whole.folder / "kept").glob("step_*"))] == ["step_6"]
    for one in probed_arms(found):
        assert one.domain == "c" and one.loss.x.tolist() == [0, 1, 2]
        assert len({*one.loss.values[0].tolist()}) == 3
        assert one.fresh.text() == "not tested: 1 seed, 6 are needed"
    with open(folder / "report" / "tables" / "onset.csv", newline="") as file:
        assert [row["arm"] for row in csv.DictReader(file)] == ["dense", "sparse"]
