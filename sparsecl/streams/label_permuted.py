"""Label-permuted images: the same images in every task, their classes under other labels.

Source: Elsayed & Mahmood 2024 (https://arxiv.org/abs/2404.00781) and their public code
mohmdelsayed/upgd: tasks of 2500 samples of EMNIST (balanced, 47 classes), batch 1. Permutations are
composed, each of the labels as the task before has them. Pixels are normalised with a mean and a
deviation of 0.5. The first task is permuted too.
"""

import numpy as np
from numpy.typing import NDArray

from sparsecl.streams.tasks import ImageTasks, normalised


class LabelPermuted(ImageTasks):
    """Labels are permuted once more in each task."""

    name = "label_permuted"

    def classes(self, task: int) -> NDArray[np.int64]:
        return self.permutation("classes", task, self.images.num_classes)

    def after(self, last: NDArray[np.int64], drawn: NDArray[np.int64]) -> NDArray[np.int64]:
        return drawn[last]

    def scaled(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        return normalised(pixels)
