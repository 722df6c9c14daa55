"""Tensor files of other programs. A file may come from anyone, so nothing in it is executed.

safetensors hold data only. A pickle (.bin, .pt, .pth) is a program: it is refused unless the user
trusts it, and is then read by torch's restricted unpickler, which builds tensors and plain values
and calls nothing that the file names. There is no way from here to the unrestricted one.
"""

import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sparsecl.errors import DataError, MissingInputError, UserError
from sparsecl.model.config import ModelShape

SAFETENSORS = ".safetensors"
PICKLES = (".bin", ".pt", ".pth")
TRUST = "--trust-checkpoint"


@dataclass(frozen=True)
class Tensors:
    """Tensors by name, each read when it is asked for where the file allows it."""

    keys: frozenset[str]
    read: Callable[[str], torch.Tensor]
    """A tensor of a name in `keys`, on the CPU, in the dtype of the file."""

    notes: tuple[str, ...] = ()
    """What was done to read them that the user should know."""


@dataclass(frozen=True)
class Weights:
    """A model of ours to start from, read as it is asked for."""

    shape: ModelShape
    vocab_size: int
    read: Callable[[str], torch.Tensor]
    """fp32 tensor of one of our parameters; embedding and head are [vocab_size, W]."""

    notes: tuple[str, ...]
    """What was left out or done, for the user."""


def open_safetensors(files: list[Path]) -> Tensors:
    """The tensors of one model in one or more files.

    safetensors checks the header, its size and that the tensors lie inside the file without
    overlaps, before anything of that size is allocated.

    Raises:
        DataError: a file is no safetensors file, or two have a tensor of the same name.
    """
    handles: dict[str, Any] = {}
    for file in files:
        try:
            handle = safe_open(file, framework="pt", device="cpu")
        except (OSError, SafetensorError) as error:
            raise DataError(f"{file}: no readable safetensors file ({one_line(error)})") from None
        for key in handle.keys():
            if key in handles:
                raise DataError(f"{file}: {key} is in another file of the model too")
            handles[key] = handle
    return Tensors(frozenset(handles), lambda key: handles[key].get_tensor(key))


def refuse_pickle(path: Path, *, trusted: bool) -> None:
    """Raise UserError for a pickle that the user has not said to trust, without opening it.

    Raises:
        MissingInputError: there is no such file.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    if not trusted:
        raise UserError(
            f"{path}: is a pickle, which can run code of whoever made it. Convert it to "
            f"safetensors, or give {TRUST} if you know where it comes from"
        )


def load_pickle(path: Path, *, trusted: bool) -> tuple[Mapping[Any, Any], str]:
    """The mapping in a pickle of torch.save, by the restricted unpickler.

    Returns:
        The mapping, and a line that says how it was read.

    Raises:
        UserError: if it is not `trusted`; the file is not opened then.
        MissingInputError: if it cannot be opened.
        DataError: if it is damaged, holds no mapping, or asks for more than tensors and plain
            values.
    """
    refuse_pickle(path, trusted=trusted)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise MissingInputError(f"{path}: {error.strerror or one_line(error)}") from None
    except (
        pickle.UnpicklingError,
        RuntimeError,
        ValueError,
        EOFError,
        zipfile.BadZipFile,
    ) as error:
        raise DataError(
            f"{path}: torch's restricted unpickler refuses it ({one_line(error)})"
        ) from None
    except (TypeError, KeyError, IndexError, AttributeError, RecursionError, MemoryError) as error:
        raise DataError(f"{path}: a damaged pickle ({type(error).__name__})") from None
    if not isinstance(found, Mapping):
        raise DataError(f"{path}: holds no dictionary of tensors")
    return found, f"{path}: a pickle, read by torch's restricted unpickler (weights_only=True)"


def from_mapping(path: Path, found: object, notes: tuple[str, ...] = ()) -> Tensors:
    """Tensors of a state dict that was in `path`.

    Raises:
        DataError: if it is not a mapping of names to tensors.
    """
    if not isinstance(found, Mapping):
        raise DataError(f"{path}: holds no dictionary of tensors")
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise DataError(f"{path}: {str(key)[:80]} is not a tensor with a name")
    return Tensors(frozenset(found), lambda key: found[key], notes)


def one_line(error: BaseException) -> str:
    """The first line of a message, of a length for one line on a terminal."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return text if len(text) <= 120 else text[:117] + "..."
