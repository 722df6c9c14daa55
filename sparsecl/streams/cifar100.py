"""CIFAR-100 in its published binary form (https://www.cs.toronto.edu/~kriz/cifar.html).

A folder with train.bin and test.bin; an image is a byte of the coarse label, one of the fine label,
and 3 x 32 x 32 bytes: red, green, blue, each row by row. The fine labels are read.
"""

from pathlib import Path

import numpy as np

from sparsecl.config_nodes import one_line
from sparsecl.errors import DataError, MissingInputError
from sparsecl.opening import plain
from sparsecl.streams.image_sets import ImageSplit
from sparsecl.streams.images import Images

TRAIN, TEST = "train.bin", "test.bin"
BYTES = 2 + 3 * 32 * 32
NUM_CLASSES = 100
MAX_IMAGES = 1_000_000


def is_cifar100(folder: Path) -> bool:
    """Whether the folder says that it has the set."""
    return (folder / TRAIN).is_file()


def read_cifar100(folder: Path) -> ImageSplit:
    """Both files.

    Raises:
        MissingInputError: one cannot be opened. DataError: it is not of that form.
    """
    return ImageSplit(*(_read(folder / name, str(folder)) for name in (TRAIN, TEST)))


def _read(path: Path, name: str) -> Images:
    try:
        with open(path, "rb", opener=plain) as file:
            content = file.read(MAX_IMAGES * BYTES + 1)
    except OSError as error:
        raise MissingInputError(
            one_line(f"{path}: cannot be read ({error.strerror or error})")
        ) from None
    if not content or len(content) % BYTES or len(content) > MAX_IMAGES * BYTES:
        raise DataError(
            one_line(f"{path}: has {len(content)} bytes, which is no number of images")
            + f" of {BYTES} bytes"
        )
    table = np.frombuffer(content, dtype=np.uint8).reshape(-1, BYTES)
    labels = table[:, 1].astype(np.int64)
    if labels.max() >= NUM_CLASSES:
        raise DataError(
            one_line(f"{path}: has the fine label {labels.max()}, which CIFAR-100 has not")
        )
    return Images(table[:, 2:], labels, 255, name, channels=3)
