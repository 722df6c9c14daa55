"""Back to the last checkpoint after a spike, with the data that led to it left out.

The weights are rewound and the phase goes on with the sequences that come after the spike, so what
may have caused it is not read again. The number of steps of the phase stays what it was.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from sparsecl import dist
from sparsecl.checkpoint.manifest import read_manifest
from sparsecl.checkpoint.publish import newest_valid
from sparsecl.engine.build import Built
from sparsecl.engine.observe.observer import Remembered
from sparsecl.engine.position import Position
from sparsecl.engine.resume import state
from sparsecl.engine.resume.keeper import saved_records
from sparsecl.engine.resume.saved import check_lawful
from sparsecl.methods.several import Methods
from sparsecl.seal import Extent


@dataclass(frozen=True)
class Earlier:
    """Where to go on."""

    position: Position
    observers: Remembered
    """What they had seen there."""

    records: Extent
    """What scalars.jsonl held there."""

    audit_checks: int


def rewind(checkpoints: Path, built: Built, methods: Methods, position: Position) -> Earlier | None:
    """Load the newest checkpoint of this phase. Collective over the world.

    Methods are to be told (`resumed`) when the run is at the place that is returned: no hold of
    theirs is left.

    Args:
        position: where the run is; unchanged.

    Returns:
        Where to go on; None, and nothing is changed, if no checkpoint of this phase (or of its
        border) is there.
    """
    folder, _ = dist.agree(lambda: newest_valid(checkpoints, check_lawful), only_first=True)
    if folder is None:
        return None
    saved = dist.agree(lambda: read_manifest(folder).state)
    earlier = Position(**saved["position"])
    if earlier.phase != position.phase:
        return None
    dist.agree(lambda: state.restore(folder, built, methods))
    built.guard.release()
    left_out = position.phase_step - earlier.phase_step
    there = replace(earlier, data_shift=position.data_shift + left_out)
    observers = dist.agree(lambda: state.remembered(folder))
    return Earlier(there, observers, saved_records(saved), int(saved["audit_checks"]))
