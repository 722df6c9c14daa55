"""Cutting, duplicates, and the split by hash."""

from tqdm import tqdm

from sparsecl.data import text_store
from sparsecl.data.documents import cut, document_hash, write_texts
from sparsecl.data.sources import Source


def write(folder, train, validation=None, **options):
    splits = {"train": train, "validation": validation or []}
    source = Source(
        key={}, texts=lambda split: iter(splits[split]), has_validation=validation is not None
    )
    values = {"validation_share": 0.2, "max_document_bytes": 1000, "max_train_bytes": None}
    folder.mkdir(exist_ok=True)
    with tqdm(disable=True) as progress:
        return write_texts(source, folder, progress=progress, **(values | options))


def read(folder, manifest, split="train"):
    return list(text_store.documents(folder, split, manifest[split]))


def test_cut_by_hand():
    assert list(cut(b"aaaa\nbbbb\ncccc\ndd", 12)) == [b"aaaa\nbbbb\n", b"cccc\ndd"]
    assert list(cut(b"aaaa bbbb cccc", 12)) == [b"aaaa bbbb ", b"cccc"]
    assert list(cut(b"a" * 20, 8)) == [b"a" * 8, b"a" * 8, b"a" * 4]
    assert list(cut(b"short", 8)) == [b"short"] and list(cut(b"", 8)) == []


def test_cut_never_parts_a_character():
    text = "\u4f60\U0001f600e" * 50
    for limit in range(8, 30):
        pieces = list(cut(text.encode(), limit))
        assert "".join(piece.decode() for piece in pieces) == text
        assert max(map(len, pieces)) <= limit


def test_store_keeps_documents_and_boundaries(tmp_path):
    documents = [f"document {i} " * (i % 5 + 1) for i in range(40)]
    manifest = write(tmp_path, documents, ["held out"])
    assert read(tmp_path, manifest) == documents
    assert read(tmp_path, manifest, "validation") == ["held out"]
    assert manifest["train"]["documents"] == 40
    assert manifest["train"]["bytes"] == sum(map(len, documents))


def test_duplicates_are_dropped_white_space_aside(tmp_path):
    manifest = write(tmp_path, ["a b", "a  b\n", "c", "A b", "", " \n", "e\u0301", "\u00e9"], ["v"])
    assert read(tmp_path, manifest) == ["a b", "c", "A b", "e\u0301"]
    assert manifest["dropped"] == {"empty": 2, "duplicate": 2}


def test_a_validation_document_is_never_in_train(tmp_path):
    manifest = write(tmp_path, ["one", "two  ", "three"], ["two", "four"])
    assert read(tmp_path, manifest) == ["one", "three"]
    assert read(tmp_path, manifest, "validation") == ["two", "four"]


def test_split_by_hash_has_the_share_and_parts_everything(tmp_path):
    documents = [f"document number {i}" for i in range(2000)]
    manifest = write(tmp_path, documents)
    train, validation = read(tmp_path, manifest), read(tmp_path, manifest, "validation")
    assert sorted(train + validation) == sorted(documents)
    assert 340 < len(validation) < 460  # 400 expected, standard deviation 18


def test_adding_documents_moves_no_other_document(tmp_path):
    old = [f"document number {i}" for i in range(300)]
    before = write(tmp_path / "a", old)
    after = write(tmp_path / "b", [f"new {i}" for i in range(100)] + old[::-1])
    for split in ("train", "validation"):
        found = set(read(tmp_path / "b", after, split))
        assert set(read(tmp_path / "a", before, split)) == found & set(old)


def test_the_cap_stops_reading(tmp_path):
    def endless():
        i = 0
        while True:
            yield f"document number {i}"
            i += 1

    manifest = write(tmp_path, endless(), max_train_bytes=10_000)
    assert 10_000 <= manifest["train"]["bytes"] < 10_030
    assert manifest["validation"]["documents"] > 0


def test_line_ends_become_newlines_and_long_documents_pieces(tmp_path):
    manifest = write(tmp_path, ["a\r\nb", "x" * 2500], ["v"])
    assert read(tmp_path, manifest) == ["a\nb", "x" * 1000, "x" * 500]  # an equal piece is dropped


def test_moving_a_boundary_changes_the_digest(tmp_path):
    one = write(tmp_path / "a", ["ab", "c"], ["v"])
    two = write(tmp_path / "b", ["a", "bc"], ["v"])
    assert one["train"]["sha256"] != two["train"]["sha256"]


def test_document_hash_is_of_normalised_text():
    assert document_hash(b"a\n b ") == document_hash(b"a b") != document_hash(b"ab")
    assert len(document_hash(b"a")) == 16
