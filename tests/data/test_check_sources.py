"""A source file that was edited and has kept its size and its time."""

import gzip
import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from sparsecl.data.config import DataConfig, DomainConfig, TokenizerConfig
from sparsecl.data.prepare import prepare
from sparsecl.data.sources import docstrings, installed, open_source
from sparsecl.errors import DataError, MissingInputError

TEXTS = [f"document {n} of the corpus" for n in range(60)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


def write_parquet(path, texts=TEXTS):
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, compression="none")


WRITERS = {
    "a.jsonl": lambda path: path.write_bytes(LINES),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES, 0)),
    "a.txt": lambda path: path.write_text("\n".join(TEXTS)),
    "a.parquet": write_parquet,
}


def edit(path, old=b"document 7", new=b"Document 7"):
    """Change the content and nothing that `stat` shows but the ctime."""
    before, content = path.stat(), path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def run(domain, cache, **options):
    data = DataConfig(domains=(domain,), cache_dir=str(cache), max_document_bytes=1000)
    return prepare(data, TokenizerConfig(kind="bytes"), context=16, seed=0, **options)


@pytest.mark.fault("H5")
@pytest.mark.parametrize("name", list(WRITERS))
def test_an_edit_that_nothing_shows_is_found_when_it_is_asked_for(tmp_path, name):
    path = tmp_path / name
    WRITERS[name](path)
    options = {"separator": "\n"} if name == "a.txt" else {}
    domain = DomainConfig(name="d", source="files", train=(str(path),), **options)
    first = run(domain, tmp_path / "cache", check_sources=True)
    edit(path)
    assert run(domain, tmp_path / "cache").fingerprint == first.fingerprint
    with pytest.raises(DataError, match=f"domain d: {path} was edited .* delete .*/text/d-"):
        run(domain, tmp_path / "cache", check_sources=True)


@pytest.mark.fault("H5")
def test_of_a_file_that_was_read_in_part_that_part_counts(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n".join(f"line {n}" for n in range(400_000)))
    (tmp_path / "v.txt").write_text("held out text that is long enough")
    domain = DomainConfig(
        name="d",
        source="files",
        train=(str(path),),
        validation=(str(tmp_path / "v.txt"),),
        max_train_bytes=100,
    )
    found = run(domain, tmp_path / "cache", verify=False)
    (num_bytes, _) = found.domains[0].manifest["text"]["reads"][str(path)]
    assert 100 <= num_bytes < path.stat().st_size
    edit(path, b"line 399999", b"LINE 399999")
    run(domain, tmp_path / "cache", check_sources=True)
    edit(path, b"line 3\n", b"LINE 3\n")
    with pytest.raises(DataError, match="was edited"):
        run(domain, tmp_path / "cache", check_sources=True)


@pytest.mark.fault("H5")
def test_a_dataset_in_a_local_folder(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()
    (tmp_path / "corpus").mkdir()
    path = tmp_path / "corpus" / "train.jsonl"
    path.write_bytes(LINES)
    domain = DomainConfig(name="d", source="hf", path=str(path.parent), streaming=True)
    run(domain, tmp_path / "cache", check_sources=True)
    edit(path)
    with pytest.raises(DataError, match=f"{path} was edited"):
        run(domain, tmp_path / "cache", check_sources=True)


@pytest.mark.fault("H5")
def test_files_of_the_installation_are_noted():
    domain = DomainConfig(name="dialogue", source="installed", max_train_bytes=1000)
    source = open_source(domain, seed=0, max_document_bytes=1000)
    folder = Path(docstrings.__file__).parent
    for read in (installed._prose, installed._dialogue):
        reads = {}
        list(read([folder], reads))
        assert str(Path(docstrings.__file__).resolve()) in {str(Path(p).resolve()) for p in reads}
    assert source.reads == {}


def test_a_source_that_is_gone_is_named(tmp_path):
    from sparsecl.data.sources.reads import check_reads

    with pytest.raises(MissingInputError, match="domain d: /no/such: No such file"):
        check_reads({"/no/such": [1, "0" * 64]}, "d", tmp_path)
