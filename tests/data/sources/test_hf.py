"""Hugging Face datasets from local folders; the hub is never asked."""

import json

import pytest

from sparsecl.data.config import DomainConfig
from sparsecl.data.sources import open_source
from sparsecl.errors import DataError, MissingInputError, UserError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for split in ("train", "validation"):
        records = [{"text": f"{split} {i}", "answer": str(i)} for i in range(5)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, records)))
    return folder


def source(path, **options):
    domain = DomainConfig(name="d", source="hf", path=str(path), **options)
    return open_source(domain, seed=0, max_document_bytes=1000)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_json_lines(folder, streaming):
    found = source(folder, streaming=streaming, validation_split="validation")
    assert list(found.texts("train")) == [f"train {i}" for i in range(5)]
    assert list(found.texts("validation")) == [f"validation {i}" for i in range(5)]
    assert found.has_validation


def test_columns_slices_and_files(folder):
    found = source(folder, split="train[:2]", columns=("text", "answer"))
    assert list(found.texts("train")) == ["train 0\n0", "train 1\n1"]
    assert list(found.texts("validation")) == [] and not found.has_validation
    named = source(folder, data_files=("validation.jsonl",))
    assert next(named.texts("train")) == "validation 0"


def test_csv_and_parquet_and_text(tmp_path):
    rows = datasets.Dataset.from_dict({"text": ["a", "b"]})
    for kind in ("csv", "parquet"):
        (tmp_path / kind).mkdir()
        getattr(rows, f"to_{kind}")(tmp_path / kind / f"train.{kind}")
        assert list(source(tmp_path / kind).texts("train")) == ["a", "b"]


def test_saved_to_disk(tmp_path):
    rows = datasets.Dataset.from_dict({"text": ["a", "b"]})
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "many")
    assert list(source(tmp_path / "one").texts("train")) == ["a", "b"]
    found = source(tmp_path / "many", validation_split="test")
    assert list(found.texts("validation")) == ["a", "b"]
    with pytest.raises(DataError, match=r"split='dev'; it has \['test', 'train'\]"):
        list(source(tmp_path / "many", split="dev").texts("train"))
    with pytest.raises(DataError, match="split='dev': .* holds one split, train"):
        list(source(tmp_path / "one", split="dev").texts("train"))


def test_editing_a_file_changes_the_key(folder):
    before = source(folder).key
    assert source(folder).key == before
    (folder / "train.jsonl").write_text('{"text": "other"}')
    assert source(folder).key != before


def test_mistakes_are_named_in_one_line(folder):
    with pytest.raises(DataError, match="split dev: .*ValueError") as error:
        list(source(folder, split="dev").texts("train"))
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="row 0: no field 'body' .*; it has answer, text"):
        list(source(folder, text_field="body").texts("train"))


def test_what_is_no_dataset_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(MissingInputError, match="no such folder"):
        source("./absent")
    with pytest.raises(MissingInputError, match="is an empty folder"):
        source(tmp_path / "empty")
    with pytest.raises(MissingInputError, match="is a file"):
        source(tmp_path / "a.txt")


def test_the_hub_needs_a_revision():
    with pytest.raises(UserError, match="path: someone/corpus is on the hub and needs `revision`"):
        source("someone/corpus")
    assert source("someone/corpus", revision="v1").key["revision"] == "v1"


def test_an_unreachable_hub_is_named():
    found = source("someone/corpus", revision="v1")
    with pytest.raises(MissingInputError, match="domain d: someone/corpus: split train: ") as error:
        list(found.texts("train"))
    assert "\n" not in str(error.value)
