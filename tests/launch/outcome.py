"""What a run folder says, without what differs between two equal runs: times."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparsecl.checkpoint.manifest import verify
from sparsecl.checkpoint.publish import candidates
from sparsecl.checkpoint.reader import Reader

# The digests of the records, and their size in bytes, hang on the times in them.
TIMES = {"seconds", "train_seconds", "tokens_per_second", "performance", "sealed", "records"}
TIMELESS_STATE = {*TIMES, "scalars_bytes", "scalars_sha256"}


def without_times(value: Any, names: set[str] = TIMES) -> Any:
    """`value` without the keys `names`, at any depth."""
    if isinstance(value, dict):
        return {k: without_times(v, names) for k, v in value.items() if k not in names}
    return [without_times(item, names) for item in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Outcome:
    """The part of a finished run that a kill and a resume must not change."""

    records: list[Any]
    results: dict[str, Any]
    state: dict[str, Any]
    """Of the last checkpoint."""

    tensors: dict[tuple[str, str], torch.Tensor]
    """(state, parameter) -> whole tensor of the last checkpoint."""


def read(folder: Path) -> Outcome:
    """Read a finished run."""
    lines = (folder / "scalars.jsonl").read_text(encoding="utf-8").splitlines()
    newest = candidates(folder / "checkpoints")[0]
    verify(newest)
    reader = Reader(newest)
    names = [(s, name) for s in reader.states() for name in reader.manifest.parameters]
    return Outcome(
        records=[without_times(json.loads(line)) for line in lines],
        results=without_times(json.loads((folder / "results.json").read_text(encoding="utf-8"))),
        state=without_times(reader.manifest.state, TIMELESS_STATE),
        tensors={key: reader.read(*key) for key in names if reader.has(*key)},
    )


def last_step(folder: Path) -> int:
    """The last step that a run has recorded so far."""
    path = folder / "scalars.jsonl"
    if not path.exists():
        return 0
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # the last may be half a line
    return json.loads(lines[-1]).get("step", 0) if lines else 0


def assert_equal(one: Outcome, other: Outcome) -> None:
    """Bit for bit, NaN included."""
    assert one.records == other.records
    assert one.results == other.results
    assert one.state == other.state
    assert one.tensors.keys() == other.tensors.keys()
    for key, tensor in one.tensors.items():
        assert tensor.view(torch.int32).equal(other.tensors[key].view(torch.int32)), key


def losses(folder: Path) -> list[float]:
    """Training losses in the order of the steps."""
    return [record["loss"] for record in read(folder).records if record["kind"] == "train"]
