"""Cutting, duplicates, and the two sides."""

import pytest
from tqdm import tqdm

from sparsecl.data import text_store
from sparsecl.data.documents import cut, write_texts
from sparsecl.data.identity import document_digest
from sparsecl.data.sources import Continuation, Source


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


def test_of_documents_that_are_the_same_the_first_is_kept(tmp_path):
    texts = ["a b", "a  b\n", "c", "A b.", "", " \n", "e\u0301", "\u00e9", "...", "!"]
    manifest = write(tmp_path, texts, ["v"])
    assert read(tmp_path, manifest) == ["a b", "c", "e\u0301", "...", "!"]
    assert manifest["dropped"] == {"empty": 2, "duplicate": 3}


def long_document(number, lines=100):
    return "".join(f"line {line} of document {number}\n" for line in range(lines))


def sides_of(folder, manifest):
    """Document -> the sides that have a line of it."""
    found = {}
    for split in ("train", "validation"):
        for text in read(folder, manifest, split):
            for line in text.splitlines():
                found.setdefault(line.rpartition(" ")[2], set()).add(split)
    return found


def test_all_pieces_of_a_document_are_on_one_side(tmp_path):
    manifest = write(tmp_path, [long_document(n) for n in range(60)])
    assert manifest["train"]["documents"] + manifest["validation"]["documents"] >= 3 * 60
    sides = sides_of(tmp_path, manifest)
    assert len(sides) == 60 and all(len(found) == 1 for found in sides.values())
    assert set.union(*sides.values()) == {"train", "validation"}


def test_what_goes_on_with_a_document_goes_where_its_beginning_went(tmp_path):
    texts = []
    for number in range(60):
        lines = long_document(number, 90).splitlines(keepends=True)
        texts += ["".join(lines[:20]), *map(Continuation, ("".join(lines[20:50]), " \n"))]
        texts.append(Continuation("".join(lines[50:])))
    manifest = write(tmp_path, texts)
    sides = sides_of(tmp_path, manifest)
    assert len(sides) == 60 and all(len(found) == 1 for found in sides.values())
    assert set.union(*sides.values()) == {"train", "validation"}


def test_near_copies_are_on_one_side_once(tmp_path):
    texts = [f"Document number {i}." for i in range(200)]
    copies = [f"  document NUMBER {i}" for i in range(200)]
    manifest = write(tmp_path, [*texts, *copies])
    assert manifest["dropped"]["duplicate"] == 200
    assert sorted(read(tmp_path, manifest) + read(tmp_path, manifest, "validation")) == sorted(
        texts
    )


def test_a_copy_of_a_long_document_that_is_cut_elsewhere_is_dropped(tmp_path):
    document = long_document(1)
    manifest = write(tmp_path, [document, "\n \n\n" + document, "other"], ["v"])
    assert manifest["dropped"]["duplicate"] == 1
    assert "".join(read(tmp_path, manifest)) == document + "other"


def test_of_the_only_document_the_tail_is_held_out(tmp_path):
    document = long_document(1, 400)
    for number, texts in enumerate(
        [
            [document],
            [document, " ", document.upper()],
            [document[:4000], Continuation(document[4000:])],
        ]
    ):
        folder = tmp_path / str(number)
        manifest = write(folder, texts)
        train, tail = read(folder, manifest), read(folder, manifest, "validation")
        assert "".join(train + tail) == document
        assert "".join(train).endswith("\n")
        share = manifest["validation"]["bytes"] / len(document)
        assert 0.2 <= share < 0.21
        assert sorted(path.name for path in folder.iterdir()) == [
            f"{split}.{name}"
            for split in ("train", "validation")
            for name in ("lengths", "marks", "text")
        ]


def test_the_tail_of_a_document_without_line_ends(tmp_path):
    manifest = write(tmp_path, ["\u00e9" * 50])
    assert read(tmp_path, manifest) == ["\u00e9" * 40]
    assert read(tmp_path, manifest, "validation") == ["\u00e9" * 10]


def test_the_cap_counts_what_is_read_of_the_only_document(tmp_path):
    def endless():
        yield "line 0\n"
        for number in range(1, 10**9):
            yield Continuation(f"line {number}\n")

    manifest = write(tmp_path, endless(), max_train_bytes=10_000)
    assert 7_900 < manifest["train"]["bytes"] <= 8_010
    assert 2_000 <= manifest["validation"]["bytes"] < 2_100


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


@pytest.mark.fault("T4")
def test_line_ends_become_newlines_and_long_documents_pieces(tmp_path):
    manifest = write(tmp_path, ["a\r\nb", "x" * 2500], ["v"])
    assert read(tmp_path, manifest) == ["a\nb", "x" * 1000, "x" * 500]  # an equal piece is dropped


def test_moving_a_boundary_changes_the_digest(tmp_path):
    one = write(tmp_path / "a", ["ab", "c"], ["v"])
    two = write(tmp_path / "b", ["a", "bc"], ["v"])
    assert one["train"]["sha256"] != two["train"]["sha256"]


def test_marks_are_of_the_document_and_of_its_whole(tmp_path):
    document = long_document(1, 60)
    manifest = write(tmp_path, ["short", document], ["v"])
    texts = read(tmp_path, manifest)
    marks = list(text_store.marks(tmp_path, "train", manifest["train"]))
    assert [own for own, _ in marks] == [document_digest(text) for text in texts]
    assert marks[0][0] == marks[0][1] and len(marks) > 2
    assert {whole for _, whole in marks[1:]} == {document_digest(document)}
