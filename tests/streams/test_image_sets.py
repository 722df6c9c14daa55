"""Readers of images on small files of the same form, and on the real ones where they lie."""

import gzip
import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparsecl.errors import DataError, MissingInputError, UserError
from sparsecl.streams.image_sets import increments, of_classes, read_omniglot, read_split

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


def write_idx(path: Path, array: np.ndarray) -> None:
    head = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes(), mtime=0))


def small_mnist(folder: Path, *, num_classes: int = 4, each: int = 6) -> Path:
    """Four files; an image of class c is bright in its c-th pixels, with some noise."""
    rng = np.random.default_rng(0)
    for part in ("train", "t10k"):
        labels = np.arange(num_classes * each) % num_classes
        pixels = rng.integers(0, 60, size=(len(labels), 3, 4))
        pixels.reshape(len(labels), -1)[np.arange(len(labels)), labels * 3] = 255
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", pixels)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", labels)
    return folder


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).convert("1").save(out, "PNG")
    return out.getvalue()


def small_omniglot(path: Path, alphabets: dict[str, int], *, drawings: int = 8) -> Path:
    """Character k has ink in row k of 6 x 6 pixels."""
    with zipfile.ZipFile(path, "w") as archive:
        for alphabet, count in alphabets.items():
            for k in range(count):
                for drawing in range(drawings):
                    paper = np.full((6, 6), 255, dtype=np.uint8)
                    paper[k] = 0
                    name = f"{path.stem}/{alphabet}/character{k + 1:02d}/{drawing:04d}.png"
                    archive.writestr(name, png(paper))
        archive.writestr(f"__MACOSX/{path.stem}/X/._a.png", b"no image")
    return path


def test_idx_files_of_mnists_form(tmp_path: Path) -> None:
    split = read_split(small_mnist(tmp_path))
    assert split.train.pixels.shape == split.test.pixels.shape == (24, 12)
    assert split.num_classes == 4 and (split.train.pixels[np.arange(24) % 4 == 2, 6] == 255).all()
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.zeros(24))
    with pytest.raises(DataError, match="have other classes"):
        read_split(tmp_path)
    write_idx(tmp_path / "t10k-images-idx3-ubyte.gz", np.zeros((24, 2, 2)))
    with pytest.raises(DataError, match="24 test images of 4 pixels .* of 12 pixels"):
        read_split(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(MissingInputError, match="has no t10k-images-idx3-ubyte"):
        read_split(tmp_path)


def test_omniglots_archives(tmp_path: Path) -> None:
    first = small_omniglot(tmp_path / "images_a.zip", {"Greek": 3, "Latin": 2})
    small_omniglot(tmp_path / "images_b.zip", {"Latin": 2, "Tifinagh": 1})
    images = read_omniglot(sorted(tmp_path.glob("*.zip")), side=3)
    assert images.num_classes == 3 + 2 + 1 and images.pixels.shape == (48, 9)
    # Greek/character01: the upper of two rows is ink, so the first row is half ink.
    assert images.pixels[0].tolist() == [127] * 3 + [0] * 6
    split = read_split(tmp_path, side=6)
    assert np.bincount(split.train.labels).tolist() == [6] * 6
    assert np.bincount(split.test.labels).tolist() == [2] * 6
    ink = split.test.pixels.reshape(-1, 6, 6)[split.test.labels == 1]
    assert (ink == np.where(np.arange(6) == 1, 255, 0)[:, None]).all()

    with zipfile.ZipFile(first, "a") as archive:
        archive.writestr("images_a/Greek/character09/1.png", b"\x80\x04N.")
    with pytest.raises(DataError, match="character09/1.png cannot be read"):
        read_omniglot([first])
    first.write_bytes(b"PK")
    with pytest.raises(DataError, match="is no zip archive"):
        read_omniglot([first])
    with pytest.raises(MissingInputError, match="cannot be read"):
        read_omniglot([tmp_path / "images_c.zip"])


def test_every_class_comes_once_in_the_order_of_the_seed() -> None:
    phases = increments(10, 2, seed=3)
    assert [len(classes) for classes in phases] == [2] * 5
    assert sorted(np.concatenate(phases)) == list(range(10))
    assert (np.stack(phases) == np.stack(increments(10, 2, seed=3))).all()
    assert (np.stack(phases) != np.stack(increments(10, 2, seed=4))).any()
    with pytest.raises(UserError, match="classes_per_phase=3 must divide .* 10"):
        increments(10, 3, seed=0)


def test_images_of_some_classes(tmp_path: Path) -> None:
    images = read_split(small_mnist(tmp_path)).train
    rng = np.random.default_rng(0)
    pixels, labels = of_classes(images, np.array([3, 1]), limit=4, rng=rng)
    assert np.bincount(labels).tolist() == [0, 4, 0, 4]
    assert pixels.dtype == np.float32 and (pixels[np.arange(8), labels * 3] == 1.0).all()
    assert len(of_classes(images, np.array([0]), limit=None, rng=rng)[1]) == 6


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "omniglot").is_dir(), reason="no ../shared/omniglot")
def test_the_archives_as_they_are_published() -> None:
    (archive,) = (SHARED / "omniglot").glob("images_background_small2.zip")
    with zipfile.ZipFile(archive) as opened:
        names = [name for name in opened.namelist() if name.endswith(".png")]
    images = read_omniglot([archive])
    assert images.pixels.shape == (len(names), 28 * 28)
    assert (np.bincount(images.labels) == 20).all()
    assert 0.02 < images.pixels.mean() / 255 < 0.2  # thin lines on paper
