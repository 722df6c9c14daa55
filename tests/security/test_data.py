"""A data cache and tokenizers that somebody else has touched."""

import functools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from sparsecl import config as configs
from sparsecl.data import text_store, tokenizer_training
from sparsecl.data.given_tokenizer import load
from sparsecl.data.prepare import PreparedData, prepare
from sparsecl.data.tokenizer import MAX_MODEL_BYTES, read_model
from sparsecl.engine.run_config import RunConfig
from sparsecl.errors import UserError
from tests.data.stores import reseal
from tests.launch.starter import tiny
from tests.security.canary import Canary, harmless, refused


def read(cache: Path) -> PreparedData:
    """What a run reads before it trains."""
    path = cache.parent / "run.yaml"
    path.write_text(yaml.safe_dump(tiny(cache)))
    config = configs.load(RunConfig, path)
    return prepare(config.data, config.tokenizer, context=16, seed=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A cache as `prepare` makes it."""
    cache = tmp_path_factory.mktemp("data") / "cache"
    read(cache)
    return cache


@pytest.fixture
def cache(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "cache"))


def tokens(cache: Path) -> Path:
    return next(cache.glob("tokens/a-*"))


def text(cache: Path) -> Path:
    """The text of a domain whose tokens have to be made again, after a search for leaks."""
    for entry in [*cache.glob("tokens/[!.]*"), *cache.glob("leaks/[!.]*")]:
        shutil.rmtree(entry)
    return next(cache.glob("text/a-*"))


def change(path: Path, *keys: str, value: Any) -> None:
    """Put a value into a JSON file; Ellipsis removes the key."""

    def put(whole: dict[str, Any]) -> None:
        place = whole
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        if value is ...:
            del place[keys[-1]]

    if path.name == "manifest.json":
        reseal(path, put)
    else:
        whole = json.loads(path.read_text())
        put(whole)
        path.write_text(json.dumps(whole))


VALUES = [..., None, True, "5", -5, 2.5, float("inf"), float("nan"), 10**30, [1], {"a": 1}]


@pytest.mark.parametrize(
    "keys",
    [("dtype",), ("train",), ("train", "tokens"), ("train", "documents"), ("train", "sha256")],
    ids=".".join,
)
def test_the_manifest_of_tokens(cache, canary, keys):
    manifest = tokens(cache) / "manifest.json"
    before = manifest.read_text()
    for value in (..., None, True, -5, 2.5, float("inf"), 10**30, [1], "|O"):
        manifest.write_text(before)
        change(manifest, *keys, value=value)
        assert str(tokens(cache)) in refused(lambda: read(cache), canary, 65)


@pytest.mark.parametrize(
    "keys",
    [("train",), ("train", "sha256"), ("validation", "documents"), ("entropy_per_byte",)],
    ids=".".join,
)
def test_the_manifest_of_text(cache, canary, keys):
    manifest = next(cache.glob("text/a-*")) / "manifest.json"
    before = manifest.read_text()
    for value in [..., -1.0, 10**400, [1], {"a": 1}]:
        manifest.write_text(before)
        change(manifest, *keys, value=value)
        refused(lambda: read(cache), canary, 65)


@pytest.mark.parametrize("part", ["tokens", "text", "tokenizers"])
def test_manifests_that_are_none(cache, canary, part):
    entry = next(cache.glob(f"{part}/[!.]*"))
    name = "tokenizer.json" if part == "tokenizers" else "manifest.json"
    for content in (canary.pickle(0), canary.pickle(), b"[" * 100_000, b'{"a":' * 50_000, b"\xff"):
        (entry / name).write_bytes(content)
        assert str(entry) in refused(lambda: read(cache), canary, 65)


def test_a_manifest_without_end(cache, canary):
    os.truncate(tokens(cache) / "manifest.json", 10**12)  # sparse: takes no disk
    assert "larger than" in refused(lambda: read(cache), canary, 65)


def swap_for_link(path: Path) -> None:
    other = path.with_name("elsewhere")
    path.rename(other)
    path.symlink_to(other)


def swap_for_pickle(path: Path) -> None:
    """A pickled NumPy array of the same size, so that only its content can tell."""
    array = np.array([Canary(path.parent).pickle()], dtype=object)
    size = path.stat().st_size
    with open(path, "wb") as file:
        np.save(file, array, allow_pickle=True)
        file.truncate(size)


ATTACKS: dict[str, Callable[[Path], Any]] = {
    "link": swap_for_link,
    "pickle": swap_for_pickle,
    "gone": os.unlink,
    "empty": lambda path: os.truncate(path, 0),
    "cut": lambda path: os.truncate(path, path.stat().st_size - 1),
    "longer": lambda path: os.truncate(path, 10**12),
    "folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.fault("C14", "T2")
@pytest.mark.parametrize("attack", list(ATTACKS))
def test_token_files(cache, canary, attack):
    path = tokens(cache) / "train.tokens"
    ATTACKS[attack](path)
    assert str(path) in refused(lambda: read(cache), canary, 65)
    assert not list(cache.rglob("canary"))


@pytest.mark.fault("H2")
@pytest.mark.parametrize("name", ["train.lengths", "train.text", "validation.marks"])
@pytest.mark.parametrize("attack", list(ATTACKS))
def test_text_files(cache, canary, attack, name):
    folder = text(cache)
    ATTACKS[attack](folder / name)
    assert str(folder) in refused(lambda: read(cache), canary, 65)
    assert not list(cache.rglob("canary"))


def test_text_that_is_not_utf8(cache, canary):
    path = text(cache) / "train.text"
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert f"{path}: was changed" in refused(lambda: read(cache), canary, 65)


@pytest.mark.parametrize("attack", sorted(set(ATTACKS) - {"empty"}))
def test_what_is_left_out(cache, canary, attack):
    shutil.rmtree(tokens(cache))
    path = next(cache.glob("leaks/run-*/a.left_out"))
    path.write_bytes(bytes(8))  # with something in it that can be cut
    ATTACKS[attack](path)
    assert str(path.parent) in refused(lambda: read(cache), canary, 65)


@pytest.mark.parametrize("keys", [("left_out",), ("left_out", "by"), ("overlap", "runs")])
def test_the_manifest_of_leaks(cache, canary, keys):
    manifest = next(cache.glob("leaks/run-*")) / "manifest.json"
    before = manifest.read_text()
    for value in (..., None, True, -5, 2.5, 10**30, [1]):
        manifest.write_text(before)
        change(manifest, "domains", "a", *keys, value=value)
        assert str(manifest.parent) in refused(lambda: read(cache), canary, 65)


@pytest.mark.fault("T2")
def test_lengths_that_add_up_beyond_the_file(tmp_path, canary):
    (tmp_path / "train.text").write_bytes(b"abc")
    np.array([2**32 - 1] * 4, dtype="<u4").tofile(tmp_path / "train.lengths")
    for documents in (1, 4, 2**60):
        part = {"documents": documents, "bytes": 3, "longest": 2**40, "sha256": "0" * 64}
        found = text_store.documents(tmp_path, "train", part)
        refused(functools.partial(list, found), canary, 65)


# ---- tokenizers --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> bytes:
    words = [f"word{k % 97} and {k % 31} more\n" for k in range(400)]
    return tokenizer_training.train(words, 290)._model


def test_files_that_are_no_model(tmp_path, canary, model):
    path = tmp_path / "m.model"
    huge = b"\x0a" + b"\xff" * 9 + b"\x01"  # a first piece of 2^63 bytes
    for content in (canary.pickle(0), canary.pickle(), huge + model, huge, b"\x0a", b"{}" * 9):
        path.write_bytes(content)
        assert f"tokenizer.model={path}" in refused(lambda: read_model(path), canary, 65)


def test_a_model_that_is_cut_or_damaged(tmp_path, canary, model):
    """It is refused, or is another whole tokenizer, whose digest then tells it apart."""
    path, rng, refusals = tmp_path / "m.model", np.random.default_rng(3), 0
    for _ in range(60):
        damaged = bytearray(model)
        damaged[rng.integers(0, len(model))] ^= 1 << rng.integers(0, 8)
        cut = rng.random() < 0.5
        path.write_bytes(damaged[: rng.integers(1, len(model))] if cut else damaged)
        found = harmless(lambda: read_model(path), canary)
        if isinstance(found, UserError):
            refusals += 1
        else:
            assert found.digest != read_digest(model)
            assert len(found.bytes_per_token) == found.vocab_size
    assert refusals > 10


def read_digest(model: bytes) -> str:
    from sparsecl.data.tokenizer import SentencePieceTokenizer

    return SentencePieceTokenizer(model).digest


def test_a_byte_piece_that_is_no_byte(tmp_path, canary, model):
    path = tmp_path / "m.model"
    assert model.count(b"<0x41>") == 1
    path.write_bytes(model.replace(b"<0x41>", b"<0xZZ>"))
    refused(lambda: read_model(path), canary, 65)


def test_models_that_never_end(tmp_path, canary):
    path = tmp_path / "m.model"
    os.mkfifo(path)
    assert "is a pipe" in refused(lambda: read_model(path), canary, 66)
    assert "is a device" in refused(lambda: read_model(Path("/dev/zero")), canary, 66)
    large = tmp_path / "large.model"
    large.touch()
    os.truncate(large, MAX_MODEL_BYTES + 1)
    assert "larger than" in refused(lambda: read_model(large), canary, 65)


@pytest.mark.parametrize("value", [*VALUES, "pickle", "../bytes", "__import__('os')"])
def test_the_description_of_a_saved_tokenizer(tmp_path, canary, model, value):
    (tmp_path / "tokenizer.model").write_bytes(model)
    for key in ("kind", "digest"):
        description = {"kind": "sentencepiece", "digest": read_digest(model), "vocab_size": 290}
        (tmp_path / "tokenizer.json").write_text(json.dumps(description))
        assert load(tmp_path).vocab_size == 290
        change(tmp_path / "tokenizer.json", key, value=value)
        refused(lambda: load(tmp_path), canary, 65)
