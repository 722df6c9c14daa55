"""Probes of real runs, killed half way: they begin with the weights that were kept for them."""

import csv
import signal

import pytest
import torch

from sparsecl.checkpoint.find import find_checkpoint
from sparsecl.checkpoint.reader import Reader
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
    base = base.replace("  phases:", new + "  phases:").replace("keep: 1", "keep: 1, initial: true")
    path.write_text((base + ARMS).format(root=ROOT, cache=shared_cache))
    return path


def weights(folder):
    reader = Reader(folder)
    return {name: reader.read("master", name) for name in reader.manifest.parameters}


@pytest.mark.slow
def test_killed_in_between_each_probe_begins_where_its_phase_ended(study, tmp_path):
    folder = tmp_path / "study"
    first = folder / "runs" / "dense.probe.1" / "seed0" / "scalars.jsonl"
    process = start(study, folder)
    wait_for(lambda: first.exists(), "a probe", alive=lambda: process.poll() is None)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=HANG)
    process = start(study, folder)
    _, err = process.communicate(timeout=HANG)
    assert process.returncode == 0, err

    for arm in ("dense", "sparse"):
        run = folder / "runs" / arm / "seed0"
        begun = [folder / "runs" / f"{arm}.probe.{k}" / "seed0" for k in (0, 1, 2)]
        ends = [run / "initial" / "step_0", run / "kept" / "step_6", find_checkpoint(run).folder]
        for probe, end in zip(begun, ends, strict=True):
            mine, its = weights(probe / "initial" / "step_0"), weights(end)
            assert mine.keys() == its.keys()
            assert all(torch.equal(mine[name], its[name]) for name in mine), (arm, probe)
        assert not (run / "kept" / "step_12").exists()  # the last checkpoint is there anyway

    for one in probed_arms(collect(folder)):
        assert one.domain == "c" and one.loss.x.tolist() == [0, 1, 2]
        assert one.fresh.text() == "not tested: 1 seed, 6 are needed"
        assert len({*one.loss.values[0].tolist()}) == 3
    with open(folder / "report" / "tables" / "onset.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["arm"] for row in rows] == ["dense", "sparse"]
