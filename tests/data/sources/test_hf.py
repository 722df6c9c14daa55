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


def shards(folder, kind, *tables):
    folder.mkdir()
    for number, rows in enumerate(tables):
        table = datasets.Dataset.from_list(rows)
        getattr(table, f"to_{kind}")(folder / f"train-{number}.{kind}")
    return folder


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["json", "parquet", "csv"])
@pytest.mark.parametrize("card", [False, True])
def test_a_column_that_is_not_used_may_change_its_type(tmp_path, kind, streaming, card):
    folder = shards(
        tmp_path / "corpus",
        kind,
        [{"text": "a", "id": 1, "more": "x"}],
        [{"text": "b", "id": "two"}, {"text": "c", "id": "three"}],
    )
    if card:
        features = "[{name: text, dtype: string}, {name: id, dtype: int64}]"
        (folder / "README.md").write_text(f"---\ndataset_info: {{features: {features}}}\n---\n")
    assert list(source(folder, streaming=streaming).texts("train")) == ["a", "b", "c"]


def test_a_field_inside_another(tmp_path):
    rows = [{"doc": {"text": f"row {n}", "id": n}, "n": n} for n in range(3)]
    for kind in ("json", "parquet"):
        folder = shards(tmp_path / kind, kind, rows)
        found = source(folder, text_field="doc.text")
        assert list(found.texts("train")) == ["row 0", "row 1", "row 2"]


def test_bad_rows_are_an_error_or_left_out(tmp_path):
    folder = shards(tmp_path / "corpus", "json", [{"text": t} for t in ("a", None, "b")])
    with pytest.raises(DataError, match="row 1: .*got NoneType; on_bad_row: skip leaves such rows"):
        list(source(folder).texts("train"))
    found = source(folder, on_bad_row="skip")
    assert list(found.texts("train")) == ["a", "b"]
    assert found.remarks.summary()["bad_rows"] == 1
    assert found.key != source(folder).key


def refused(found):
    with pytest.raises(DataError) as error:
        list(found.texts("train"))
    assert "\n" not in str(error.value) and error.value.exit_code == 65
    return str(error.value)


def test_a_configuration_is_asked_for_with_the_choices(tmp_path):
    folder = shards(tmp_path / "corpus", "json", [{"text": "a"}])
    card = "\n".join(
        ["configs:", *(f"- {{config_name: {n}, data_files: '*.json'}}" for n in ("en", "de"))]
    )
    (folder / "README.md").write_text(f"---\n{card}\n---\n")
    line = refused(source(folder))
    assert "'en'" in line and "'de'" in line and line.endswith("; choose one by config_name")
    line = refused(source(folder, config_name="fr"))
    assert "'en'" in line and line.endswith("; choose one by config_name")
    assert list(source(folder, config_name="de").texts("train")) == ["a"]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_broken_file_is_named(tmp_path, streaming):
    folder = shards(tmp_path / "corpus", "json", [{"text": "a"}], [{"text": "b"}])
    (folder / "train-1.json").write_text('{"text": "b"}\n{"text": oops\n')
    line = refused(source(folder, streaming=streaming))
    assert "train-1.json" in line and "on_bad_row: skip" in line


def test_the_column_that_is_used_and_changes_its_type_is_named(tmp_path):
    folder = shards(tmp_path / "corpus", "parquet", [{"text": "a"}], [{"text": [1, 2]}])
    line = refused(source(folder, streaming=True))
    assert "train-1.parquet" in line and "domain d: " in line, line


def test_whatever_it_raises_is_one_line(folder, monkeypatch):
    class OddError(Exception):
        pass

    def fail(*_, **__):
        raise OddError("first\nsecond")

    monkeypatch.setattr(datasets, "load_dataset_builder", fail)
    assert "OddError: first second" in refused(source(folder))
