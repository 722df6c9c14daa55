"""What a stream gives to one network."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


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
