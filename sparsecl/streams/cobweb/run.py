"""Classes that come a few at a time, for learners without the training loop of the streams.

After each phase the accuracy on the test images of every phase's classes is measured, where the
answer may be any class at all: R[phase, domain] of sparsecl/metrics, a domain being the classes of
one phase. Protocol of Barari, Kim & MacLellan 2025, https://arxiv.org/abs/2510.23756, in so far as
a class is trained in one phase only and then tracked; their numbers of images were not found.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Protocol

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from sparsecl import seeding
from sparsecl.bounds import check_bounds
from sparsecl.metrics.forgetting import f_last
from sparsecl.metrics.matrix import ResultMatrix
from sparsecl.metrics.transfer import average_seen
from sparsecl.streams.cobweb.network import CobwebNetwork
from sparsecl.streams.cobweb.search import predict
from sparsecl.streams.cobweb.tree import CobwebTree
from sparsecl.streams.image_sets import ImageSplit, increments, of_classes, read_split

LearnerKind = Literal["cobweb", "cobweb_nn", "cobweb_nn_sparse", "nearest_mean"]


@dataclass(frozen=True, kw_only=True)
class ClassIncrementalConfig:
    """A learner, and classes that come a few at a time."""

    data: Path
    """Folder with the four idx files of MNIST or of a set in its form, or with Omniglot's archives
    (images_*.zip)."""

    learner: LearnerKind = "cobweb"
    """cobweb: Cobweb/4V; cobweb_nn: the neural tree, and with sparse updates; nearest_mean: the
    floor, one mean for each class."""

    classes_per_phase: Annotated[int, Ge(1)] = 2
    """Classes that are new in a phase; divides the number of classes."""

    train_per_class: Annotated[int, Ge(1)] | None = 100
    """Images of a class that are trained, once; null = all."""

    test_per_class: Annotated[int, Ge(1)] | None = 100
    """Images of a class that are tested; null = all."""

    budget: Annotated[int, Ge(1)] = 64
    """Nodes that cobweb visits for an answer."""

    seed: int = 0
    """Decides the order of classes, which images are taken and their order, and the weights."""

    def __post_init__(self) -> None:
        check_bounds(self)


class Learner(Protocol):
    """What a run asks of a learner; images are [B, P] in [0, 1]."""

    def learn(self, images: NDArray[np.floating], labels: NDArray[np.integer]) -> None: ...

    def predict(self, images: NDArray[np.floating]) -> NDArray[np.float64]:
        """Scores of the labels [B, C]; the largest is the answer."""
        ...


@dataclass(frozen=True, eq=False)
class Increments:
    """What a run has measured."""

    classes: list[list[int]]
    """Of each phase, in their order."""
    matrix: ResultMatrix
    """Accuracy [P + 1, P]; row 0 and all losses are NaN, for these learners have neither."""

    @property
    def seen(self) -> list[float]:
        """After each phase: mean accuracy on the classes that have come so far."""
        return [float(a or 0.0) for a in average_seen(self.matrix.accuracy, self.matrix.order)[1:]]

    @property
    def forgetting(self) -> float | None:
        """F_last of the accuracy, in [-1, 1]; None with a single phase."""
        return f_last(-self.matrix.accuracy, self.matrix.order)


def run(config: ClassIncrementalConfig) -> Increments:
    """Read the images, then train and test phase by phase. Local, on the CPU.

    Raises:
        UserError: the config does not fit the images; before any work.
    """
    split = read_split(config.data)
    return run_learner(config, split, LEARNERS[config.learner](config, split))


def run_learner(config: ClassIncrementalConfig, split: ImageSplit, learner: Learner) -> Increments:
    """The same with images and a learner that are there already."""
    phases = increments(split.num_classes, config.classes_per_phase, seed=config.seed)
    tests = [
        of_classes(
            split.test, classes, limit=config.test_per_class, rng=_rng(config, "test", phase)
        )
        for phase, classes in enumerate(phases)
    ]
    accuracy = np.full((len(phases) + 1, len(phases)), np.nan)
    for phase, classes in enumerate(phases):
        rng = _rng(config, "train", phase)
        learner.learn(*of_classes(split.train, classes, limit=config.train_per_class, rng=rng))
        for domain, (images, labels) in enumerate(tests):
            accuracy[phase + 1, domain] = (learner.predict(images).argmax(1) == labels).mean()
    names = ["+".join(map(str, sorted(classes))) for classes in phases]
    matrix = ResultMatrix.from_arrays(
        names, range(len(phases)), np.full(accuracy.shape, np.nan), accuracy=accuracy
    )
    return Increments([classes.tolist() for classes in phases], matrix)


class NearestMean:
    """The floor: the class whose mean image is nearest. It forgets nothing of what it keeps."""

    def __init__(self, num_pixels: int, num_classes: int) -> None:
        self.sums, self.counts = np.zeros((num_classes, num_pixels)), np.zeros(num_classes)

    def learn(self, images: NDArray[np.floating], labels: NDArray[np.integer]) -> None:
        np.add.at(self.sums, labels, images)
        np.add.at(self.counts, labels, 1)

    def predict(self, images: NDArray[np.floating]) -> NDArray[np.float64]:
        means = self.sums / np.maximum(self.counts, 1)[:, None]
        distances = (means**2).sum(1) - 2.0 * (np.asarray(images, dtype=np.float64) @ means.T)
        return np.where(self.counts > 0, -distances, -np.inf)


class Cobweb:
    """The tree as a learner: it answers by a search."""

    def __init__(self, tree: CobwebTree, budget: int) -> None:
        self.tree, self.budget, self.learn = tree, budget, tree.learn

    def predict(self, images: NDArray[np.floating]) -> NDArray[np.float64]:
        return predict(self.tree, np.asarray(images, dtype=np.float64), budget=self.budget)


def _cobweb(config: ClassIncrementalConfig, split: ImageSplit) -> Learner:
    return Cobweb(CobwebTree(split.train.num_inputs, split.num_classes), config.budget)


def _network(sparse: bool) -> Callable[[ClassIncrementalConfig, ImageSplit], Learner]:
    def build(config: ClassIncrementalConfig, split: ImageSplit) -> Learner:
        sizes = split.train.num_inputs, split.num_classes
        return CobwebNetwork(*sizes, sparse=sparse, seed=config.seed)

    return build


def _nearest_mean(config: ClassIncrementalConfig, split: ImageSplit) -> Learner:
    return NearestMean(split.train.num_inputs, split.num_classes)


LEARNERS: dict[LearnerKind, Callable[[ClassIncrementalConfig, ImageSplit], Learner]] = {
    "cobweb": _cobweb,
    "cobweb_nn": _network(sparse=False),
    "cobweb_nn_sparse": _network(sparse=True),
    "nearest_mean": _nearest_mean,
}


def _rng(config: ClassIncrementalConfig, what: str, phase: int) -> np.random.Generator:
    return seeding.stream(config.seed, "class_incremental", what, phase)
