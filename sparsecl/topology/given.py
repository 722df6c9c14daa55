"""Masks that are not drawn: from a file of the user, or from the zeros of given weights.

A file is .npz or .safetensors with one array [O, I] per layer, under the layer's name or that name
followed by ".weight"; a nonzero entry lives. Nothing is unpickled. A folder of .safetensors files
is read as one model; the folder of a checkpoint of a run is read by a function handed in, because
its layout is known further up.

Tensors are read one at a time. Those of .safetensors are read as plain integers: a float is zero if
all its bits but the sign are, which holds for bf16 and the fp8 formats too, and NumPy has no such
types.
"""

import json
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsecl.errors import DataError, MissingInputError
from sparsecl.opening import plain_input
from sparsecl.topology.layer import LayerShape

ReadCheckpoint = Callable[[Path, str], NDArray]
"""(checkpoint folder, layer name) -> the dense global weight [O, I]."""

MANIFEST = "manifest.json"  # what makes a folder the checkpoint of a run

# Bytes per entry of the dtypes of the safetensors format.
_ITEM_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8}
_ITEM_BYTES |= {"I64": 8, "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}

# What the readers raise on damaged or hostile files.
_DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
# An encrypted member, an unknown compression, numbers out of range, brackets without end.
_DAMAGE += (RuntimeError, NotImplementedError, OverflowError, TypeError, RecursionError)


_Live = Callable[[Path, str, tuple[int, int]], NDArray[np.bool_]]
"""(file, key, shape that the layer has) -> what lives, in the shape that the file has."""


class _Array(NamedTuple):
    """Where one array lies, and how to read it as live / dead."""

    file: Path
    key: str
    live: _Live


def given_masks(
    path: str | Path,
    shapes: Sequence[LayerShape],
    *,
    others_allowed: bool,
    read_checkpoint: ReadCheckpoint | None = None,
) -> Callable[[LayerShape], NDArray[np.bool_]]:
    """Open what `path` names and check that it has an array for every layer.

    Args:
        others_allowed: accept arrays that belong to no layer: a whole model has embeddings too. A
            file of masks has not, and a misspelt name would go unnoticed.
        read_checkpoint: needed for the checkpoint of a run only.

    Returns:
        A function that reads the mask [O, I] of one layer of `shapes`.

    Raises:
        MissingInputError: nothing is there, or it cannot be opened.
        DataError: unreadable content, a missing or unknown layer; a wrong shape when it is read.
    """
    path = Path(path)
    if not path.exists():
        raise MissingInputError(f"topology.path: {path} is not there")
    if path.is_dir() and (path / MANIFEST).exists():
        if read_checkpoint is None:
            raise MissingInputError(
                f"topology.path: {path} is the checkpoint of a run, which cannot be read here. "
                "Write the masks to a .npz file"
            )
        read = read_checkpoint
        return lambda shape: _checked(path, shape, np.asarray(read(path, shape.name)) != 0)
    arrays = _list_arrays(path)
    chosen = {shape.name: _find(path, arrays, shape.name) for shape in shapes}
    if not others_allowed:
        for key in arrays.keys() - {array.key for array in chosen.values()}:
            raise DataError(f"topology.path: {path}: {key} is not a masked layer of this model")
    return lambda shape: _checked(path, shape, _read(chosen[shape.name], shape))


def _list_arrays(path: Path) -> dict[str, _Array]:
    """All arrays of a file or of the .safetensors files of a folder, by key."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise MissingInputError(
            f"topology.path: {path} holds neither {MANIFEST} nor any .safetensors file"
        )
    arrays: dict[str, _Array] = {}
    for file in files:
        keys, live = _open(file)
        for key in keys:
            if key in arrays:
                raise DataError(f"topology.path: {key} is in {arrays[key].file} and in {file}")
            arrays[key] = _Array(file, key, live)
    return arrays


def _open(file: Path) -> tuple[list[str], _Live]:
    if file.exists() and not file.is_file():
        raise MissingInputError(f"topology.path: {file} is not a plain file")
    if file.suffix not in (".npz", ".safetensors"):
        raise DataError(f"topology.path: {file}: expected a .npz or .safetensors file")
    try:
        if file.suffix == ".npz":
            with _npz(file) as arrays:
                return list(arrays.files), _npz_live
        return [*_safetensors_header(file)[0]], _safetensors_live
    except PermissionError as error:
        raise MissingInputError(f"topology.path: {file}: {error.strerror}") from None
    except _DAMAGE as error:
        raise _damaged(file, error) from None


def _find(path: Path, arrays: dict[str, _Array], name: str) -> _Array:
    found = [arrays[key] for key in (name, f"{name}.weight") if key in arrays]
    if len(found) != 1:
        problem = "there are two arrays" if found else f"none of its {len(arrays)} arrays is"
        raise DataError(f"topology.path: {path}: {problem} for {name} (or {name}.weight)")
    return found[0]


def _read(array: _Array, shape: LayerShape) -> NDArray[np.bool_]:
    try:
        return array.live(array.file, array.key, (shape.out_features, shape.in_features))
    except _DAMAGE as error:
        raise _damaged(array.file, error) from None


def _damaged(file: Path, error: BaseException) -> DataError:
    text = " ".join(str(error).split())[:200]
    return DataError(f"topology.path: {file} cannot be read: {text}")


def _checked(path: Path, shape: LayerShape, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    wanted = (shape.out_features, shape.in_features)
    if mask.shape != wanted:
        raise DataError(
            f"topology.path: {path}: {shape.name} is {mask.shape}, the model has {wanted}"
        )
    return mask


def _npz(file: Path) -> np.lib.npyio.NpzFile:
    arrays = np.load(file, allow_pickle=False)
    if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise ValueError("it holds one array without a name, as .npy does")
    return arrays


def _npz_live(file: Path, key: str, wanted: tuple[int, int]) -> NDArray[np.bool_]:
    with _npz(file) as arrays:
        # NumPy makes room for what a header claims, and unpacks all of it, before it can be
        # looked at. One kilobyte can claim a terabyte.
        shape = _claimed_shape(arrays, key)
        if shape != wanted:
            return np.broadcast_to(np.False_, shape)
        array = arrays[key]
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{key} holds {array.dtype}, neither bool nor numbers")
    return array != 0


def _claimed_shape(arrays: np.lib.npyio.NpzFile, key: str) -> tuple[int, ...]:
    """The shape in the header of one array of a .npz, without its content."""
    assert arrays.zip is not None
    names = [name for name in (f"{key}.npy", key) if name in arrays.zip.namelist()]
    with arrays.zip.open(names[0]) as member:
        version = np.lib.format.read_magic(member)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in read:
            raise ValueError(f"{key} is an array of format {version}, not 1.0 or 2.0")
        return read[version](member)[0]


def _safetensors_header(file: Path) -> tuple[dict[str, dict], int]:
    """Entries by key, and the offset of the data in the file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):
            pass  # the library checks sizes, offsets and overlaps
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    with open(file, "rb", opener=plain_input) as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


def _safetensors_live(file: Path, key: str, wanted: tuple[int, int]) -> NDArray[np.bool_]:
    del wanted  # the library has found all that the header claims in the file
    header, start = _safetensors_header(file)
    entry = header[key]
    dtype, shape = entry["dtype"], entry["shape"]
    if dtype not in _ITEM_BYTES:
        raise ValueError(f"{key} holds {dtype}, neither bool nor numbers")
    integers = np.fromfile(
        file,
        dtype=f"<u{_ITEM_BYTES[dtype]}",
        count=int(np.prod(shape, dtype=np.int64)),
        offset=start + entry["data_offsets"][0],
    )
    # Shifting the sign bit out makes -0.0 zero.
    sign_bits = 1 if dtype.startswith(("F", "BF")) else 0
    return ((integers << sign_bits) != 0).reshape(shape)
