"""Ten kills in one run of two ranks, anywhere, also inside saves: the end is the same."""

import hashlib

import pytest
import torch

from tests.launch import outcome
from tests.launch.starter import Done, Starter

KILLS = 10


def start(starter: Starter, *more: str) -> list[Done]:
    settings = ("--set", "phases.steps=30", "checkpoint.every=3")
    words = starter.arguments("--run_dir", str(starter.folder / "run"), *settings, *more)
    return [job.wait() for job in starter.start_ranks(words, 2)]


def digest(end: outcome.Outcome) -> str:
    """sha256 over all canonical tensors of the last checkpoint: weights, masters, moments."""
    found = hashlib.sha256()
    for key, tensor in sorted(end.tensors.items()):
        found.update(f"{key}".encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@pytest.mark.fault("P9")
@pytest.mark.slow
def test_ten_kills(server, tmp_path, tmp_path_factory, shared_cache):
    calm = Starter(tmp_path_factory.mktemp("calm"), shared_cache)
    assert [end.code for end in start(calm)] == [0, 0]
    whole = outcome.read(calm.folder / "run")

    starter = Starter(tmp_path, shared_cache)
    kills = 0
    for attempt in range(200):
        # At every point that is passed, a step or a border inside a save, on either rank.
        ends = start(starter, "--inject", "kill@*~0.02", "--inject_seed", str(attempt))
        codes = [end.code for end in ends]
        if -9 in codes:
            kills += 1
            assert set(codes) <= {-9, 76}, ends
        if kills == KILLS or codes == [0, 0]:
            break
    assert kills == KILLS
    ends = start(starter)
    assert [end.code for end in ends] == [0, 0], ends
    end = outcome.read(starter.folder / "run")
    print(f"{kills} kills: {digest(end)}\nno kill:  {digest(whole)}")
    outcome.assert_equal(end, whole)
