"""Input-permuted images: each task has an order of pixels that owes nothing to the one before.

Source: Elsayed & Mahmood 2024 (https://arxiv.org/abs/2404.00781) and their public code
mohmdelsayed/upgd: tasks of 5000 samples of MNIST, batch 1. Pixels are normalised with a mean and a
deviation of 0.5, so they lie in [-1, 1]. The first task is permuted too.
"""

import numpy as np
from numpy.typing import NDArray

from sparsecl.streams.tasks import ImageTasks, normalised


class InputPermuted(ImageTasks):
    """Pixels are permuted anew in each task."""

    name = "input_permuted"

    def pixels(self, task: int) -> NDArray[np.int64]:
        return self.permutation("pixels", task, self.images.num_inputs)

    def scaled(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        return normalised(pixels)
