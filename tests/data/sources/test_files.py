"""Local files: what is read, and one message for every way a file can be wrong."""

import gzip
import json
import os

import pyarrow
import pyarrow.parquet
import pytest

from sparsecl.data.config import DomainConfig
from sparsecl.data.sources import Continuation, open_source
from sparsecl.errors import DataError, MissingInputError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def texts(*train, split="train", max_document_bytes=1_000_000, **options):
    domain = DomainConfig(name="d", source="files", train=train, **options)
    source = open_source(domain, seed=0, max_document_bytes=max_document_bytes)
    return list(source.texts(split))


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def test_plain_text_is_one_document(here):
    (here / "a.txt").write_bytes("\ufeffone\n\ncaf\u00e9 ${HOME} $(ls)\n".encode())
    assert texts("a.txt") == ["one\n\ncaf\u00e9 ${HOME} $(ls)\n"]


def test_a_separator_parts_plain_text(here):
    (here / "a.txt").write_text("one<|end|>two\n<|end|>three")
    assert texts("a.txt", separator="<|end|>") == ["one", "two\n", "three"]


def test_gzip_is_read_like_plain(here):
    (here / "a.txt.gz").write_bytes(gzip.compress(b"one\n"))
    (here / "a.jsonl.gz").write_bytes(gzip.compress(lines({"text": "two"})))
    assert texts("a.txt.gz", "a.jsonl.gz") == ["one\n", "two"]


def test_json_lines(here):
    (here / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines({"text": "a\r\nb", "id": 1}) + b"\r\n\n")
    assert texts("a.jsonl") == ["a\r\nb"]


def test_columns_are_joined_by_a_newline(here):
    (here / "a.jsonl").write_bytes(lines({"q": "1+1?", "a": "2"}))
    assert texts("a.jsonl", columns=("q", "a")) == ["1+1?\n2"]
    assert texts("a.jsonl", text_field="a") == ["2"]


def test_parquet(here):
    table = pyarrow.table({"text": [f"row {i}" for i in range(600)], "n": range(600)})
    pyarrow.parquet.write_table(table, here / "a.parquet", row_group_size=100)
    assert texts("a.parquet") == [f"row {i}" for i in range(600)]


def test_globs_are_sorted_and_each_file_is_read_once(here):
    (here / "sub").mkdir()
    for name in ("b.txt", "a.txt", "sub/c.txt", "x[1].txt"):
        (here / name).write_text(name)
    assert texts("b.txt", "*.txt") == ["b.txt", "a.txt", "x[1].txt"]
    assert texts("**/*.txt") == ["a.txt", "b.txt", "sub/c.txt", "x[1].txt"]
    assert texts("x[1].txt") == ["x[1].txt"]


def test_validation_files(here):
    (here / "a.txt").write_text("a")
    (here / "b.txt").write_text("b")
    assert texts("a.txt", validation=("b.txt",), split="validation") == ["b"]
    assert texts("a.txt", split="validation") == []


def test_a_large_text_comes_in_pieces(here):
    content = "".join(f"line {i}\n" for i in range(500_000))  # crosses the chunks of reading
    (here / "a.txt").write_text(content)
    pieces = texts("a.txt", max_document_bytes=100_000)
    assert "".join(pieces) == content
    assert [isinstance(piece, Continuation) for piece in pieces] == [False] + [True] * (
        len(pieces) - 1
    )
    assert max(map(len, pieces)) <= 200_000
    assert all(piece.endswith("\n") for piece in pieces)


def test_a_separator_ends_a_document_that_came_in_pieces(here, monkeypatch):
    monkeypatch.setattr("sparsecl.data.sources.readers._CHUNK_BYTES", 700)
    (here / "a.txt").write_text("x" * 2500 + "|" + "y" * 10 + "|" + "z" * 2500)
    found = texts("a.txt", separator="|", max_document_bytes=1000)
    assert [(str(text)[0], isinstance(text, Continuation)) for text in found] == [
        ("x", False),
        ("x", True),
        ("y", False),
        ("z", False),
        ("z", True),
    ]


def test_characters_across_chunks_survive(here):
    content = "x" + "\U0001f600" * 600_000
    (here / "a.txt").write_text(content)
    assert "".join(texts("a.txt")) == content


