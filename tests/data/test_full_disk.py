"""The disk fills up, fails or forbids while data is prepared: one line, a code, nothing left."""

import builtins
import errno
import json
import os
import subprocess

import pytest

from sparsecl.data import digest_set
from sparsecl.data.config import DataConfig, DomainConfig, TokenizerConfig
from sparsecl.data.digest_set import DigestSet
from sparsecl.data.prepare import prepare
from sparsecl.data.sources import hf, open_source
from sparsecl.errors import CannotCreateError, MissingInputError, StorageError, UserError


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def write_corpus(folder, count, words=20):
    path = folder / "a.jsonl"
    with open(path, "w") as file:
        for n in range(count):
            file.write(json.dumps({"text": f"{n} " + "word " * words}) + "\n")
    return DomainConfig(name="d", source="files", train=(str(path),))


def run(domain, cache, tokenizer=None):
    data = DataConfig(domains=(domain,), cache_dir=str(cache), validation_share=0.2, workers=1)
    return prepare(data, tokenizer or TokenizerConfig(kind="bytes"), context=16, seed=0)


def refused(kind, domain, cache, tokenizer=None):
    with pytest.raises(kind) as caught:
        run(domain, cache, tokenizer)
    assert "\n" not in str(caught.value) and "data.cache_dir" in str(caught.value)
    left = [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert not [path for path in left if ".tmp" in str(path)]
    return str(caught.value)


@pytest.mark.fault("H4")
@pytest.mark.parametrize(
    ("count", "words", "stage"),
    [
        (60_000, 0, "the set of digests grows"),
        (3000, 200, "text"),
        (2000, 150, "tokens"),
    ],
)
def test_a_disk_that_is_really_full(tmp_path, small_disk, count, words, stage):
    domain = write_corpus(tmp_path, count, words)
    line = refused(StorageError, domain, small_disk / "cache")
    group = "tokens" if stage == "tokens" else "text"
    where = f"data.cache_dir {small_disk / 'cache' / group}: cannot be written"
    assert line.startswith(f"{where} (No space left on device; make room)"), line
    kept = [path.name for path in small_disk.glob("cache/*/[!.]*")]
    assert len(kept) == 3 * (stage == "tokens")  # text, leaks and tokenizer are whole and stay


@pytest.mark.fault("H4")
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, StorageError),
        (errno.EDQUOT, StorageError),
        (errno.EIO, StorageError),
        (errno.EACCES, CannotCreateError),
        (errno.EROFS, CannotCreateError),
    ],
)
def test_every_file_that_is_written(tmp_path, monkeypatch, code, kind):
    domain = write_corpus(tmp_path, 300)
    tokenizer = TokenizerConfig(vocab_size=277)
    wanted = {
        "train.text",
        "validation.lengths",
        "train.marks",
        "train.seen",
        "d.left_out",
        "train.tokens",
        "validation.tokens",
    }
    for name in sorted(wanted):
        real = builtins.open

        def fail(path, *words, name=name, real=real, **more):
            if str(path).endswith(f"/{name}"):
                raise OSError(code, os.strerror(code))
            return real(path, *words, **more)

        with monkeypatch.context() as patch:
            patch.setattr(builtins, "open", fail)
            patch.setattr(digest_set, "plain", fail if name == "train.seen" else digest_set.plain)
            refused(kind, domain, tmp_path / name, tokenizer)
    assert run(domain, tmp_path / "whole", tokenizer)


@pytest.mark.fault("H4")
def test_a_source_that_fails_is_no_fault_of_the_cache(tmp_path, monkeypatch):
    domain = DomainConfig(name="code", source="installed", max_train_bytes=1000)

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO), "heapq.py")

    monkeypatch.setattr("sparsecl.data.sources.installed.read_bytes", fail)
    with pytest.raises(MissingInputError, match="domain code: cannot be read .*heapq.py"):
        run(domain, tmp_path / "cache")


@pytest.mark.fault("H4")
def test_the_cache_of_datasets_is_full(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "corpus").mkdir()
    write_corpus(tmp_path / "corpus", 50)
    domain = DomainConfig(name="d", source="hf", path=str(tmp_path / "corpus"))
    source = open_source(domain, seed=0, max_document_bytes=1000)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail(*_):
        raise datasets.exceptions.DatasetGenerationError("An error occurred") from full

    monkeypatch.setattr(hf, "_load", fail)
    with pytest.raises(
        StorageError, match="the cache of `datasets` .*: cannot be written .No space"
    ):
        list(source.texts("train"))


def test_a_dataset_that_is_broken_gets_one_line(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.parquet").write_bytes(b"PAR1 and nothing else PAR1")
    domain = DomainConfig(name="d", source="hf", path=str(tmp_path / "corpus"))
    source = open_source(domain, seed=0, max_document_bytes=1000)
    with pytest.raises(UserError) as caught:
        list(source.texts("train"))
    assert caught.value.exit_code in (65, 66) and "\n" not in str(caught.value)


@pytest.mark.fault("H4")
def test_a_set_of_digests_that_is_cut_is_no_signal(tmp_path):
    with DigestSet(tmp_path / "seen", capacity=4) as seen:
        os.truncate(tmp_path / "seen", 0)
        with pytest.raises(OSError, match="was cut"):
            seen.add(b"1" * 16)
