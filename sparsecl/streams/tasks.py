"""What a stream gives to one network; and tasks that permute one set of images.

What comes is a matter of the seed and the task alone. Every task has an order of samples of its
own.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sparsecl import seeding
from sparsecl.streams.images import Images


class Tasks(Protocol):
    """Follows from the seed of the network and the number of the task alone."""

    def order(self, task: int) -> NDArray[np.int64]:
        """Numbers of the images of a task as they are trained, int64 [samples]."""
        ...

    def read(
        self, task: int, images: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Images [k] by number, as the task has them: fp32 [k, inputs] in [0, 1], labels [k]."""
        ...


class ImageTasks:
    """The tasks that one network sees."""

    name = ""

    def __init__(self, images: Images, *, samples: int, seed: int) -> None:
        """Args:
        samples: of a task.
        """
        self.images, self.samples, self.seed = images, samples, seed
        self._permutations: list[NDArray[np.int64]] = []

    def pixels(self, task: int) -> NDArray[np.int64] | None:
        """Which pixel of the image as it is stands at each place, int64 [inputs]; None = the one
        that stands there anyway."""
        return None

    def classes(self, task: int) -> NDArray[np.int64] | None:
        """What each label is called, int64 [classes]; None = itself."""
        return None

    def scaled(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """What a network is given of pixels in [0, 1], which may be written to."""
        return pixels

    def permutation(self, what: str, task: int, size: int) -> NDArray[np.int64]:
        """Of pixels or of classes in a task, int64 [size]."""
        while len(self._permutations) <= task:
            number = len(self._permutations)
            drawn = seeding.stream(self.seed, self.name, what, number).permutation(size)
            self._permutations.append(
                self.after(self._permutations[-1], drawn) if number else drawn
            )
        return self._permutations[task]

    def after(self, last: NDArray[np.int64], drawn: NDArray[np.int64]) -> NDArray[np.int64]:
        """The permutation of a task, from that of the task before and what is drawn for it."""
        return drawn

    def order(self, task: int) -> NDArray[np.int64]:
        """The images of a task, int64 [samples]: as many passes as it takes, each in its order."""
        rng, size = seeding.stream(self.seed, self.name, "order", task), len(self.images.labels)
        passes = [rng.permutation(size) for _ in range(-(-self.samples // size))]
        return np.concatenate(passes)[: self.samples]

    def read(
        self, task: int, images: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Images [k] by number, as the task has them: fp32 [k, inputs], labels [k]."""
        found, labels = self.images.pixels[images], self.images.labels[images]
        pixels, classes = self.pixels(task), self.classes(task)
        if pixels is not None:
            # `[:, pixels]` would lay a pixel of all images side by side: steps ten times as slow.
            found = np.take(found, pixels, axis=1)
        if classes is not None:
            labels = classes[labels]
        return self.scaled(found.astype(np.float32) / np.float32(self.images.white)), labels


def normalised(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pixels in [0, 1] with a mean of 0.5 taken off and over a deviation of 0.5, in place."""
    pixels -= np.float32(0.5)
    pixels /= np.float32(0.5)
    return pixels
