"""What graph is it: degrees, spectrum and reach of the masks of a config or of a run.

    python tools/inspect_topology.py
    python tools/inspect_topology.py --set topology.density=0.02 --plot graph.png
    python tools/inspect_topology.py runs/sparse launch/configs/demo.yaml --layers

A side is a run folder, a config file, or --config (default: launch/configs/demo.yaml) changed by
--set. One side is described, two are set side by side. Nothing is trained and torch is not needed:
masks come from the seed and the names of the layers alone.

Degrees count live weights. Spectrum: sigma_1 and sigma_2 are the largest singular values of the 0/1
mask, ER what a random mask of this density would have, bound the Ramanujan bound on sigma_2 with
mean degrees, gap = 1 - sigma_2/sigma_1. Reach: the share of the residual stream that depends on one
of its units after so many blocks, along v, o, up and down; q, k and norms are left out.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from sparsecl import command
from sparsecl import config as configs

# None of these imports torch.
from sparsecl.checkout import DEMO, ROOT, beside
from sparsecl.engine.run_config import RunConfig
from sparsecl.errors import MissingInputError, UserError
from sparsecl.files import write_json
from sparsecl.model.shapes import layer_shapes
from sparsecl.topology.build import build_topologies
from sparsecl.topology.inspection import NUM_VALUES, measure, shared_weights
from sparsecl.topology.layer import LayerShape, LayerTopology
from sparsecl.topology.reach import (
    BlockReach,
    ReachCurve,
    reach_table,
)
from sparsecl.topology.report import (
    GroupSummary,
    LayerSummary,
    degree_table,
    describe,
    group,
    kind_of,
    topology_digest,
)
from sparsecl.topology.spectrum import (
    LayerSpectrum,
    SpectrumSummary,
    average,
    layer_spectrum,
    spectrum_table,
)

LONG_CELLS = 10**8
"""Weights from which drawing all masks takes long enough to be announced."""

PLOTTED_KINDS = ("q", "up", "down")  # one square, one tall, one wide matrix


@dataclass(frozen=True)
class Side:
    """What is looked at: a name for it, its run config, its graphs by layer (empty = dense)."""

    name: str
    config: RunConfig
    topologies: Mapping[str, LayerTopology]

    @property
    def shapes(self) -> list[LayerShape]:
        """All matrices of the model that can be masked, block by block."""
        return layer_shapes(self.config.shape)


@dataclass(frozen=True)
class Findings:
    """Everything that was measured of a side. `tag` tells two sides apart: A, B, or nothing."""

    tag: str
    side: Side
    layers: list[LayerSummary]
    spectra: dict[str, LayerSpectrum]
    """Of some layers; see `pick_layers`."""

    reach: BlockReach


@dataclass
class StatusLine:
    """A line on stderr when nothing was said for `patience` seconds."""

    patience: float = 5.0
    last: float = field(default_factory=time.monotonic)

    def say(self, text: str, *, always: bool = False) -> None:
        """Say what is being done now, if it is time."""
        if always or time.monotonic() - self.last >= self.patience:
            print(text, file=sys.stderr, flush=True)
            self.last = time.monotonic()


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, measure, print. Returns the exit code; see sparsecl/errors.py."""
    options = parser().parse_args(arguments)
    return command.report(lambda: work(options))


def work(options: argparse.Namespace) -> None:
    """Measure, print, write, draw."""
    check_flags(options)
    progress = StatusLine()
    sides = ask_sides(options, progress)
    check_shown(options.show, sides)
    tags = ("A", "B") if len(sides) == 2 else ("",)
    found = [
        inspect(side, tag, options.max_spectra, progress)
        for tag, side in zip(tags, sides, strict=True)
    ]
    common = shared(*sides) if len(sides) == 2 else {}
    print(as_text(found, common, by_layer=options.layers))
    if options.out:
        write(options.out, as_json(found, common))
    if options.plot:
        draw(found, options.show, options.plot)


