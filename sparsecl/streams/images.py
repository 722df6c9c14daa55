"""Labelled images: idx files, the form of MNIST and of the sets that follow it, or scikit-learn's
digits.

An idx file (http://yann.lecun.com/exdb/mnist, "File formats") is four bytes 0, 0, type, number of
dims; each dim as a big-endian int32; then the entries. Only type 8, unsigned bytes, is read here.
"""

import gzip
import hashlib
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from sparsecl.config_nodes import one_line
from sparsecl.errors import DataError, MissingInputError, UserError
from sparsecl.opening import plain

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
MAX_ENTRIES = 1 << 31
"""A file that says it has more is not read."""


@dataclass(frozen=True, eq=False)
class Images:
    """A set of labelled images."""

    pixels: NDArray[np.uint8]
    """[n, inputs]"""

    labels: NDArray[np.int64]
    """[n], 0-based."""

    white: int
    """The largest value of a pixel, which is 1.0 for a network."""

    name: str
    """For people."""

    channels: int = 1
    """Planes of pixels of an image, one after the other."""

    @property
    def num_inputs(self) -> int:
        return self.pixels.shape[1]

    @property
    def num_classes(self) -> int:
        return int(self.labels.max()) + 1

    @property
    def sha256(self) -> str:
        """Hex digest of pixels and labels."""
        digest = hashlib.sha256(self.pixels.tobytes())
        digest.update(self.labels.tobytes())
        return digest.hexdigest()


def read_images(folder: Path | None) -> Images:
    """The training images of a folder of idx files; None = scikit-learn's digits.

    Raises:
        MissingInputError: a file or scikit-learn is missing; DataError: it is not what it must be.
    """
    if folder is None:
        return _digits()
    images, labels = (_find(folder, name) for name in (IMAGES, LABELS))
    pixels, numbers = read_idx(images, num_dims=3), read_idx(labels, num_dims=1)
    if len(pixels) != len(numbers) or not len(pixels):
        raise DataError(
            one_line(f"{images}: has {len(pixels)} images, {labels} has {len(numbers)} labels")
        )
    if not pixels.size:
        height, width = pixels.shape[1:]
        raise DataError(one_line(f"{images}: has images of {height} x {width} pixels"))
    return Images(pixels.reshape(len(pixels), -1), numbers.astype(np.int64), 255, str(folder))


def _find(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise MissingInputError(
        one_line(f"stream.data={folder}: has no {name} and no {name}.gz; give another folder")
    )


def read_idx(path: Path, *, num_dims: int) -> NDArray[np.uint8]:
    """The entries of an idx file of unsigned bytes, packed by gzip if its name ends in .gz.

    Raises:
        DataError: it is no such file, or has more or fewer entries than it says.
        MissingInputError: it cannot be opened.
    """
    try:
        with _opened(path) as file:
            head = file.read(4 + 4 * num_dims)
            if len(head) != 4 + 4 * num_dims or head[:4] != bytes((0, 0, 8, num_dims)):
                raise DataError(one_line(f"{path}: is no idx file of bytes in {num_dims} dims"))
            shape = struct.unpack(f">{num_dims}I", head[4:])
            size = math.prod(shape)
            if size > MAX_ENTRIES:
                raise DataError(one_line(f"{path}: says it has {size} entries, which is too many"))
            found = file.read(size + 1)
    except OSError as error:
        kind = DataError if isinstance(error, gzip.BadGzipFile) else MissingInputError
        raise kind(one_line(f"{path}: cannot be read ({error.strerror or error})")) from None
    except EOFError:
        raise DataError(one_line(f"{path}: ends too early")) from None
    if len(found) != size:
        more = "more" if len(found) > size else "fewer"
        raise DataError(one_line(f"{path}: has {more} entries than the {size} that it says"))
    return np.frombuffer(found, dtype=np.uint8).reshape(shape)


def _opened(path: Path) -> IO[bytes]:
    file = open(path, "rb", opener=plain)
    return gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file  # pyright: ignore


def _digits() -> Images:
    load: Callable[..., tuple[NDArray[np.float64], NDArray[np.int64]]]
    try:
        from sklearn.datasets import load_digits as load  # pyright: ignore
    except ImportError:
        raise UserError(
            "stream.data=null asks for the digits of scikit-learn, which is not installed: "
            'pip install "sparsecl[digits]", or give a folder with the idx files of MNIST'
        ) from None
    pixels, labels = load(return_X_y=True)
    return Images(pixels.astype(np.uint8), labels.astype(np.int64), 16, "digits")
