"""A checkpoint from canonical tensors, as any tensor-parallel size would have written it.

One tensor is read, cut and written before the next is read; live sets stay in memory as bits. One
file per tensor-parallel rank, all open at the same time.
"""

import contextlib
import math
from pathlib import Path

import torch

from sparsecl.checkpoint.arrays import METHODS_FILE
from sparsecl.checkpoint.canonical import (
    Advance,
    TensorSource,
    config_part,
    keys,
    live_mask,
    num_bytes,
    num_live,
)
from sparsecl.checkpoint.manifest import Manifest, ParameterEntry, Piece, write_manifest
from sparsecl.checkpoint.new_output import new_folder
from sparsecl.checkpoint.shards import write_shard
from sparsecl.checkpoint.stream_file import Spec, TensorFileWriter
from sparsecl.checkpoint.topologies import TOPOLOGY_FILE, save_topologies
from sparsecl.errors import DataError, UserError
from sparsecl.files import sha256_file
from sparsecl.model.config import ModelConfig


def reshard(
    source: TensorSource, out: Path, *, tp_size: int, advance: Advance | None = None
) -> Manifest:
    """Write `source` as the new checkpoint folder `out`, cut for `tp_size` ranks.

    Law: every state of every parameter reads back bit for bit, and step, parameters, live sets and
    `state` are kept. The padding of the vocabulary is kept too, so a size that needs another one
    is refused.

    Args:
        advance: called with the bytes done, `num_bytes(source, keys(source))` in all.

    Returns:
        The manifest of the new checkpoint.

    Raises:
        UserError: if `tp_size` does not divide what it splits.
        CannotCreateError: if `out` is there already or cannot be made.
        StorageError: if it cannot be written; nothing is left then.
    """
    check_divides(source, tp_size)
    pieces = _pieces(source, tp_size)
    with new_folder(out) as folder:
        _write_pieces(source, folder, tp_size, pieces, advance)
        if source.topologies:
            save_topologies(folder / TOPOLOGY_FILE, source.topologies)
        if arrays := source.arrays():
            write_shard(folder / METHODS_FILE, arrays)
        manifest = Manifest(
            step=source.manifest.step,
            tp_size=tp_size,
            files={path.name: _described(path) for path in sorted(folder.iterdir())},
            parameters=source.manifest.parameters,
            pieces=tuple(pieces),
            state=source.manifest.state,
        )
        write_manifest(folder, manifest)
    return manifest


def check_divides(source: TensorSource, tp_size: int) -> None:
    """Raise UserError, with the numbers, unless `tp_size` divides all that it would split."""
    split = _num_heads(source)
    for name, entry in source.manifest.parameters.items():
        if entry.partition_dim >= 0:
            split[f"size of dim {entry.partition_dim} of {name}"] = entry.shape[entry.partition_dim]
    common = math.gcd(*split.values())
    for what, number in split.items():
        if tp_size < 1 or number % tp_size:
            fitting = [str(n) for n in range(1, common + 1) if common % n == 0]
            raise UserError(
                f"tensor-parallel size {tp_size} does not divide {number}, the {what}. "
                f"Use {', '.join(fitting[:12])}."
            )


def _num_heads(source: TensorSource) -> dict[str, int]:
    """Heads of queries and of keys, which no rank may hold a part of; none without a config."""
    model = config_part(source.manifest.state, "model")
    if not model:
        return {}
    try:
        shape = ModelConfig(**model).resolved()
        return {"attention heads": shape.heads, "heads of keys and values": shape.kv_heads}
    except (TypeError, ValueError) as error:
        raise DataError(f"the config in the checkpoint has no readable model: {error}") from None


def _pieces(source: TensorSource, tp_size: int) -> list[Piece]:
    """Everything that will be written: one piece for each slice of each tensor."""
    result = []
    counts: dict[str, list[int]] = {}
    for state, name in keys(source):
        entry = source.manifest.parameters[name]
        size = tp_size if entry.partition_dim >= 0 else 1
        if name not in counts:
            counts[name] = (
                num_live(source.topologies[name], entry.partition_dim, size)
                if entry.live
                else [math.prod(entry.shape) // size] * size
            )
        for tp_rank, count in enumerate(counts[name]):
            file = f"rank_{tp_rank}.safetensors"
            result.append(Piece(file, state, name, tp_rank, 0, count))
    return result


def _write_pieces(
    source: TensorSource, folder: Path, tp_size: int, pieces: list[Piece], advance: Advance | None
) -> None:
    specs: dict[str, dict[str, Spec]] = {}
    for piece in pieces:
        specs.setdefault(piece.file, {})[piece.key] = Spec(torch.float32, (piece.numel,))
    with contextlib.ExitStack() as stack:
        writers = {
            file: stack.enter_context(TensorFileWriter(folder / file, some))
            for file, some in specs.items()
        }
        for state, name in keys(source):
            _write_tensor(source, state, name, tp_size, writers)
            if advance:
                advance(num_bytes(source, [(state, name)]))


def _write_tensor(
    source: TensorSource, state: str, name: str, tp_size: int, writers: dict[str, TensorFileWriter]
) -> None:
    """Read one tensor and write its slices. A function of its own: it returns before the next
    tensor is read, so no two are ever held."""
    entry = source.manifest.parameters[name]
    whole = source.read(state, name)
    if whole.shape != entry.shape or whole.dtype != torch.float32:
        raise DataError(f"{state} of {name} is not fp32 of shape {list(entry.shape)}")
    size = tp_size if entry.partition_dim >= 0 else 1
    for tp_rank in range(size):
        part = whole if size == 1 else whole.chunk(size, dim=entry.partition_dim)[tp_rank]
        writers[f"rank_{tp_rank}.safetensors"].write(
            f"{state}/{name}", _kept(source, name, entry, part, tp_rank, size)
        )


def _kept(
    source: TensorSource,
    name: str,
    entry: ParameterEntry,
    part: torch.Tensor,
    tp_rank: int,
    size: int,
) -> torch.Tensor:
    """What a checkpoint keeps of one slice: all of it, or its live weights in row-major order."""
    if not entry.live:
        return part
    return part.masked_select(
        live_mask(source.topologies[name], entry.partition_dim, tp_rank, size)
    )


def _described(path: Path) -> dict[str, int | str]:
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