# ---- what is asked for -----------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = command.Parser(description=__doc__)
    result.add_argument(
        "sides", nargs="*", type=Path, metavar="SIDE", help="run folder or run config (YAML)"
    )
    result.add_argument("--config", type=Path, help="run config (YAML) that --set changes")
    result.add_overrides()
    result.add_argument("--layers", action="store_true", help="a line per layer, with its digest")
    result.add_argument(
        "--max_spectra",
        type=int,
        metavar="N",
        help="spectra of N layers a side; default: those of the first, middle and last block",
    )
    result.add_argument("--out", type=Path, metavar="FILE.json", help="write all numbers")
    result.add_argument("--plot", type=Path, metavar="FILE.png", help="draw masks and curves")
    result.add_argument(
        "--show",
        nargs="+",
        default=[],
        metavar="LAYER",
        help="layers that --plot draws; default: q, up and down of the first block",
    )
    return result


def check_flags(options: argparse.Namespace) -> None:
    """Raise UserError for what can be seen before any work."""
    given = len(options.sides) + (options.config is not None)
    if given > 2:
        raise UserError(f"{given} sides are given; at most 2 can be set side by side")
    if options.set and options.sides and options.config is None:
        raise UserError(
            f"--set {options.set[0]}: which side does it change? It changes --config FILE, which "
            "is not given"
        )
    if options.max_spectra is not None and options.max_spectra < 0:
        raise UserError(f"--max_spectra must be >= 0, got {options.max_spectra}")
    if options.plot and options.plot.suffix.lower() != ".png":
        raise UserError(f"--plot {options.plot}: only PNG files are written, end the name in .png")
    if options.show and not options.plot:
        raise UserError(f"--show {options.show[0]}: has an effect with --plot FILE.png only")


def ask_sides(options: argparse.Namespace, progress: StatusLine) -> list[Side]:
    """The sides in the order A, B."""
    asked: list[tuple[Path, list[str]]] = [(path, []) for path in options.sides]
    if options.config is not None or not asked:
        config = options.config or beside(DEMO, "the installation is not whole; give --config FILE")
        asked.append((config, options.set))
    return [load_side(path, overrides, progress) for path, overrides in asked]


def load_side(
    path: Path, overrides: Sequence[str] = (), progress: StatusLine | None = None
) -> Side:
    """Read a run folder or a config, and its masks: those of the folder's newest checkpoint, which
    a method may have moved, or else as the config draws them.

    Raises:
        UserError: if the config is wrong or no such graph exists.
        MissingInputError: if there is no such file, or the folder is not that of a run.
    """
    if not path.exists():
        raise MissingInputError(f"{path}: no such run folder or run config")
    file = path / "config.yaml" if path.is_dir() else path
    if not file.exists():
        raise MissingInputError(f"{path}: not a run folder, it has no config.yaml")
    config = configs.load(RunConfig, file, overrides)
    shapes = layer_shapes(config.shape)
    num_cells = sum(shape.num_cells for shape in shapes)
    if progress is not None and num_cells >= LONG_CELLS and config.topology.kind != "dense":
        progress.say(f"{config.name}: drawing {len(shapes)} masks", always=True)
    topologies = _from_checkpoint(path)
    if not topologies and config.topology.kind in ("from_zeros", "ticket"):  # a checkpoint
        from sparsecl.engine.topology import draw_topologies

        topologies = draw_topologies(config)
    topologies = topologies or build_topologies(config.topology, shapes, seed=config.seed)
    shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    name = f"{config.name} ({' '.join([str(shown), *overrides])})"
    return Side(name, config, topologies)


def _from_checkpoint(path: Path) -> dict[str, LayerTopology]:
    """The masks in the newest checkpoint of a run folder; empty if there is none."""
    if not (path / "checkpoints").is_dir():
        return {}
    from sparsecl.checkpoint.publish import newest_valid
    from sparsecl.checkpoint.reader import Reader

    newest, _ = newest_valid(path / "checkpoints")
    found = Reader(newest).topologies if newest else {}
    return {topology.name: topology for topology in found.values()}


def check_shown(names: Sequence[str], sides: Sequence[Side]) -> None:
    """Raise UserError for a layer that no side has a mask of."""
    known = list(dict.fromkeys(name for side in sides for name in side.topologies))
    for name in names:
        if name not in known:
            example = f"layers are named like {known[0]}" if known else "the model is dense"
            raise UserError(f"--show {name}: there is no such mask; {example}")


# ---- what is measured ------------------------------------------------------------------------


def inspect(side: Side, tag: str, max_spectra: int | None, progress: StatusLine) -> Findings:
    """Measure one side."""
    found = measure(
        side.topologies,
        side.shapes,
        max_spectra=max_spectra,
        say=lambda what: progress.say(f"{side.name}: {what}"),
    )
    return Findings(tag, side, found.layers, found.spectra, found.reach)


