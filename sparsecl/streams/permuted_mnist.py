"""Online permuted MNIST: the same images in every task, their pixels in another order.

Source: Dohare et al. 2024 (https://doi.org/10.1038/s41586-024-07711-7) and their public code
shibhansh/loss-of-plasticity. Permutations are composed, each of the images as the task before has
them; pixels lie in [0, 1], without mean and deviation; every task has an order of samples of its
own, and each sample is trained once. What comes is a matter of the seed and the task alone.
"""

import numpy as np
from numpy.typing import NDArray

from sparsecl import seeding
from sparsecl.streams.images import Images


class PermutedMnist:
    """The tasks that one network sees."""

    name = "permuted_mnist"

    def __init__(self, images: Images, *, samples: int, seed: int) -> None:
        """Args:
        samples: of a task.
        """
        self.images, self.samples, self.seed = images, samples, seed
        self._pixels: list[NDArray[np.int64]] = []

    def pixels(self, task: int) -> NDArray[np.int64]:
        """Which pixel of the image as it is stands at each place, int64 [inputs]."""
        while len(self._pixels) <= task:
            rng = seeding.stream(self.seed, self.name, "pixels", len(self._pixels))
            step = rng.permutation(self.images.num_inputs)
            self._pixels.append(self._pixels[-1][step] if self._pixels else step)
        return self._pixels[task]

    def order(self, task: int) -> NDArray[np.int64]:
        """The images of a task, int64 [samples]: as many passes as it takes, each in its order."""
        rng, size = seeding.stream(self.seed, self.name, "order", task), len(self.images.labels)
        passes = [rng.permutation(size) for _ in range(-(-self.samples // size))]
        return np.concatenate(passes)[: self.samples]

    def read(
        self, task: int, images: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Images [k] by number, as the task has them: fp32 [k, inputs] in [0, 1], labels [k]."""
        # `[:, pixels]` would lay the pixels of all images side by side: steps ten times as slow.
        found = np.take(self.images.pixels[images], self.pixels(task), axis=1)
        scaled = found.astype(np.float32) / np.float32(self.images.white)
        return scaled, self.images.labels[images]