def test_editing_a_file_changes_the_key(here):
    domain = DomainConfig(name="d", source="files", train=("a.txt",))
    (here / "a.txt").write_text("one")
    before = open_source(domain, seed=0, max_document_bytes=1000).key
    (here / "a.txt").write_text("two")
    os.utime(here / "a.txt", ns=(1, 1))
    assert open_source(domain, seed=0, max_document_bytes=1000).key != before


DATA_MISTAKES = {
    "empty.txt": (b"", "empty.txt is empty"),
    "blank.txt": (b" \n\n", "blank.txt: holds no text"),
    "a.csv": (b"text\nx\n", r"a.csv is of an unknown kind; known are \.txt"),
    "bad.txt": (b"abc\xff", "bad.txt: byte 0xff at byte offset 3 is not UTF-8"),
    "cut.txt": (b"abc\xe4\xbd", "cut.txt: byte 0xe4 at byte offset 3 is not UTF-8"),
    "late.txt": (b"a" * (1 << 20) + b"bc\xff", "late.txt: byte 0xff at byte offset 1048578"),
    "nul.txt": (b"ab\0c", "nul.txt: NUL at byte offset 2"),
    "broken.jsonl": (lines({"text": "a"}) + b"{oops\n", "broken.jsonl:2: not JSON: .*column 2"),
    "list.jsonl": (b"[1]\n", "list.jsonl:1: a JSON object is expected, got list"),
    "field.jsonl": (lines({"body": "a"}), "field.jsonl:1: no field 'text' .*; it has body"),
    "type.jsonl": (lines({"text": None}), "type.jsonl:1: field 'text' must be text, got NoneType"),
    "deep.jsonl": (b'{"text": ' + b"[" * 10**5, "deep.jsonl:1: not JSON"),
    "bytes.jsonl": (
        lines({"text": "a"}) + b'"\xff"\n',
        "bytes.jsonl:2: byte 0xff at byte offset 15",
    ),
    "half.jsonl": (
        b'{"text": "\\ud800"}\n',
        "half.jsonl:1: the text holds NUL or half a surrogate",
    ),
    "nothing.jsonl": (b"\n\n", "nothing.jsonl: holds no text"),
    "cut.jsonl.gz": (
        gzip.compress(os.urandom(5000).hex().encode())[:-2000],
        "cut.jsonl.gz: the gzip data is truncated",
    ),
    "no.txt.gz": (b"plain text", "no.txt.gz: broken gzip data"),
    "flip.txt.gz": (gzip.compress(b"a" * 99)[:-8] + b"12345678", "flip.txt.gz: broken gzip data"),
    "bad.parquet": (b"PAR1 junk", "bad.parquet: broken parquet data"),
}


@pytest.mark.parametrize("name", DATA_MISTAKES)
def test_wrong_content_is_named(here, name):
    content, message = DATA_MISTAKES[name]
    (here / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        texts(name)
    assert "\n" not in str(error.value)


def test_parquet_without_the_column_is_named(here):
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a"]}), here / "a.parquet")
    with pytest.raises(DataError, match=r"a.parquet: no column 'text' .*; it has \['body'\]"):
        texts("a.parquet")


def test_replacement_is_an_explicit_option(here):
    (here / "a.txt").write_bytes(b"a\xffb\0c")
    (here / "b.jsonl").write_bytes(b'{"text": "x\\ud800y"}\n')
    found = texts("a.txt", "b.jsonl", encoding_errors="replace")
    assert found == ["a\ufffdb\ufffdc", "x\ufffdy"]


def test_missing_inputs_are_named(here):
    (here / "folder").mkdir()
    with pytest.raises(MissingInputError, match="domain d: train: no.txt: .*No such file"):
        texts("no.txt")
    with pytest.raises(MissingInputError, match=r"\*.txt: the glob matches no file in "):
        texts("*.txt")
    with pytest.raises(MissingInputError, match="folder is a folder; write a glob such as folder/"):
        texts("folder")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_named(here):
    (here / "a.txt").write_text("a")
    (here / "a.txt").chmod(0)
    with pytest.raises(MissingInputError, match="a.txt: Permission denied"):
        texts("a.txt")
