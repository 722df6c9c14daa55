"""Continual image pairs: each task is to tell two classes apart, of few images trained many times.

Source: Continual ImageNet of Dohare et al. 2024 (https://doi.org/10.1038/s41586-024-07711-7) and
their public code shibhansh/loss-of-plasticity. A network takes the next two classes of an order of
its own, which begins again at its end; with an odd number of classes the pairs are then others. At
the start of a task the layer that gives the logits is zero, weights and biases, and the optimizer
keeps its momentum. What counts is the accuracy on held-out images at the end of the task.

Differs: pixels lie in [0, 1], where the public loader leaves the values as they are. An epoch that
ends within a batch is followed by the next one in the same batch.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparsecl import dist, seeding
from sparsecl.streams.images import Images
from sparsecl.streams.models import Networks
from sparsecl.streams.pair_sets import PairImages


class ImagePairs:
    """The tasks that one network sees."""

    name = "image_pairs"

    def __init__(self, images: Images, *, samples: int, seed: int) -> None:
        """Args:
        samples: of a task, over all its epochs.
        """
        assert isinstance(images, PairImages)
        self.images, self.samples, self.seed = images, samples, seed
        rng = seeding.stream(seed, self.name, "classes")
        self._classes = rng.permutation(np.unique(images.labels))

    def pair(self, task: int) -> NDArray[np.int64]:
        """The classes of a task, int64 [2]: those with label 0 and 1."""
        return np.take(self._classes, [2 * task, 2 * task + 1], mode="wrap")

    def order(self, task: int) -> NDArray[np.int64]:
        """The images of a task, int64 [samples]: as many epochs as it takes, each in its order."""
        rng = seeding.stream(self.seed, self.name, "order", task)
        rows = np.flatnonzero(np.isin(self.images.labels, self.pair(task)))
        epochs = [rng.permutation(rows) for _ in range(-(-self.samples // len(rows)))]
        return np.concatenate(epochs)[: self.samples]

    def read(
        self, task: int, images: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Images [k] by number: fp32 [k, inputs] in [0, 1], labels [k], 0 or 1."""
        return self._of(self.images, task, images)

    def held_out(self, task: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The images of a task that are never trained, as `read` gives them."""
        test = self.images.test
        return self._of(test, task, np.flatnonzero(np.isin(test.labels, self.pair(task))))

    def _of(
        self, images: Images, task: int, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        scaled = images.pixels[rows].astype(np.float32) / np.float32(images.white)
        return scaled, (images.labels[rows] == self.pair(task)[1]).astype(np.int64)


@torch.no_grad()
def zero_head(model: Networks) -> None:
    """Let the last layer of every network be zero, as at the start of each pair."""
    last: Any = model.layers[-1]
    last.weight.zero_()
    last.bias.zero_()


@torch.no_grad()
def accuracy_after(model: Networks, tasks: Sequence[ImagePairs], task: int) -> list[float]:
    """The share of held-out images that each network answers right. Logits that are equal count as
    an answer of 0.

    Args:
        tasks: [N]; classes may have different numbers of images.
    """
    found = []
    for network, own in enumerate(tasks):
        h, y = (torch.from_numpy(part).to(dist.device()) for part in own.held_out(task))
        layers: list[Any] = list(model.layers)
        for layer in layers:
            h = layer.squash(torch.addmm(layer.shared_bias[network], h, layer.turned[network]))
        found.append(float((h.argmax(-1) == y).double().mean()))
    return found
