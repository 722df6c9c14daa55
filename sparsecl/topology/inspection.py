"""What there is to see of a model's graphs: degrees, spectra of some layers, reach."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sparsecl.topology.layer import LayerShape, LayerTopology
from sparsecl.topology.reach import BlockReach, block_reach
from sparsecl.topology.report import LayerSummary, kind_of, summarize
from sparsecl.topology.spectrum import LayerSpectrum, layer_spectrum

NUM_VALUES = 32
"""Singular values per spectrum: two for a table, the rest for a file and a picture."""


@dataclass(frozen=True)
class GraphFigures:
    """Of all layers of one model."""

    layers: list[LayerSummary]
    spectra: dict[str, LayerSpectrum]
    """Of some layers; see `pick_layers`."""

    reach: BlockReach


def measure(
    topologies: Mapping[str, LayerTopology],
    shapes: Sequence[LayerShape],
    *,
    max_spectra: int | None,
    say: Callable[[str], None],
) -> GraphFigures:
    """Take all figures. Local.

    Args:
        topologies: by layer name; empty for a dense model.
        shapes: all matrices of the model that can be masked, block by block.
        max_spectra: see `pick_layers`.
        say: told what comes next; spectra of large layers take seconds.
    """
    say("degrees")
    layers = summarize(topologies)
    picked = pick_layers(list(topologies), max_spectra)
    spectra = {}
    for i, name in enumerate(picked):
        say(f"spectrum {i + 1} of {len(picked)}, {name}")
        spectra[name] = layer_spectrum(topologies[name], num_values=NUM_VALUES)
    say("reach")
    reach = block_reach(topologies, shapes)
    return GraphFigures(layers, {n: spectra[n] for n in topologies if n in spectra}, reach)


def pick_layers(names: Sequence[str], limit: int | None) -> list[str]:
    """Layers whose spectra are computed, most wanted first.

    One layer per kind of the first block, then of the last, of the middle one, and of all others;
    None stops after the middle one.
    """
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(kind_of(name), []).append(name)
    depth = max(map(len, kinds.values()), default=0)
    ends = list(dict.fromkeys([0, depth - 1, depth // 2]))
    blocks = ends + [i for i in range(depth) if i not in ends and limit is not None]
    picked = [column[i] for i in blocks for column in kinds.values() if i < len(column)]
    return picked[:limit]


def shared_weights(
    a: Mapping[str, LayerTopology], b: Mapping[str, LayerTopology]
) -> dict[str, float]:
    """Share of the live weights of A that are live in B too, for layers that both have."""
    shares = {}
    for name, left in a.items():
        right = b.get(name)
        if right is None or not left.num_live or _shape(left) != _shape(right):
            continue
        shares[name] = int(np.count_nonzero(left.mask() & right.mask())) / left.num_live
    return shares


def _shape(topology: LayerTopology) -> tuple[int, int]:
    return topology.out_features, topology.in_features
