"""Write a safetensors file one tensor at a time.

`safetensors.torch.save_file` wants all tensors at once, which is the whole model. The format
(https://github.com/huggingface/safetensors, "Format") is simple: 8 bytes little-endian length of
the header, the header in JSON with the place of every tensor, then their bytes without a gap.
Shapes and dtypes are all that the header needs, so it can be written before any tensor is read.
"""

import contextlib
import json
import math
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple

import torch

from sparsecl.files import cannot_write
from sparsecl.opening import plain

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Spec(NamedTuple):
    """What a tensor will be."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes in the file."""
        return self.dtype.itemsize * math.prod(self.shape)


class TensorFileWriter:
    """Writes declared tensors in any order, each once; holds none of them.

    Use it as a context manager. Law: what `safetensors.torch.load_file` then reads equals what was
    written, bit for bit.
    """

    def __init__(
        self, path: Path, tensors: Mapping[str, Spec], metadata: Mapping[str, str] | None = None
    ) -> None:
        """Create the file and write its header.

        Args:
            tensors: everything that will be written, by key.
            metadata: texts for the header.

        Raises:
            StorageError: if the file cannot be written.
        """
        assert sys.byteorder == "little", "safetensors files are little-endian"
        self.path = path
        self._missing = dict(tensors)
        self._places: dict[str, int] = {}
        header = self._header(tensors, metadata)
        try:
            self._file: IO[bytes] = open(path, "wb", opener=plain)
        except OSError as error:
            raise cannot_write(self.path, error) from None
        self._start = len(header)
        self._write_at(0, header)

    def write(self, key: str, tensor: torch.Tensor) -> None:
        """Write one declared tensor, of its dtype and number of elements, from any device.

        Raises:
            StorageError: if the disk is full or fails.
        """
        spec = self._missing.pop(key)
        assert tensor.dtype == spec.dtype and tensor.numel() == math.prod(spec.shape), key
        flat = tensor.detach().reshape(-1).contiguous().cpu()
        self._write_at(self._start + self._places[key], flat.view(torch.uint8).numpy().data)

    def __enter__(self) -> "TensorFileWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close; all declared tensors must be there unless an exception is on its way."""
        try:
            self._file.close()
        except OSError as failure:
            raise cannot_write(self.path, failure) from None
        assert kind is not None or not self._missing, f"never written: {list(self._missing)[:3]}"

    def _header(self, tensors: Mapping[str, Spec], metadata: Mapping[str, str] | None) -> bytes:
        """The bytes before the first tensor; sets the places."""
        entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
        place = 0
        # Large elements first: then each tensor lies at a multiple of its element size.
        for key, spec in sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize):
            end = place + spec.num_bytes
            entries[key] = {
                "dtype": NAMES[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [place, end],
            }
            self._places[key], place = place, end
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the first tensor lies at a multiple of 8
        return struct.pack("<Q", len(text)) + text

    def _write_at(self, place: int, data: bytes | memoryview) -> None:
        try:
            self._file.seek(place)
            self._file.write(data)
        except OSError as error:
            with contextlib.suppress(OSError):  # it fails too: it tries to write what is left
                self._file.close()
            raise cannot_write(self.path, error) from None
