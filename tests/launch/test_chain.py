"""A chain of real runs, killed at every link: the same tickets and weights, bit for bit."""

import signal

import pytest
import torch

from sparsecl.checkpoint.find import find_checkpoint
from sparsecl.checkpoint.reader import Reader
from sparsecl.experiments.study.study_plan import read_plan, run_folder
from tests.events import HANG, wait_for
from tests.launch.test_sweep import ROOT, STUDY, start

CHAIN = """
arms:
  dense: {{topology: {{kind: dense}}, checkpoint: {{initial: true}}}}
chains:
  imp: {{of: dense, rounds: 2, prune: 0.4, rewind: 5, controls: [one_shot, random], at: [2]}}
"""


@pytest.fixture
def study(tmp_path, shared_cache):
    path = tmp_path / "study.yaml"
    base = STUDY.partition("arms:")[0].replace("steps: 30", "steps: 20")
    base = base.replace("keep: 1", "keep: 1, initial: true")
    path.write_text((base + CHAIN).format(root=ROOT, cache=shared_cache))
    return path


def readers(folder):
    """The last checkpoint of every run of a study."""
    plan = read_plan(folder)
    places = {run.arm: run_folder(folder, run) for run in plan.runs}
    return {arm: Reader(find_checkpoint(place).folder) for arm, place in places.items()}


def masked(reader):
    """(weight, live) of all masked matrices together, as vectors."""
    names = [n for n in reader.manifest.parameters if n.startswith("layers.") and "norm" not in n]
    weights = torch.cat([reader.read("master", name).view(-1) for name in names])
    live = [
        torch.from_numpy(reader.topologies[name].mask()).view(-1)
        if name in reader.topologies
        else torch.ones(reader.manifest.parameters[name].shape, dtype=torch.bool).view(-1)
        for name in names
    ]
    return weights, torch.cat(live)


@pytest.mark.slow
def test_killed_at_every_link_it_ends_with_the_same_tickets(study, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    process = start(study, whole)
    out, err = process.communicate(timeout=HANG)
    assert process.returncode == 0, err
    for arm in ("imp.1", "imp.2"):
        process, records = start(study, cut), cut / "runs" / arm / "seed0" / "scalars.jsonl"
        wait_for(
            lambda r=records: r.exists() and len(r.read_bytes().splitlines()) > 12,
            f"steps of {arm}",
            alive=lambda p=process: p.poll() is None,
        )
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=HANG)
    process = start(study, cut)
    _, err = process.communicate(timeout=HANG)
    assert process.returncode == 0, err

    found, again = readers(whole), readers(cut)
    assert list(found) == ["dense", "imp.1", "imp.2", "imp.2.one_shot", "imp.2.random"]
    for arm, reader in found.items():
        for name in reader.manifest.parameters:
            assert torch.equal(reader.read("master", name), again[arm].read("master", name))
        digests = [{n: t.digest for n, t in r.topologies.items()} for r in (reader, again[arm])]
        assert digests[0] == digests[1]
    check_tickets(whole, found)


def check_tickets(folder, found):
    """Counts, who survives, and what the runs began with."""
    weights, live = masked(found["dense"])
    num_live = [int(live.sum())]
    for arm in ("imp.1", "imp.2"):
        kept = masked(found[arm])[1]
        assert not (kept & ~live).any()
        num_live.append(int(kept.sum()))
        assert num_live[-1] == num_live[-2] - round(0.4 * num_live[-2])
        removed = weights[live & ~kept].abs().max()
        assert weights[kept].abs().min() >= removed
        weights, live = masked(found[arm])
    for control in ("imp.2.one_shot", "imp.2.random"):
        its = masked(found[control])[1]
        assert int(its.sum()) == num_live[-1] and not torch.equal(its, live)
    per_layer = [
        [t.num_live for t in found[arm].topologies.values()] for arm in ("imp.2", "imp.2.random")
    ]
    assert per_layer[0] == per_layer[1]
    kept = Reader(folder / "runs" / "dense" / "seed0" / "kept" / "step_5")
    early, _ = masked(kept)
    for arm in ("imp.1", "imp.2", "imp.2.one_shot", "imp.2.random"):
        begun, live = masked(Reader(folder / "runs" / arm / "seed0" / "initial" / "step_0"))
        assert torch.equal(begun, torch.where(live, early, torch.zeros(())))
