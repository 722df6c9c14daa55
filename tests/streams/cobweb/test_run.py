"""Classes that come a few at a time: on small images, and on MNIST where it lies."""

from pathlib import Path

import numpy as np
import pytest

from sparsecl.errors import UserError
from sparsecl.streams.cobweb.run import (
    LEARNERS,
    ClassIncrementalConfig,
    Increments,
    LearnerKind,
    NearestMean,
    run,
    run_learner,
)
from sparsecl.streams.image_sets import read_split
from tests.streams.test_image_sets import SHARED, small_mnist

MNIST = SHARED / "mnist"


class Parrot:
    """Answers the label that it was last shown."""

    def learn(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.last = labels.max()

    def predict(self, images: np.ndarray) -> np.ndarray:
        return np.eye(4)[np.full(len(images), self.last)]


def test_the_matrix_of_a_learner_that_forgets_all(tmp_path: Path) -> None:
    config = ClassIncrementalConfig(data=small_mnist(tmp_path), classes_per_phase=2, seed=1)
    found = run_learner(config, read_split(tmp_path), Parrot())
    assert sorted(sum(found.classes, [])) == [0, 1, 2, 3]
    assert np.isnan(found.matrix.accuracy[0]).all()
    # Of two classes it knows one, and only in the phase that has just been trained.
    assert found.matrix.accuracy[1:].tolist() == [[0.5, 0.0], [0.0, 0.5]]
    assert found.seen == [0.5, 0.25] and found.forgetting == 0.5
    assert found.matrix.domains == tuple(
        "+".join(map(str, sorted(phase))) for phase in found.classes
    )


@pytest.mark.parametrize("learner", LEARNERS)
def test_every_learner_runs_and_equal_seeds_give_equal_matrices(tmp_path: Path, learner) -> None:
    small_mnist(tmp_path)
    config = ClassIncrementalConfig(data=tmp_path, learner=learner, train_per_class=5)
    first, second = run(config), run(config)
    np.testing.assert_array_equal(first.matrix.accuracy, second.matrix.accuracy)
    assert len(first.seen) == 2
    if learner in ("cobweb", "nearest_mean"):  # twelve pixels that tell four classes apart
        assert first.seen == [1.0, 1.0] and first.forgetting == 0.0


def test_the_nearest_mean_by_hand() -> None:
    means = NearestMean(1, 3)
    means.learn(np.array([[0.0], [1.0], [4.0]]), np.array([0, 0, 2]))
    assert means.predict(np.array([[1.0], [3.0], [9.0]])).argmax(1).tolist() == [0, 2, 2]


def test_what_does_not_fit_is_refused_before_any_work(tmp_path: Path) -> None:
    small_mnist(tmp_path)
    with pytest.raises(UserError, match="classes_per_phase=3 must divide the number of classes, 4"):
        run(ClassIncrementalConfig(data=tmp_path, classes_per_phase=3))
    with pytest.raises(ValueError, match="budget must be >= 1, got 0"):
        ClassIncrementalConfig(data=tmp_path, budget=0)


@pytest.mark.slow
@pytest.mark.skipif(not MNIST.is_dir(), reason="no ../shared/mnist")
def test_on_mnist_the_tree_keeps_what_the_neural_tree_loses() -> None:
    split = read_split(MNIST)

    def measured(learner: LearnerKind) -> Increments:
        config = ClassIncrementalConfig(
            data=MNIST, learner=learner, train_per_class=40, test_per_class=30, budget=16
        )
        return run_learner(config, split, LEARNERS[learner](config, split))

    tree, means, network = (
        measured(name).matrix.accuracy for name in ("cobweb", "nearest_mean", "cobweb_nn")
    )
    assert tree[-1].mean() > 0.6 and means[-1].mean() > 0.7
    # The classes of the first phase, right after it and after all the others.
    assert min(tree[1, 0], network[1, 0]) > 0.85
    assert tree[-1, 0] > 0.5 and network[-1, 0] < 0.2
