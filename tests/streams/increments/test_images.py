"""What comes when, and what becomes of an image before it is trained."""

import numpy as np
import pytest
import torch

from sparsecl.errors import DataError, MissingInputError, UserError
from sparsecl.streams.cifar100 import BYTES, read_cifar100
from sparsecl.streams.increments.augment import augment, shifted, turned
from sparsecl.streams.increments.config import IncrementsConfig
from sparsecl.streams.increments.data import Increments, Pixels, check_split, read_increments
from tests.streams.increments.small import split


def test_cut_outs_are_those_of_the_reflected_image():
    x = torch.rand(2, 3, 5, 5)
    assert torch.equal(shifted(x, torch.tensor([[2, 2], [2, 2]]), 2), x)
    found = shifted(x, torch.tensor([[0, 4], [3, 1]]), 2)
    for k, (row, column) in enumerate([(0, 3), (4, 1)]):
        wide = np.pad(x[k].numpy(), ((0, 0), (2, 2), (2, 2)), mode="reflect")
        expected = wide[:, row : row + 5, column : column + 5]
        assert np.array_equal(found[k].numpy(), expected)


def test_images_are_turned_counterclockwise_about_their_middle():
    x = torch.rand(3, 2, 5, 5)
    found = turned(x, torch.tensor([0.0, 90.0, 180.0]))
    for k in range(3):
        assert torch.allclose(found[k], x[k].rot90(k, (1, 2)), atol=1e-5)


def test_half_are_mirrored_and_equal_draws_give_equal_images():
    x = torch.rand(200, 1, 4, 4)
    settings = IncrementsConfig(flip=True)
    found = augment(x, settings, np.random.default_rng(0))
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(found, x, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(found, x, strict=True)]
    assert 70 < sum(mirrored) < 130 and sum(mirrored) + sum(same) == 200
    every = IncrementsConfig(flip=True, crop=1, rotation=15.0)
    a, b, c = (augment(x, every, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert augment(x, IncrementsConfig(), np.random.default_rng(0)) is x


def test_each_class_comes_once_and_nothing_held_back_is_trained():
    settings = IncrementsConfig(start=1, more=3, validation=4, train_per_class=5, test_per_class=6)
    images = split()
    data = Increments(images, settings, tasks=2, seed=3)
    assert [len(classes) for classes in data.classes] == [1, 3]
    assert sorted(np.concatenate(data.classes)) == [0, 1, 2, 3]
    for classes, part in zip(data.classes, data.parts, strict=True):
        assert not set(part.train) & set(part.validation)
        for rows, of, num in (
            (part.train, images.train, 5),
            (part.validation, images.train, 4),
            (part.test, images.test, 6),
        ):
            found = np.bincount(of.labels[rows], minlength=4)
            assert found[classes].tolist() == [num] * len(classes) and found.sum() == len(rows)
    assert len(data.train_rows(1)) == 20 and len(data.train_rows(0)) == 5
    # A label is the place of its class in the order in which they come.
    _, labels = Pixels(images, data.places).read(data.parts[0].train)
    assert labels.tolist() == [0] * 5
    other = Increments(images, settings, tasks=2, seed=4)
    assert [c.tolist() for c in other.classes] != [c.tolist() for c in data.classes]


def test_pixels_have_mean_zero_and_deviation_one_in_each_channel():
    images = split(channels=3)
    x, _ = Pixels(images, np.arange(4)).read(np.arange(len(images.train.labels)))
    assert x.shape == (48, 3, 6, 6)
    assert x.mean((0, 2, 3)).abs().max() < 1e-5
    assert torch.allclose(x.std((0, 2, 3), unbiased=False), torch.ones(3), atol=1e-5)


def test_the_step_size_drops_at_shares_of_a_task():
    card = IncrementsConfig(epochs=200)
    factors = [card.factor(epoch) for epoch in (0, 59, 60, 119, 120, 159, 160, 199)]
    assert factors == pytest.approx([1, 1, 0.2, 0.2, 0.04, 0.04, 0.008, 0.008])
    assert card.num_classes(1) == 2 and IncrementsConfig(start=5, more=5).num_classes(20) == 100
    with pytest.raises(ValueError, match="drops must ascend between 0 and 1"):
        IncrementsConfig(drops=(0.6, 0.3))


def test_what_does_not_fit_the_images_is_refused():
    with pytest.raises(UserError, match="asks for 6 classes, small has 4; take at most 2 tasks"):
        check_split(split(), IncrementsConfig(validation=1), 3)
    with pytest.raises(UserError, match="validation=12 leaves nothing to train"):
        check_split(split(), IncrementsConfig(validation=12), 2)


def test_cifar100_in_its_binary_form(tmp_path):
    rng = np.random.default_rng(0)
    table = rng.integers(0, 256, (20, BYTES), dtype=np.uint8)
    table[:, 0], table[:, 1] = 19, np.arange(20) * 5
    for name in ("train.bin", "test.bin"):
        (tmp_path / name).write_bytes(table.tobytes())
    found = read_increments(tmp_path)
    assert found.train.channels == 3 and found.train.labels.tolist() == list(range(0, 100, 5))
    x, _ = Pixels(found, np.arange(100)).read(np.array([7]))
    red = table[7, 2 : 2 + 1024].reshape(32, 32).astype(np.float32)
    spread = table[:, 2:1026].std()
    assert np.allclose(x[0, 0].numpy(), (red - table[:, 2:1026].mean()) / spread, atol=1e-4)
    (tmp_path / "test.bin").write_bytes(table.tobytes()[:-1])
    with pytest.raises(DataError, match="which is no number of images of 3074 bytes"):
        read_cifar100(tmp_path)
    table[3, 1] = 100
    (tmp_path / "test.bin").write_bytes(table.tobytes())
    with pytest.raises(DataError, match="has the fine label 100"):
        read_cifar100(tmp_path)
    (tmp_path / "test.bin").unlink()
    with pytest.raises(MissingInputError, match="test.bin: cannot be read"):
        read_cifar100(tmp_path)
