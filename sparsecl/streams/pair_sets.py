"""The images that pairs of classes are drawn from: of each class some to train and some to test.

A folder holds archives of Omniglot, the four idx files of MNIST's form, or an array for each class:
NAME.npy, uint8 [images, ...], say [700, 32, 32, 3]; an image of one class has as many numbers as
one of another. No pickle is read.
"""

import hashlib
import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparsecl.config_nodes import one_line
from sparsecl.errors import DataError, MissingInputError, UserError
from sparsecl.opening import plain_input, read_plain
from sparsecl.streams.image_sets import read_omniglot, read_split
from sparsecl.streams.images import Images, read_images

HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
"""By the version of a .npy file."""


@dataclass(frozen=True, eq=False)
class PairImages(Images):
    """Images to train, and those of the same classes to test; a network tells two classes apart."""

    test: Images = field(kw_only=True)

    @property
    def num_classes(self) -> int:
        """Of a task."""
        return 2

    @property
    def sha256(self) -> str:
        """Hex digest of both sets."""
        parts = (super().sha256, self.test.sha256)
        return hashlib.sha256("".join(parts).encode()).hexdigest()


def read_pairs(folder: Path | None, *, test_per_class: int) -> PairImages:
    """The images of a folder; None = scikit-learn's digits.

    Args:
        test_per_class: the last images of each class are for the test; idx files have test images
            of their own.

    Raises:
        MissingInputError: a file or scikit-learn is missing. DataError: it is not what it must be.
        UserError: there are not two classes, or not more images of each than are for the test.
    """
    if folder is None:
        found = _split(read_images(None), test_per_class)
    elif arrays := sorted(folder.glob("*.npy")):
        found = _split(_read_arrays(arrays), test_per_class)
    elif archives := sorted(folder.glob("images_*.zip")):
        found = _split(read_omniglot(archives), test_per_class)
    else:
        split = read_split(folder)
        found = _both(split.train, split.test)
    if len(np.unique(found.labels)) < 2:
        raise UserError(one_line(f"stream.data={folder}: has one class, and a pair needs two"))
    return found


def _split(images: Images, num_test: int) -> PairImages:
    """Of each class the last `num_test` images are for the test."""
    test = np.zeros(len(images.labels), dtype=bool)
    for label in np.unique(images.labels):
        rows = np.flatnonzero(images.labels == label)
        if len(rows) <= num_test:
            raise UserError(
                f"stream.test_per_class={num_test}: a class of {one_line(images.name)} has "
                f"{len(rows)} images, so none is left to train; lower it"
            )
        test[rows[-num_test:]] = True
    train, held_out = (
        Images(images.pixels[part], images.labels[part], images.white, images.name)
        for part in (~test, test)
    )
    return _both(train, held_out)


def _both(train: Images, test: Images) -> PairImages:
    return PairImages(train.pixels, train.labels, train.white, train.name, test=test)


def _read_arrays(paths: list[Path]) -> Images:
    """A class for each file, in the order of their names."""
    found = [_read_array(path) for path in paths]
    for path, array in zip(paths, found, strict=True):
        if array.shape[1] != found[0].shape[1]:
            raise DataError(
                one_line(f"{path}: has images of {array.shape[1]} numbers, {paths[0]} of ")
                + f"{found[0].shape[1]}"
            )
    labels = np.repeat(np.arange(len(found)), [len(array) for array in found])
    return Images(np.concatenate(found), labels, 255, str(paths[0].parent))


def _read_array(path: Path) -> NDArray[np.uint8]:
    """[images, numbers of an image]"""
    try:
        file = io.BytesIO(read_plain(path, plain_input))
    except OSError as error:
        raise MissingInputError(
            one_line(f"{path}: cannot be read ({error.strerror or error})")
        ) from None
    try:
        shape, fortran, kind = HEADERS[np.lib.format.read_magic(file)](file)
        if kind != np.uint8 or fortran or len(shape) < 2 or 0 in shape:
            raise ValueError(f"{kind} {list(shape)}")
        return np.frombuffer(file.read(), dtype=np.uint8).reshape(shape).reshape(shape[0], -1)
    except (ValueError, KeyError) as error:
        raise DataError(
            one_line(f"{path}: is no array of images, uint8 [images, ...] in C order ({error})")
        ) from None