def shared(a: Side, b: Side) -> dict[str, float]:
    """See `shared_weights`."""
    return shared_weights(a.topologies, b.topologies)


# ---- what is said ----------------------------------------------------------------------------


def as_text(found: Sequence[Findings], common: Mapping[str, float], *, by_layer: bool) -> str:
    """The whole answer: sides, degrees, spectrum, reach, and differences if there are two."""
    parts = ["\n".join(header(one) for one in found)]
    if any(one.layers for one in found):
        parts.append("Live weights\n" + degree_table(degree_rows(found, by_layer)))
    if by_layer:
        parts.extend(digests(one) for one in found if one.layers)
    if any(one.spectra for one in found):
        parts.append(spectrum_text(found, by_layer))
    parts.append(reach_text(found))
    if len(found) == 2:
        parts.append(difference_table(found[0], found[1], common, by_layer))
    return "\n\n".join(parts)


def header(one: Findings) -> str:
    """Which side, which graph, and its total digest."""
    side, indent = one.side, " " * (2 * bool(one.tag))
    lines = [
        f"{one.tag} {side.name}".strip(),
        f"{indent}{describe(side.config.topology, side.topologies)}",
    ]
    if side.topologies and side.config.topology.role == "update":
        lines.append(f"{indent}role update: the other weights exist too, but are not trained")
    if side.topologies:
        lines.append(f"{indent}total digest {topology_digest(side.topologies)}")
    return "\n".join(lines)


def degree_rows(found: Sequence[Findings], by_layer: bool) -> list[GroupSummary]:
    """Rows of all sides; those of one kind, or layer, stand together."""
    label = str if by_layer else kind_of
    tables = [
        group(one.layers, lambda name, tag=one.tag: f"{label(name)} {tag}".strip()) for one in found
    ]
    order = list(dict.fromkeys(label(row.name) for one in found for row in one.layers))
    rows = {row.label: row for table in tables for row in table}
    labels = [f"{name} {one.tag}".strip() for name in order for one in found]
    return [rows[label] for label in labels if label in rows]


def digests(one: Findings) -> str:
    """The digest of every layer."""
    width = max(len(row.name) for row in one.layers)
    title = f"Digests {one.tag}".strip()
    return "\n".join([title, *(f"{row.name:<{width}} {row.digest}" for row in one.layers)])


def spectra_of(one: Findings, by_layer: bool) -> dict[str, SpectrumSummary]:
    """One row per kind, or per layer."""
    return average(list(one.spectra.values()), str if by_layer else kind_of)


def spectrum_text(found: Sequence[Findings], by_layer: bool) -> str:
    """The table under a title that says how many masks it is about."""
    tables = [(one.tag, spectra_of(one, by_layer)) for one in found]
    rows = {
        f"{label} {tag}".strip(): table[label]
        for label in dict.fromkeys(label for _, table in tables for label in table)
        for tag, table in tables
        if label in table
    }
    counts = dict.fromkeys(f"{len(f.spectra)} of {len(f.layers)}" for f in found if f.layers)
    return f"Spectrum ({', '.join(counts)} masks)\n{spectrum_table(rows)}"


def reach_text(found: Sequence[Findings]) -> str:
    """The table under a title that says how many units were followed."""
    curves: dict[str, ReachCurve] = {}
    for one in found:
        curves[f"no residual {one.tag}".strip()] = one.reach.without_residual
        curves[f"residual {one.tag}".strip()] = one.reach.with_residual
    sources = dict.fromkeys(
        f"{c.num_sources} of {c.num_units} drawn" if c.sampled else f"each of {c.num_units}"
        for c in curves.values()
    )
    title = "Reach: share of the residual stream that one unit reaches after so many blocks"
    return f"{title} ({', '.join(sources)})\n{reach_table(curves)}"


