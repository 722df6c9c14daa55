"""Which images a network sees in which task.

n = images of a set. The order of classes and all draws follow from the seed; a label is the place
of its class in that order, so the classes that have come are the first logits.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsecl import dist, seeding
from sparsecl.errors import UserError
from sparsecl.streams.cifar100 import is_cifar100, read_cifar100
from sparsecl.streams.image_sets import ImageSplit, read_split, split_off_test
from sparsecl.streams.images import Images, read_images
from sparsecl.streams.increments.config import IncrementsConfig

Rows = NDArray[np.int64]


def read_increments(folder: Path | None) -> ImageSplit:
    """Images to train and to test, of a folder or of scikit-learn's digits.

    Raises:
        MissingInputError, DataError: see the readers.
    """
    if folder is not None:
        return read_cifar100(folder) if is_cifar100(folder) else read_split(folder)
    digits = read_images(None)
    rows = np.argsort(digits.labels, kind="stable")
    return split_off_test(
        Images(digits.pixels[rows], digits.labels[rows], digits.white, digits.name)
    )


def check_split(split: ImageSplit, config: IncrementsConfig, tasks: int) -> None:
    """Raise UserError where a task lacks classes, or a class images."""
    if config.num_classes(tasks) > split.num_classes:
        most = 1 + max(0, split.num_classes - config.start) // config.more
        raise UserError(
            f"stream.tasks={tasks} with stream.increments.start={config.start} and more="
            f"{config.more} asks for {config.num_classes(tasks)} classes, {split.train.name} has "
            f"{split.num_classes}; take at most {most} tasks"
        )
    fewest = int(np.bincount(split.train.labels, minlength=split.num_classes).min())
    if fewest <= config.validation:
        raise UserError(
            f"stream.increments.validation={config.validation} leaves nothing to train of a class "
            f"with {fewest} images; take fewer"
        )


def side(images: Images) -> int:
    """Pixels in a row of an image.

    Raises:
        UserError: it is no square.
    """
    found = math.isqrt(images.num_inputs // images.channels)
    if found * found * images.channels != images.num_inputs:
        raise UserError(f"stream.data: images of {images.num_inputs} pixels are no squares")
    return found


@dataclass(frozen=True)
class Part:
    """Images of the classes of one task."""

    train: Rows
    validation: Rows
    test: Rows


def class_order(num_classes: int, seed: int) -> Rows:
    """All classes, in the order in which they come."""
    return seeding.stream(seed, "class_incremental", "classes").permutation(num_classes)


def pieces(order: Rows, config: IncrementsConfig, tasks: int) -> list[Rows]:
    """The classes that come with each task."""
    ends = [config.num_classes(k + 1) for k in range(tasks)]
    return [order[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


class Increments:
    """The tasks of one seed."""

    def __init__(
        self, split: ImageSplit, config: IncrementsConfig, *, tasks: int, seed: int
    ) -> None:
        self.split, self.config, self.seed = split, config, seed
        order = class_order(split.num_classes, seed)
        self.classes = pieces(order, config, tasks)
        self.places = np.argsort(order)
        self.parts = [self._part(task) for task in range(tasks)]

    def num_seen(self, task: int) -> int:
        """Classes that have come with a task."""
        return self.config.num_classes(task + 1)

    def train_rows(self, task: int) -> Rows:
        """Training images of all classes that have come."""
        return np.concatenate([part.train for part in self.parts[: task + 1]])

    def validation_rows(self, task: int) -> Rows:
        return np.concatenate([part.validation for part in self.parts[: task + 1]])

    def _part(self, task: int) -> Part:
        config, split = self.config, self.split
        rng = seeding.stream(self.seed, "class_incremental", "images", task)
        found: tuple[list[Rows], ...] = ([], [], [])
        for label in self.classes[task]:
            rows = rng.permutation(np.flatnonzero(split.train.labels == label))
            held, rest = rows[: config.validation], rows[config.validation :]
            tests = rng.permutation(np.flatnonzero(split.test.labels == label))
            for into, part in zip(
                found,
                (rest[: config.train_per_class], held, tests[: config.test_per_class]),
                strict=True,
            ):
                into.append(part)
        return Part(*(np.concatenate(rows) for rows in found))


class Pixels:
    """Images as a network takes them: of each channel, mean 0 and deviation 1 over all training
    images."""

    def __init__(self, split: ImageSplit, places: Rows) -> None:
        """Args:
        places: of each class, its label.
        """
        size = side(split.train)
        shape = (-1, split.train.channels, size, size)
        device = dist.device()
        self._sets = [
            (
                torch.from_numpy(np.array(images.pixels)).view(shape).to(device),
                torch.from_numpy(places[images.labels]).to(device),
            )
            for images in (split.train, split.test)
        ]
        planes = split.train.pixels.reshape(len(split.train.labels), split.train.channels, -1)
        # Of whole numbers of a byte: counts are exact, whatever the order.
        means, spreads = zip(*(_moments(planes[:, k]) for k in range(planes.shape[1])), strict=True)
        self._mean, self._spread = (
            torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)
            for values in (means, spreads)
        )

    def read(self, rows: Rows, *, test: bool = False) -> tuple[Tensor, Tensor]:
        """Images fp32 [k, channels, side, side] and labels [k]."""
        pixels, labels = self._sets[test]
        at = torch.from_numpy(np.asarray(rows)).to(labels.device)
        return (pixels[at].float() - self._mean) / self._spread, labels[at]


def _moments(plane: NDArray[np.uint8]) -> tuple[float, float]:
    counts = np.bincount(plane.reshape(-1), minlength=256).astype(np.float64)
    values = np.arange(len(counts))
    mean = float(counts @ values / counts.sum())
    return mean, max(float(np.sqrt(counts @ (values - mean) ** 2 / counts.sum())), 1e-6)
