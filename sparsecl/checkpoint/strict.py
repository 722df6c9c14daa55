"""What a manifest may say: types and ranges of everything in it, before anybody believes it.

The numbers of a manifest become sizes of allocations and ranges of tensors, its names become paths.
A checkpoint may come from anywhere, with digests that fit. Here only the manifest itself is looked
at; sparsecl/checkpoint/reader.py compares it with the files.
"""

import math
import re
from typing import Any

FILE_NAME = re.compile(r"(rank_\d{1,9}|topology|methods)\.safetensors", re.ASCII)
SHARD_NAME = re.compile(r"rank_\d{1,9}\.safetensors", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
MAX_COUNT = (1 << 62) - 1  # elements or bytes; fits int64 also when one is added to another
MAX_DIMS = 8
MAX_NAME = 1000  # characters


class NotStrictError(ValueError):
    """The message says what of the manifest is not what it must be."""


def mapping(body: dict[str, Any], key: str) -> dict[str, Any]:
    """A JSON object of `body`."""
    found = body.get(key)
    if not isinstance(found, dict):
        raise NotStrictError(f"not a readable manifest ({key} is no mapping)")
    return found


def count(body: dict[str, Any], key: str, *, low: int = 0, high: int = MAX_COUNT) -> int:
    """A whole number of `body` in [low, high]."""
    return _integer(body.get(key), key, low, high)


def files(body: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The files: names inside the folder, sizes and digests."""
    found = mapping(body, "files")
    for name, entry in found.items():
        if not FILE_NAME.fullmatch(name):
            raise NotStrictError(f"names a file outside its folder, {name[:80]!r}")
        if not isinstance(entry, dict) or set(entry) != {"bytes", "sha256"}:
            raise NotStrictError(f"files: {name} needs bytes and sha256")
        count(entry, "bytes")
        if not isinstance(entry["sha256"], str) or not _DIGEST.fullmatch(entry["sha256"]):
            raise NotStrictError(f"files: the sha256 of {name} is none")
    return found


def parameters(body: dict[str, Any]) -> dict[str, tuple[tuple[int, ...], int, bool]]:
    """(shape, partition_dim, live) by name; tp_size divides what it splits."""
    tp_size = count(body, "tp_size", low=1)
    found = {}
    for name, entry in mapping(body, "parameters").items():
        where = f"parameters: {_name(name)}"
        if not isinstance(entry, dict) or set(entry) != {"shape", "partition_dim", "live"}:
            raise NotStrictError(f"{where} needs shape, partition_dim and live")
        shape, live = entry["shape"], entry["live"]
        if not isinstance(shape, list) or len(shape) > MAX_DIMS:
            raise NotStrictError(f"{where}: its shape is no list of at most {MAX_DIMS} numbers")
        for size in shape:
            _integer(size, f"{where}: shape", 0, MAX_COUNT)
        if math.prod(shape) > MAX_COUNT:
            raise NotStrictError(f"{where}: shape {shape} has too many elements")
        dim = _integer(entry["partition_dim"], f"{where}: partition_dim", -1, len(shape) - 1)
        if dim >= 0 and shape[dim] % tp_size:
            raise NotStrictError(f"{where}: {shape[dim]} cannot be split over tp_size {tp_size}")
        if not isinstance(live, bool) or (live and len(shape) != 2):
            raise NotStrictError(f"{where}: live must be true or false, and true of a matrix only")
        found[name] = (tuple(shape), dim, live)
    return found


def pieces(body: dict[str, Any]) -> list[tuple[str, str, str, int, int, int]]:
    """The fields of each piece: file, state, name, tp_rank, start, numel."""
    known, shards = mapping(body, "parameters"), mapping(body, "files")
    tp_size = count(body, "tp_size", low=1)
    listed = body.get("pieces")
    if not isinstance(listed, list):
        raise NotStrictError("not a readable manifest (pieces is no list)")
    found, keys = [], set()
    for number, fields in enumerate(listed):
        where = f"piece {number}"
        if not isinstance(fields, list) or len(fields) != 6:
            raise NotStrictError(f"{where} does not have six fields")
        file, state, name, tp_rank, start, numel = fields
        if not isinstance(file, str) or not SHARD_NAME.fullmatch(file) or file not in shards:
            raise NotStrictError(f"{where} lies in no file of this checkpoint")
        if not isinstance(name, str) or name not in known:
            raise NotStrictError(f"{where} is of an unknown parameter")
        if (file, _name(state), name) in keys:
            raise NotStrictError(f"{where} is there twice")
        keys.add((file, state, name))
        _integer(tp_rank, f"{where}: tp_rank", 0, tp_size - 1)
        _integer(start, f"{where}: start", 0, MAX_COUNT)
        _integer(numel, f"{where}: numel", 0, MAX_COUNT)
        found.append((file, state, name, tp_rank, start, numel))
    return found


def _integer(value: Any, what: str, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:  # bool is an int to isinstance
        shown = repr(value)[:40] if isinstance(value, int | float | str) else "no number"
        raise NotStrictError(f"{what} is {shown}, not a whole number in [{low}, {high}]")
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME or not value.isprintable():
        raise NotStrictError("not a readable manifest (a name is no short, printable text)")
    return value
