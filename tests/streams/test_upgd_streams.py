"""The streams of UPGD: inputs permuted anew, labels permuted once more."""

import numpy as np
import pytest
import torch

from sparsecl import seeding
from sparsecl.streams.config import LearnerConfig, PanelConfig, StepConfig, StreamConfig
from sparsecl.streams.input_permuted import InputPermuted
from sparsecl.streams.label_permuted import LabelPermuted
from sparsecl.streams.loop import Pack
from tests.streams.small import config, images

PLAIN = images().pixels.astype(np.float32) / 255


@pytest.mark.parametrize("kind", [InputPermuted, LabelPermuted])
def test_what_comes_follows_from_seed_and_task_alone(kind):
    tasks, late = (kind(images(), samples=100, seed=3) for _ in range(2))
    numbers = np.arange(40)
    for task in (2, 0):  # whoever asks for what first
        for a, b in zip(late.read(task, numbers), tasks.read(task, numbers), strict=True):
            assert np.array_equal(a, b)
    assert tasks.order(1).tolist() == late.order(1).tolist() != tasks.order(0).tolist()
    assert kind(images(), samples=100, seed=4).order(1).tolist() != late.order(1).tolist()


def test_inputs_are_permuted_anew_and_normalised():
    tasks = InputPermuted(images(), samples=10, seed=0)
    seen = [tasks.pixels(task).tolist() for task in range(5)]
    assert all(sorted(one) == list(range(9)) for one in seen) and len(set(map(tuple, seen))) == 5
    # Task 3 is what it is without the tasks before.
    assert InputPermuted(images(), samples=10, seed=0).pixels(3).tolist() == seen[3]
    x, y = tasks.read(1, np.array([5, 6]))
    assert np.allclose(x, 2 * PLAIN[[5, 6]][:, seen[1]] - 1, atol=1e-6) and y.tolist() == [2, 0]
    assert x.dtype == np.float32 and x.flags.c_contiguous


def test_labels_are_permuted_once_more_and_images_stay():
    tasks = LabelPermuted(images(classes=6), samples=10, seed=0)
    for task in range(4):
        step = tasks.classes(task)
        assert sorted(step) == list(range(6))
        x, y = tasks.read(task, np.arange(12))
        assert np.allclose(x, 2 * PLAIN[:12] - 1, atol=1e-6)
        assert y.tolist() == [*step, *step] and y.dtype == np.int64
    # Composed: what a task draws is done to the labels of the task before.
    drawn = [seeding.stream(0, "label_permuted", "classes", task).permutation(6) for task in (0, 1)]
    assert tasks.classes(0).tolist() == drawn[0].tolist()
    assert tasks.classes(1).tolist() == [drawn[1][old] for old in drawn[0]]


@pytest.mark.parametrize("kind", ["input_permuted", "label_permuted"])
def test_networks_of_several_widths_learn_a_stream(kind):
    settings = config(
        seeds=2,
        stream=StreamConfig(kind=kind, tasks=2, samples_per_task=400),
        learner=LearnerConfig(widths=(16, 8)),
        optimizer=StepConfig(lr=0.05),
        panel=PanelConfig(samples=40, every=50),
    )
    pack, found = Pack(settings, images(12), 0), []
    pack.train(lambda kind, **v: found.append((kind, v)), lambda p: None, lambda *a: None)
    sizes = [tuple(param.shape[1:]) for param in pack.model.parameters() if param.dim() == 3]
    assert sizes == [(16, 9), (8, 16), (3, 8)]
    shares = [v["online_accuracy"] for kind, v in found if kind == "task"]
    assert len(shares) == 4 and min(shares) > 0.6  # 12 images, each seen some 33 times
    assert all(torch.isfinite(param).all() for param in pack.model.parameters())


def test_widths_are_in_place_of_width_and_layers():
    shapes = LearnerConfig(widths=(300, 150)).shapes(784, 10)
    assert [(s.in_features, s.out_features) for s in shapes] == [(784, 300), (300, 150), (150, 10)]
    with pytest.raises(ValueError, match="widths"):
        LearnerConfig(widths=(3, 0))
