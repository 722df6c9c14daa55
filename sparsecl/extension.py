"""Plain C that setuptools has built beside the package, or not."""

import ctypes
import importlib.machinery
from collections.abc import Collection
from pathlib import Path


def load_extension(stem: Path, functions: Collection[str]) -> ctypes.CDLL | None:
    """The library at `stem`, whose name has a suffix of extensions behind it; None if it was not
    built, or for another machine. Its functions return nothing unless the caller says otherwise."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = stem.with_name(stem.name + suffix)
        if path.is_file():
            try:
                library = ctypes.CDLL(str(path))
            except OSError:
                return None
            for name in functions:
                getattr(library, name).restype = None
            return library
    return None
