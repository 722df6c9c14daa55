"""How far one unit of the residual stream reaches: the share of units that depend on it.

Boolean propagation along live weights; how strongly one unit depends on another is not asked. The
path through a block is that of the values: the attention part is o after v, the feed-forward part
is down after up; in a gated form, where a unit is silu(gate x) * up x, after either of the two. A
head of values that serves several heads of queries reaches what all of them reach. Left out,
because each of them couples units without an edge between them: q and k, which act on all units
alike through the attention weights, and the layer norms, which divide by the spread over all units.
Reach is therefore a lower bound of what can interfere.

Two readings of the same graph. Without residual paths a block is its two parts one after the other,
x -> down(up(o(v(x)))), and only what the weights carry counts. With them each part adds to what was
there, so that a unit reaches what it reached before and more; this is what the network does.

U = units, S = source units, W = words of 64 sources. A state is uint64 [U, W]: bit s of row u says
that source s has reached unit u.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsecl import seeding
from sparsecl.topology.layer import LayerKind, LayerShape, LayerTopology

MAX_SOURCES = 256
"""Source units that are followed. A wider stream is sampled; the mean share then has a standard
error of a sixteenth of its spread over units."""

# Cells of a mask whose live weights are listed at once: 16 MiB of states at 8 words a unit.
CHUNK_CELLS = 1 << 18

# The two parts of a block, each as the matrices that values pass, in order. Matrices of one tuple
# stand side by side.
VALUE_PATH: tuple[tuple[tuple[LayerKind, ...], LayerKind], ...] = (
    (("v",), "o"),
    (("gate", "up"), "down"),
)

State = NDArray[np.uint64]


@dataclass(frozen=True)
class ReachCurve:
    """Share of all units that one source unit reaches, over the source units.

    Entry l - 1 of each tuple is the share after l steps (blocks, or stacked masks), in [0, 1].
    """

    mean: tuple[float, ...]
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    num_sources: int
    num_units: int

    @property
    def sampled(self) -> bool:
        """True if not every unit was a source."""
        return self.num_sources < self.num_units


@dataclass(frozen=True)
class BlockReach:
    """Reach through 1..L blocks of a transformer, in both readings."""

    without_residual: ReachCurve
    with_residual: ReachCurve


def block_reach(
    topologies: Mapping[str, LayerTopology],
    shapes: Sequence[LayerShape],
    *,
    sources: Sequence[int] | None = None,
    seed: int = 0,
) -> BlockReach:
    """Follow single units of the residual stream through all blocks.

    Args:
        topologies: by layer name; a layer that is not there is dense.
        shapes: all matrices of the model, in the order of the blocks.
        sources: units to follow; None = all up to `MAX_SOURCES`, else a sample.
        seed: seed of that sample.
    """
    blocks = _blocks(shapes)
    num_units = blocks[0]["v"].in_features
    chosen = choose_sources(num_units, seed) if sources is None else np.asarray(sources)
    start = _start(num_units, chosen)
    words = start.shape[1]
    # Both readings walk through the masks together: left half without, right half with residual.
    state = np.concatenate([start, start], axis=1)
    counts = []
    for block in blocks:
        for readers, writer in VALUE_PATH:
            inner = _inner(topologies, [block[kind] for kind in readers if kind in block], state)
            last = block[writer]
            inner = _served(inner, last.in_features, block[readers[-1]].head_width)
            new = spread(topologies.get(last.name), inner, last.out_features)
            new[:, words:] |= state[:, words:]
            state = new
        counts.append([_counts(half, chosen.size) for half in np.split(state, 2, axis=1)])
    without, with_residual = (np.array(half) for half in zip(*counts, strict=True))
    return BlockReach(_curve(without, num_units), _curve(with_residual, num_units))


def stacked_reach(
    masks: Sequence[NDArray[np.bool_]], *, sources: Sequence[int] | None = None, seed: int = 0
) -> ReachCurve:
    """Reach through square masks [U, U] one after the other, without residual paths.

    Args:
        masks: the first is applied first; row = output unit, column = input unit.
        sources: units to follow; None = all up to `MAX_SOURCES`, else a sample.
        seed: seed of that sample.
    """
    num_units = masks[0].shape[1]
    chosen = choose_sources(num_units, seed) if sources is None else np.asarray(sources)
    state = _start(num_units, chosen)
    counts = []
    for mask in masks:
        assert mask.shape == (num_units, num_units), f"mask {mask.shape} of {num_units} units"
        state = _through(mask, state)
        counts.append(_counts(state, chosen.size))
    return _curve(np.array(counts), num_units)


def reach_table(curves: Mapping[str, ReachCurve]) -> str:
    """Aligned text: mean, least and largest share after each step, until none of them changes."""
    lines = [
        "steps  " + "   ".join(f"{name:^18}" for name in curves).rstrip(),
        "       " + "   ".join(["  mean   min   max"] * len(curves)),
    ]
    depth = max(len(curve.mean) for curve in curves.values())
    shown = max(map(_settled, curves.values()))
    for step in range(shown):
        cells = "   ".join(_cell(curve, step) for curve in curves.values())
        lines.append(f"{step + 1:>5}  {cells}".rstrip())
    if shown < depth:
        lines.append(f"and the same up to {depth}")
    return "\n".join(lines)


def _cell(curve: ReachCurve, step: int) -> str:
    """18 columns; blank after the last step."""
    if step >= len(curve.mean):
        return " " * 18
    return f"{curve.mean[step]:.4f} {curve.minimum[step]:.3f} {curve.maximum[step]:.3f}"


def _settled(curve: ReachCurve) -> int:
    """Number of steps after which the curve does not change any more."""
    points = list(zip(curve.mean, curve.minimum, curve.maximum, strict=True))
    return next(n for n in range(1, len(points) + 1) if set(points[n - 1 :]) == {points[-1]})


def choose_sources(num_units: int, seed: int) -> NDArray[np.int64]:
    """All units, or a sorted sample of `MAX_SOURCES` of them that `seed` decides."""
    if num_units <= MAX_SOURCES:
        return np.arange(num_units)
    rng = seeding.stream(seed, "reach", num_units)
    return np.sort(rng.choice(num_units, size=MAX_SOURCES, replace=False))


def spread(topology: LayerTopology | None, state: State, out_features: int) -> State:
    """One layer further: each output unit is reached by what reached one of its live inputs.

    Args:
        topology: None for a dense layer.
        state: [in_features, W].

    Returns:
        A new state [out_features, W].
    """
    if topology is None:
        return np.tile(np.bitwise_or.reduce(state, axis=0), (out_features, 1))
    return _through(topology.mask(), state)


def _through(mask: NDArray[np.bool_], state: State) -> State:
    num_rows, num_columns = mask.shape
    result = np.zeros((num_rows, state.shape[1]), dtype=np.uint64)
    if (state == state[0]).all():  # saturated, as dense graphs soon are: no need to list edges
        result[mask.any(axis=1)] = state[0]
        return result
    rows_at_once = max(1, CHUNK_CELLS // num_columns)
    for begin in range(0, num_rows, rows_at_once):
        part = mask[begin : begin + rows_at_once]
        degrees = np.count_nonzero(part, axis=1)
        live = np.flatnonzero(degrees)  # reduceat cannot give an empty row
        if live.size:
            inputs = state[np.flatnonzero(part) % num_columns]
            first = (np.cumsum(degrees) - degrees)[live]
            result[begin + live] = np.bitwise_or.reduceat(inputs, first, axis=0)
    return result


def _blocks(shapes: Sequence[LayerShape]) -> list[dict[LayerKind, LayerShape]]:
    """The matrices by kind, block by block; each block begins with its q or v."""
    blocks: list[dict[LayerKind, LayerShape]] = []
    for shape in shapes:
        if not blocks or shape.kind in blocks[-1]:
            blocks.append({})
        blocks[-1][shape.kind] = shape
    return blocks


def _inner(
    topologies: Mapping[str, LayerTopology], readers: Sequence[LayerShape], state: State
) -> State:
    """What the units between two matrices are reached by: the union over those that read."""
    found = [spread(topologies.get(s.name), state, s.out_features) for s in readers]
    return np.bitwise_or.reduce(found) if len(found) > 1 else found[0]


def _served(state: State, num_units: int, head_width: int) -> State:
    """Values [KV * D, W] as the heads of queries read them, [H * D, W]: each H / KV times."""
    if len(state) == num_units:
        return state
    heads = state.reshape(-1, head_width, state.shape[1])
    return np.repeat(heads, num_units // len(state), axis=0).reshape(num_units, -1)


def _start(num_units: int, sources: NDArray[np.int64]) -> State:
    """Each source has reached itself; [U, W]."""
    reached = np.zeros((num_units, -(-sources.size // 64) * 64), dtype=bool)
    reached[sources, np.arange(sources.size)] = True
    return np.packbits(reached, axis=1).view(np.uint64)


def _counts(state: State, num_sources: int) -> NDArray[np.int64]:
    """How many units each source has reached, [S]."""
    reached = np.unpackbits(np.ascontiguousarray(state).view(np.uint8), axis=1)
    return reached[:, :num_sources].sum(axis=0, dtype=np.int64)


def _curve(counts: NDArray[np.int64], num_units: int) -> ReachCurve:
    """Summarise counts [steps, S] over the sources."""
    num_sources = counts.shape[1]
    return ReachCurve(
        mean=tuple((counts.sum(axis=1) / (num_sources * num_units)).tolist()),
        minimum=tuple((counts.min(axis=1) / num_units).tolist()),
        maximum=tuple((counts.max(axis=1) / num_units).tolist()),
        num_sources=num_sources,
        num_units=num_units,
    )
