"""Images to train and images to test, of idx files or Omniglot, and classes in increments.

Omniglot (Lake et al. 2015, https://github.com/brendenlake/omniglot, MIT) is read from its archives
as they are published: NAME.zip with NAME/ALPHABET/characterNN/*.png, 20 drawings of a character.
"""

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from sparsecl import seeding
from sparsecl.errors import DataError, MissingInputError, UserError
from sparsecl.opening import plain_input
from sparsecl.streams.images import Images, read_idx, read_images

TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
MAX_PNG_BYTES = 1 << 20
"""A drawing that says it is larger is not read; those of Omniglot have 300 bytes."""
MAX_SIDE = 1024
TEST_SHARE = 4
"""One in so many drawings of an Omniglot character is for the test: 5 of 20."""


@dataclass(frozen=True, eq=False)
class ImageSplit:
    """Two sets of one form; every class is in both."""

    train: Images
    test: Images

    @property
    def num_classes(self) -> int:
        return self.train.num_classes


def read_split(folder: Path, *, side: int = 28) -> ImageSplit:
    """The images of a folder: four idx files in MNIST's form, or archives of Omniglot.

    Args:
        side: of an Omniglot image, in pixels; idx files come as they are.

    Raises:
        MissingInputError: the folder has neither. DataError: a file is not what it must be.
    """
    archives = sorted(folder.glob("images_*.zip"))
    if archives:
        return split_off_test(read_omniglot(archives, side=side))
    train = read_images(folder)
    pixels, labels = (
        read_idx(_find(folder, name), num_dims=dims)
        for name, dims in ((TEST_IMAGES, 3), (TEST_LABELS, 1))
    )
    if len(pixels) != len(labels) or pixels[0].size != train.num_inputs:
        raise DataError(
            f"{folder}: {len(pixels)} test images of {pixels[0].size} pixels with {len(labels)} "
            f"labels do not go with training images of {train.num_inputs} pixels"
        )
    test = Images(pixels.reshape(len(pixels), -1), labels.astype(np.int64), 255, train.name)
    if set(test.labels) != set(train.labels):
        raise DataError(f"{folder}: training and test images have other classes")
    return ImageSplit(train, test)


def read_omniglot(archives: Sequence[Path], *, side: int = 28) -> Images:
    """The drawings of one or more archives, in the order of their names; ink is 255, paper 0.

    A character that two archives have is read once. Each alphabet's characters are classes of
    their own, numbered in the order of their names. Pixels are means over the original ones.

    Raises:
        MissingInputError: a file cannot be opened. DataError: it is no such archive.
    """
    drawings: dict[tuple[str, str], tuple[Path, list[str]]] = {}
    for path in archives:
        for name in _members(path):
            alphabet, character = PurePosixPath(name).parts[-3:-1]
            owner, names = drawings.setdefault((alphabet, character), (path, []))
            if owner == path:
                names.append(name)
    if not drawings:
        raise DataError(f"{', '.join(map(str, archives))}: no ALPHABET/characterNN/*.png in it")
    pixels, labels = [], []
    for label, key in enumerate(sorted(drawings)):
        path, names = drawings[key]
        with _archive(path) as archive:
            pixels += [_drawing(archive, path, name, side) for name in sorted(names)]
        labels += [label] * len(names)
    name = "+".join(path.stem for path in archives)
    return Images(np.stack(pixels), np.asarray(labels, dtype=np.int64), 255, name)


def increments(num_classes: int, size: int, *, seed: int) -> list[NDArray[np.int64]]:
    """The classes that come in each phase: a permutation of all by the seed, cut into pieces.

    Raises:
        UserError: `size` does not divide the number of classes.
    """
    if not 1 <= size <= num_classes or num_classes % size:
        raise UserError(
            f"stream.classes_per_phase={size} must divide the number of classes, {num_classes}"
        )
    order = seeding.stream(seed, "class_incremental", "classes").permutation(num_classes)
    return [order[begin : begin + size] for begin in range(0, num_classes, size)]


def of_classes(
    images: Images, classes: NDArray[np.int64], *, limit: int | None, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images of some classes in drawn order, at most `limit` of each class.

    Returns:
        Pixels in [0, 1], fp32 [k, inputs], and labels [k].
    """
    found = [rng.permutation(np.flatnonzero(images.labels == label))[:limit] for label in classes]
    rows = rng.permutation(np.concatenate(found))
    return images.pixels[rows].astype(np.float32) / np.float32(images.white), images.labels[rows]


def split_off_test(images: Images) -> ImageSplit:
    """Of each class the last images are for the test; they lie class by class."""
    rows = np.arange(len(images.labels))
    behind = np.bincount(images.labels).cumsum()[images.labels] - rows  # 1 = the last of its class
    sizes = np.bincount(images.labels)[images.labels]
    test = behind <= np.maximum(sizes // TEST_SHARE, 1)
    if set(images.labels[~test]) != set(images.labels):
        raise DataError(
            f"{images.name}: a character has a single drawing, so none is left to train"
        )
    parts = [
        Images(images.pixels[part], images.labels[part], images.white, images.name)
        for part in (~test, test)
    ]
    return ImageSplit(*parts)


def _find(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise MissingInputError(f"stream.data={folder}: has no {name} and no {name}.gz")


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(open(path, "rb", opener=plain_input))
    except zipfile.BadZipFile:
        raise DataError(f"{path}: is no zip archive") from None
    except OSError as error:
        raise MissingInputError(f"{path}: cannot be read ({error.strerror or error})") from None


def _members(path: Path) -> list[str]:
    with _archive(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".png")]
    # Archives packed on a Mac have a second, hidden file beside each.
    return [
        name for name in names if len(PurePosixPath(name).parts) == 4 and "__MACOSX" not in name
    ]


def _drawing(archive: zipfile.ZipFile, path: Path, name: str, side: int) -> NDArray[np.uint8]:
    """One drawing, uint8 [side * side]."""
    from PIL import Image, UnidentifiedImageError

    try:
        if archive.getinfo(name).file_size > MAX_PNG_BYTES:
            raise DataError(f"{path}: {name} is larger than {MAX_PNG_BYTES} bytes")
        with Image.open(io.BytesIO(archive.read(name)), formats=["PNG"]) as image:
            if max(image.size) > MAX_SIDE:  # known before a pixel is unpacked
                raise DataError(
                    f"{path}: {name} has {image.size} pixels, {MAX_SIDE} a side allowed"
                )
            small = image.convert("L").resize((side, side), Image.Resampling.BOX)
    except (UnidentifiedImageError, zipfile.BadZipFile, OSError, SyntaxError) as error:
        raise DataError(f"{path}: {name} cannot be read ({error})") from None
    return 255 - np.asarray(small, dtype=np.uint8).reshape(-1)