def difference_table(a: Findings, b: Findings, common: Mapping[str, float], by_layer: bool) -> str:
    """B - A by kind or layer, and how many live weights the two have in common."""
    if not (a.layers and b.layers):
        dense = " and ".join(one.tag for one in (a, b) if not one.layers)
        return f"Differences: none to show, no masks in {dense} (dense)"
    label = str if by_layer else kind_of
    left, right = ({r.label: r for r in group(one.layers, label)} for one in (a, b))
    spectra_a, spectra_b = spectra_of(a, by_layer), spectra_of(b, by_layer)
    kinds = [name for name in left if name in right]
    width = max(5, *map(len, kinds))
    text = [
        f"Differences, B - A ({_equal_layers(a, b)})",
        f"{'layer':<{width}}  density  sigma_1  sigma_2    gap   live in B of A's live (by chance)",
    ]
    for name in kinds:
        shares = [share for layer, share in common.items() if label(layer) == name]
        pair = (spectra_a.get(name), spectra_b.get(name))
        text.append(
            f"{name:<{width}} {right[name].density - left[name].density:>+8.5f} "
            + " ".join(_minus(*pair, key) for key in ("sigma_1", "sigma_2", "gap"))
            + (f"   {np.mean(shares):.4f} ({right[name].density:.4f})" if shares else "   -")
        )
    return "\n".join(text)


def _minus(a: SpectrumSummary | None, b: SpectrumSummary | None, key: str) -> str:
    if a is None or b is None:
        return f"{'-':>8}"
    return f"{getattr(b, key) - getattr(a, key):>+8.3f}"


def _equal_layers(a: Findings, b: Findings) -> str:
    """How many layers have the same graph."""
    known = {row.name: row.digest for row in a.layers}
    same = sum(known.get(row.name) == row.digest for row in b.layers)
    return f"{same} of {len(known | {row.name: '' for row in b.layers})} masks are equal"


# ---- what is written -------------------------------------------------------------------------


def as_json(found: Sequence[Findings], common: Mapping[str, float]) -> dict[str, Any]:
    """All numbers, of all singular values and layers that were computed."""
    result: dict[str, Any] = {"sides": [_side_json(one) for one in found]}
    if len(found) == 2:
        result["live_in_b_of_a"] = dict(common)
    return result


def _side_json(one: Findings) -> dict[str, Any]:
    side = one.side
    spectra = {
        name: {**asdict(spectrum), "sigma_1": spectrum.sigma_1, "sigma_2": spectrum.sigma_2}
        | {"gap": spectrum.gap, "within_bound": spectrum.within_bound}
        for name, spectrum in one.spectra.items()
    }
    return {
        "name": side.name,
        "seed": side.config.seed,
        "topology": configs.to_dict(side.config.topology),
        "model": asdict(side.config.shape),
        "digest": topology_digest(side.topologies) if side.topologies else None,
        "layers": [asdict(row) for row in one.layers],
        "spectra": spectra,
        "reach": asdict(one.reach),
    }


def write(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON; CannotCreateError or StorageError if that fails."""
    write_json(path, value)
    print(f"wrote {path}", file=sys.stderr)


def draw(found: Sequence[Findings], names: Sequence[str], path: Path) -> None:
    """Write the picture; CannotCreateError or StorageError if that fails."""
    # Imported here: the tables must print where matplotlib is not installed.
    from sparsecl.experiments.plots import MaskPicture, ReachPicture, topology_plot

    masks, curves = [], []
    for one in found:
        for name in _shown(one, names):
            topology = one.side.topologies[name]
            spectrum = one.spectra.get(name) or layer_spectrum(topology, num_values=NUM_VALUES)
            masks.append(
                MaskPicture(
                    title=f"{one.tag} {name}".strip(),
                    mask=topology.mask(),
                    singular_values=spectrum.singular_values,
                    bound=spectrum.ramanujan_bound,
                )
            )
        for label, curve in (
            ("without residual paths", one.reach.without_residual),
            ("with residual paths", one.reach.with_residual),
        ):
            values = {"mean": curve.mean, "minimum": curve.minimum, "maximum": curve.maximum}
            curves.append(ReachPicture(label=f"{one.tag} {label}".strip(), **values))
    title = "\n".join(f"{one.tag} {one.side.name}".strip() for one in found)
    topology_plot(masks, curves, path, title=title)
    print(f"wrote {path}", file=sys.stderr)


def _shown(one: Findings, names: Sequence[str]) -> list[str]:
    """The layers to draw: those asked for, or one of each plotted kind."""
    if names:
        return [name for name in names if name in one.side.topologies]
    first = {kind_of(name): name for name in reversed(list(one.side.topologies))}
    return [first[kind] for kind in PLOTTED_KINDS if kind in first]


def start() -> NoReturn:
    """Be the whole process, as a script or a command."""
    command.start(main)
