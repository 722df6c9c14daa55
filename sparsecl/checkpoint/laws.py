"""Everything that must hold of a checkpoint: its bytes, its layout, its numbers.

`manifest.verify` says whether the files are those that were written. This says, beyond it, whether
what was written is the state of a run: a checkpoint with a NaN in a moment has perfect digests.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sparsecl.checkpoint.arrays import METHODS_FILE
from sparsecl.checkpoint.canonical import (
    MASTER,
    Advance,
    config_part,
    keys,
    live_counts,
    live_mask,
    num_bytes,
)
from sparsecl.checkpoint.frozen import frozen_weights
from sparsecl.checkpoint.manifest import FOLDER_NAME, MANIFEST, Manifest, verify
from sparsecl.checkpoint.published import PUBLISHED, is_foreign
from sparsecl.checkpoint.reader import Reader
from sparsecl.checkpoint.topologies import TOPOLOGY_FILE
from sparsecl.errors import UserError, reason
from sparsecl.model.shapes import is_vocabulary
from sparsecl.topology.layer import LayerTopology

MOMENTS = ("exp_avg", "exp_avg_sq")

NOT_NEGATIVE = "exp_avg_sq"  # a mean of squares


@dataclass(frozen=True)
class Verdict:
    """What was found out about one checkpoint."""

    problems: tuple[str, ...]
    """One line each; empty if every law holds."""

    about: str
    """Step, files, bytes, tensors, live weights; "" if it could not be opened."""


@dataclass(frozen=True)
class StateLaws:
    """What whoever writes the `state` of manifests knows of it: engine/resume/saved.py."""

    problems: Callable[[Manifest], Iterator[str]]
    """What is wrong with it, a line each."""

    rewires: Callable[[Manifest], bool]
    """A method of the run moves live weights."""

    not_negative: Callable[[Manifest], Collection[str]]
    """States of methods that are never below zero, as the manifest names them."""

    arrays: Callable[[Reader, Mapping[str, torch.Tensor]], Iterator[str]] = lambda *_: iter(())
    """What is wrong with the arrays that methods and observers keep beside the parameters."""


def check_laws(
    folder: Path,
    *,
    state: StateLaws | None = None,
    moments: bool = True,
    advance: Advance | None = None,
) -> Verdict:
    """Check a checkpoint folder; one tensor is held at a time.

    Checked are: digests and sizes of all files and of the manifest, and that no other file is
    there; that pieces cover every tensor once, and are fp32 of the length stated; that live sets
    are those that the run was given (unless a method moves them); that every parameter has its
    master, and all or none a moment; that all values are finite, and those not negative that
    cannot be; and that exactly 0 is what must be where it is kept: the padding of the vocabulary,
    and the moments of frozen weights (role update).

    Args:
        state: laws of the manifest's `state`; without them it is not looked at.
        moments: False: a moment that some parameters lack is no problem, even if it lies there.
        advance: called with the bytes of canonical tensors done.
    """
    try:
        manifest = verify(folder)
        problems = [*_folder(folder, manifest), *_stored(folder, manifest, moments)]
        if state is not None:
            problems += [f"{folder}: {problem}" for problem in state.problems(manifest)]
        if problems:
            return Verdict(tuple(problems), "")  # what follows relies on these
        reader = Reader(folder)
        problems += _complete(reader, moments)
        if state is not None:
            problems += _arrays(reader, state)
        if state is None or not state.rewires(manifest):
            problems += _topologies(reader)
        positive = {NOT_NEGATIVE, *(state.not_negative(manifest) if state else ())}
        padding, frozen = _first_padded(manifest.state), frozen_weights(manifest)
        for key, name in keys(reader):
            padded = padding if is_vocabulary(name) else None
            problems += _values(reader, key, name, padded, key in positive)
            if key in MOMENTS and name in frozen:
                problems += _moments_of_frozen(reader, key, name, frozen[name])
            if advance:
                advance(num_bytes(reader, [(key, name)]))
        # Last: what a law can name is named, and a moment that is missing has its own way out.
        if not problems and not [*_complete(reader, True)] and is_foreign(folder, manifest.step):
            problems.append(
                f"{folder}: its manifest is not the one that the run published; take its lines out "
                f"of {folder.absolute().parent / PUBLISHED} if it was changed on purpose"
            )
    except UserError as error:
        return Verdict((str(error),), "")
    except (OSError, SafetensorError) as error:
        return Verdict((f"{folder}: cannot be read ({reason(error)})",), "")
    return Verdict(tuple(problems), _about(reader))


def _about(reader: Reader) -> str:
    files = reader.manifest.files
    size = sum(int(entry["bytes"]) for entry in files.values())
    live, cells = live_counts(reader.topologies)
    word = "file" if len(files) == 1 else "files"
    sparse = f", {live} of {cells} masked weights live" if cells else ""
    return (
        f"step {reader.manifest.step}, tp size {reader.manifest.tp_size}, {len(files)} {word}, "
        f"{size / 1e6:.1f} MB, {len(keys(reader))} tensors{sparse}"
    )


def _folder(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Nothing else may lie there: it could be a shard of another checkpoint."""
    for path in sorted(folder.iterdir()):
        if path.name != MANIFEST and path.name not in manifest.files:
            yield f"{path}: the manifest does not name it"
    named = FOLDER_NAME.fullmatch(folder.resolve().name)
    if named and int(named[1]) != manifest.step:
        yield f"{folder}: the manifest is of step {manifest.step}"
    position = manifest.state.get("position")
    if isinstance(position, dict) and position.get("step", manifest.step) != manifest.step:
        yield (
            f"{folder}: the manifest is of step {manifest.step}, its position of step "
            f"{position['step']}"
        )


