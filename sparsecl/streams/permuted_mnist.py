"""Online permuted MNIST: the same images in every task, their pixels in another order.

Source: Dohare et al. 2024 (https://doi.org/10.1038/s41586-024-07711-7) and their public code
shibhansh/loss-of-plasticity. Permutations are composed, each of the images as the task before has
them; pixels lie in [0, 1], without mean and deviation; each sample is trained once.
"""

import numpy as np
from numpy.typing import NDArray

from sparsecl.streams.tasks import ImageTasks


class PermutedMnist(ImageTasks):
    """Pixels are permuted once more in each task."""

    name = "permuted_mnist"

    def pixels(self, task: int) -> NDArray[np.int64]:
        return self.permutation("pixels", task, self.images.num_inputs)

    def after(self, last: NDArray[np.int64], drawn: NDArray[np.int64]) -> NDArray[np.int64]:
        return last[drawn]
