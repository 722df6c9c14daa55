"""Safetensors files of a checkpoint: written durably with their digest, opened with suspicion.

The digest is of the bytes that were meant, taken on their way to the disk and not read back: a file
that came out otherwise can then be told from a good one.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sparsecl import faults
from sparsecl.checkpoint.manifest import is_plain_file
from sparsecl.checkpoint.stream_file import Spec, TensorFileWriter
from sparsecl.errors import DataError, StorageError, reason
from sparsecl.files import writing
from sparsecl.opening import plain

# Of tensors whose elements are weights, moments or method state.
FLOATS = ("F32", "F16", "BF16", "F64")


def write_shard(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Write and sync a file. Holds one tensor on the CPU at a time.

    Returns:
        {"bytes": size, "sha256": hex}, as the manifest lists it.

    Raises:
        StorageError: the disk is full or fails.
        CannotCreateError: it cannot be made.
    """
    with writing(path):
        faults.point("save.shard", path=path)
        specs = {key: Spec(value.dtype, tuple(value.shape)) for key, value in tensors.items()}
        writer = _HashingWriter(path, specs)
        with writer:
            # In the order of the file: a digest can only be taken of what comes in order.
            for key in sorted(tensors, key=lambda key: -tensors[key].dtype.itemsize):
                writer.write(key, tensors[key])
        faults.point("save.shard_written", path=path)
        with open(path, "rb", opener=plain) as file:
            os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
        faults.point("save.synced", path=path)
    if size != writer.num_bytes:
        raise StorageError(f"{path}: {size} bytes are there, {writer.num_bytes} were written")
    return {"bytes": size, "sha256": writer.digest.hexdigest()}


def open_shard(path: Path) -> Any:
    """A `safetensors.safe_open` handle, on the CPU. Only the header is read.

    Raises:
        DataError: if it is not a plain safetensors file. Nothing is ever unpickled.
    """
    if not is_plain_file(path):
        raise DataError(f"{path}: missing or not a plain file")
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"{path}: not a safetensors file ({reason(error)})") from None


def check_entry(path: Path, handle: Any, key: str, numel: int) -> None:
    """Compare what the header says of one tensor with what the manifest says. Reads no tensor.

    Raises:
        DataError: if it is not there, of another length, or no floating-point tensor.
    """
    try:
        entry = handle.get_slice(key)
        shape, dtype = entry.get_shape(), entry.get_dtype()
    except (KeyError, ValueError, SafetensorError):
        raise DataError(f"{path}: holds no {key}") from None
    found = 1
    for size in shape:
        found *= size
    if found != numel:
        raise DataError(f"{path}: {key} has a wrong length, {found} instead of {numel}")
    if dtype not in FLOATS:
        raise DataError(f"{path}: {key} is of dtype {dtype}, not one of {', '.join(FLOATS)}")


class _HashingWriter(TensorFileWriter):
    """Takes the digest of what it writes; everything must come in the order of the file."""

    def __init__(self, path: Path, tensors: Mapping[str, Spec]) -> None:
        self.digest = hashlib.sha256()
        self.num_bytes = 0
        super().__init__(path, tensors)

    def _write_at(self, place: int, data: bytes | memoryview) -> None:
        assert place == self.num_bytes, f"{self.path}: written out of order"
        super()._write_at(place, data)
        self.digest.update(data)
        self.num_bytes += len(data)