def _stored(folder: Path, manifest: Manifest, moments: bool) -> Iterator[str]:
    """Tensors in the files against the pieces of the manifest. Only headers are read."""
    expected: dict[str, dict[str, int]] = {}
    for piece in manifest.pieces:
        some = expected.setdefault(piece.file, {})
        if piece.key in some:
            yield f"{folder}: {piece.file} has two pieces named {piece.key}"
        some[piece.key] = piece.numel
    for file in expected.keys() - manifest.files.keys():
        yield f"{folder}: pieces lie in {file}, which the manifest does not list"
    for file in manifest.files.keys() - {TOPOLOGY_FILE, METHODS_FILE}:
        wanted = expected.get(file, {})
        with safe_open(folder / file, framework="pt") as found:
            for key in sorted(wanted.keys() ^ set(found.keys())):
                if not moments and key not in wanted and key.split("/")[0] in MOMENTS:
                    continue
                yield f"{folder / file}: {key} is {'missing' if key in wanted else 'in no piece'}"
            for key in sorted(wanted.keys() & set(found.keys())):
                yield from _header(folder / file, key, found.get_slice(key), wanted[key])


def _header(path: Path, key: str, stored: Any, numel: int) -> Iterator[str]:
    if stored.get_dtype() != "F32":
        yield f"{path}: {key} is {stored.get_dtype()}, not F32"
    if math.prod(stored.get_shape()) != numel:
        yield f"{path}: {key} has {math.prod(stored.get_shape())} elements, not {numel}"


def _complete(reader: Reader, moments: bool) -> Iterator[str]:
    """Every parameter has a master; a moment belongs to all of them or to none."""
    names = reader.manifest.parameters
    for state in dict.fromkeys([MASTER, *(reader.states() if moments else ())]):
        if "." in state:  # of a method, which may leave parameters out
            continue
        missing = [name for name in names if not reader.has(state, name)]
        if missing:
            yield f"{reader.folder}: {state} of {missing[0]} is missing"


def _arrays(reader: Reader, state: StateLaws) -> Iterator[str]:
    """A function of its own, so that they are not held beside a tensor."""
    arrays = reader.arrays()
    for key, value in arrays.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            yield f"{reader.folder}: {key} has values that are not finite"
    for problem in state.arrays(reader, arrays):
        yield f"{reader.folder}: {problem}"


def _topologies(reader: Reader) -> Iterator[str]:
    """The live sets are those that the run was given."""
    given = reader.manifest.state.get("topology")
    if not isinstance(given, dict):
        return
    for name, topology in reader.topologies.items():
        digest = given.get(name.removesuffix(".weight"))
        if digest != topology.digest:
            yield (
                f"{reader.folder}: topology digest of {name} is {topology.digest[:12]}, the run's "
                f"is {str(digest)[:12]}"
            )


def _values(
    reader: Reader, state: str, name: str, padding: int | None, positive: bool
) -> list[str]:
    """A function of its own, so that no two tensors are ever held."""
    value = reader.read(state, name)
    found = []
    if not (finite := torch.isfinite(value)).all():
        found.append(f"{int((~finite).sum())} values that are not finite")
    if positive and (value < 0).any():
        found.append(f"{int((value < 0).sum())} negative values")
    if padding is not None and (count := int(value[padding:].count_nonzero())):
        found.append(f"{count} values other than 0 in the padding, from row {padding} on")
    return [f"{reader.folder}: {state} of {name} has {text}" for text in found]


def _moments_of_frozen(
    reader: Reader, state: str, name: str, topology: LayerTopology
) -> Iterator[str]:
    moved = reader.read(state, name)[~live_mask(topology, -1, 0, 1)].count_nonzero()
    if moved:
        found = f"{int(moved)} values other than 0 at frozen weights"
        yield f"{reader.folder}: {state} of {name} has {found}"


def _first_padded(state: dict[str, Any]) -> int | None:
    """First row of the embedding that surely belongs to no token; None if that is not known."""
    tokenizer = config_part(state, "tokenizer")
    if tokenizer.get("kind") == "bytes":
        return 257
    if tokenizer.get("kind") == "hf":
        return None
    # A SentencePiece model may have ended with fewer pieces than were asked for, never with more;
    # one that was given has as many as it has.
    size = None if tokenizer.get("model") else tokenizer.get("vocab_size")
    return size if isinstance(size, int) else None
