"""The control equal_parameters of a study of streams: a dense network as small as a sparse one."""

from collections.abc import Callable
from dataclasses import replace

from sparsecl.errors import UserError
from sparsecl.experiments.study.controls import Sized
from sparsecl.streams.config import StreamRunConfig

TOLERANCE = 0.02
"""Relative difference of parameters that still counts as equal: in a network of a few hundred
weights one unit more is some percent."""


def narrower(
    name: str,
    arm: StreamRunConfig,
    reference: StreamRunConfig,
    size: Callable[[StreamRunConfig], Sized],
) -> StreamRunConfig:
    """The reference, dense, with hidden layers so narrow that it has as many parameters, biases
    included, as `arm` has live ones.

    The first hidden layer has most of the weights where there are many inputs, so its width comes
    first: for each, the others get the width that comes nearest, in the proportions of the
    reference. Of those within TOLERANCE the one is taken whose layers are most in proportion.

    Raises:
        UserError: there is none.
    """
    units = reference.learner.units
    if not units:
        raise UserError(f"controls.equal_parameters: {name}: learner.kind=linear has no width")
    dense = replace(reference, topology=replace(reference.topology, kind="dense"))
    target = size(arm).live

    def sized(first: int, rest: int) -> StreamRunConfig:
        others = tuple(max(1, round(rest * width / units[0])) for width in units[1:])
        return replace(dense, learner=replace(dense.learner, widths=(first, *others)))

    def distance(config: StreamRunConfig) -> int:
        return abs(size(config).live - target)

    best: tuple[float, StreamRunConfig] | None = None
    for first in range(1, units[0] + 1):
        low, high = 1, 2 * max(units) + target
        if len(units) == 1:
            high = low
        while low < high:  # the first width that has at least as many
            middle = (low + high) // 2
            if size(sized(first, middle)).live < target:
                low = middle + 1
            else:
                high = middle
        rest = min((max(1, low - 1), low), key=lambda width: distance(sized(first, width)))
        found = sized(first, rest)
        if distance(found) > TOLERANCE * target:
            continue
        uneven = max(rest / first, first / rest) if len(units) > 1 else 1 + distance(found)
        if best is None or uneven < best[0]:
            best = (uneven, found)
    if best is None:
        raise UserError(
            f"controls.equal_parameters: no dense network with {len(units)} hidden layers comes "
            f"within {100 * TOLERANCE:g} % of the {target:,} live parameters of {name}; leave it "
            "out"
        )
    return best[1]
