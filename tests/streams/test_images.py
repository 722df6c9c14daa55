"""idx files and the tasks made of them."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from sparsecl.errors import DataError, MissingInputError
from sparsecl.streams.images import IMAGES, LABELS, read_idx, read_images
from sparsecl.streams.permuted_mnist import PermutedMnist
from tests.streams.small import images


def idx(values: np.ndarray) -> bytes:
    head = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    return head + values.astype(np.uint8).tobytes()


PIXELS, NUMBERS = np.arange(24).reshape(4, 3, 2), np.array([0, 1, 1, 2])


def write(folder: Path, pixels: bytes, labels: bytes) -> Path:
    with gzip.open(folder / f"{IMAGES}.gz", "wb") as file:
        file.write(pixels)
    (folder / LABELS).write_bytes(labels)
    return folder


def test_a_folder_of_idx_files_packed_or_not(tmp_path):
    found = read_images(write(tmp_path, idx(PIXELS), idx(NUMBERS)))
    assert found.pixels.tolist() == PIXELS.reshape(4, 6).tolist() and found.num_inputs == 6
    assert found.labels.tolist() == [0, 1, 1, 2] and found.num_classes == 3 and found.white == 255


@pytest.mark.parametrize(
    ("pixels", "labels", "text"),
    [
        (idx(PIXELS)[:-1], idx(NUMBERS), "has fewer entries than the 24"),
        (idx(PIXELS) + b"x", idx(NUMBERS), "has more entries than the 24"),
        (idx(PIXELS), idx(NUMBERS[:3]), "has 4 images, .* has 3 labels"),
        (idx(PIXELS), idx(PIXELS), "no idx file of bytes in 1 dims"),
        (idx(PIXELS[:, :0]), idx(NUMBERS), "has images of 0 x 2 pixels"),
        (b"\0\0\x08\x03" + b"\xff" * 12, idx(NUMBERS), "which is too many"),
    ],
)
def test_files_that_are_not_what_they_say(tmp_path, pixels, labels, text):
    with pytest.raises(DataError, match=text):
        read_images(write(tmp_path, pixels, labels))


def test_a_torn_gzip_file_and_one_that_is_missing(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(idx(NUMBERS))[:-9])
    with pytest.raises(DataError):
        read_idx(path, num_dims=1)
    with pytest.raises(MissingInputError, match="stream.data=.*has no train-images"):
        read_images(tmp_path)


def test_order_and_permutations_follow_from_the_seed_alone():
    tasks = PermutedMnist(images(), samples=100, seed=3)
    late = PermutedMnist(images(), samples=100, seed=3)
    assert late.pixels(2).tolist() == tasks.pixels(2).tolist()  # whoever asks for what first
    assert late.order(1).tolist() == tasks.order(1).tolist() != tasks.order(0).tolist()
    assert PermutedMnist(images(), samples=100, seed=4).order(1).tolist() != late.order(1).tolist()
    # Composed: task 1 permutes the images of task 0.
    step = [tasks.pixels(0).tolist().index(place) for place in tasks.pixels(1)]
    assert sorted(step) == list(range(9)) and (tasks.pixels(0)[step] == tasks.pixels(1)).all()
    # Each image as often as another, within one.
    counts = np.bincount(tasks.order(0), minlength=40)
    assert set(counts) == {2, 3} and len(tasks.order(0)) == 100


def test_pixels_are_permuted_and_scaled():
    tasks = PermutedMnist(images(), samples=10, seed=0)
    x, y = tasks.read(1, np.array([5, 6]))
    expected = images().pixels[[5, 6]][:, tasks.pixels(1)] / 255
    assert x.dtype == np.float32 and np.allclose(x, expected) and y.tolist() == [2, 0]
    assert x.flags.c_contiguous
