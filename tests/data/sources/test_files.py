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


@pytest.mark.fault("T4")
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
    monkeypatch.setattr("sparsecl.data.sources.plain._CHUNK_BYTES", 700)
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
    "a.doc": (b"text\nx\n", r"a.doc is of an unknown kind; known are \.txt"),
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
        "cut.jsonl.gz: the gz data is truncated",
    ),
    "no.txt.gz": (b"plain text", "no.txt.gz: broken gz data"),
    "flip.txt.gz": (gzip.compress(b"a" * 99)[:-8] + b"12345678", "flip.txt.gz: broken gz data"),
    "bad.parquet": (b"PAR1 junk", "bad.parquet: broken parquet data"),
}


@pytest.mark.fault("T4")
@pytest.mark.parametrize("name", DATA_MISTAKES)
def test_wrong_content_is_named(here, name):
    content, message = DATA_MISTAKES[name]
    (here / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        texts(name)
    assert "\n" not in str(error.value)


def test_parquet_without_the_column_is_named(here):
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a"]}), here / "a.parquet")
    with pytest.raises(DataError, match=r"a.parquet: no field 'text' .*; it has body"):
        texts("a.parquet")


@pytest.mark.fault("T4")
def test_replacement_is_an_explicit_option(here):
    (here / "a.txt").write_bytes(b"a\xffb\0c")
    (here / "b.jsonl").write_bytes(b'{"text": "x\\ud800y"}\n')
    found = texts("a.txt", "b.jsonl", encoding_errors="replace")
    assert found == ["a\ufffdb\ufffdc", "x\ufffdy"]


@pytest.mark.fault("T1")
def test_missing_inputs_are_named(here):
    (here / "folder").mkdir()
    with pytest.raises(MissingInputError, match="^domain d: train: no.txt: No such file"):
        texts("no.txt")
    with pytest.raises(MissingInputError, match=r"\*.txt: the glob matches no file in "):
        texts("*.txt")
    with pytest.raises(MissingInputError, match="folder is a folder; write a glob such as folder/"):
        texts("folder")


@pytest.mark.fault("T1")
@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_named(here):
    (here / "a.txt").write_text("a")
    (here / "a.txt").chmod(0)
    with pytest.raises(MissingInputError, match="a.txt: Permission denied"):
        texts("a.txt")


# ---- the kind of a file ------------------------------------------------------------------------


@pytest.mark.parametrize("through_glob", [False, True])
def test_the_kind_follows_the_name_and_not_what_a_link_leads_to(here, through_glob):
    (here / "blobs").mkdir()
    (here / "blobs" / "3af1").write_bytes(gzip.compress(lines({"text": "one"})))
    (here / "blobs" / "9c").write_bytes(lines({"text": "two"}))
    (here / "part-0.jsonl.gz").symlink_to(here / "blobs" / "3af1")
    (here / "part-1.JSONL").symlink_to(here / "blobs" / "9c")
    names = ("part*",) if through_glob else ("part-0.jsonl.gz", "part-1.JSONL")
    assert texts(*names) == ["one", "two"]
    assert texts("part-1.JSONL", "part-1.JSONL", "blobs/../part-1.JSONL") == ["two"]


def test_a_file_of_an_unknown_kind_is_refused_under_every_name(here):
    (here / "data.jsonl").write_bytes(lines({"text": "one"}))
    (here / "data").symlink_to("data.jsonl")
    for name in ("data", "./data", "dat*[a]"):
        with pytest.raises(DataError, match=r"data is of an unknown kind; known are .*\.parquet"):
            texts(name)
    (here / "a.parquet.gz").write_bytes(b"x")
    with pytest.raises(DataError, match="a.parquet.gz is of an unknown kind"):
        texts("a.parquet.gz")


def test_the_key_tells_how_a_file_is_read(here):
    (here / "blob").write_bytes(lines({"text": "one"}))
    keys = []
    for name in ("a.jsonl", "a.txt"):
        (here / name).symlink_to("blob")
        keys.append(key(name))
    keys += [key("a.jsonl", on_bad_row="skip"), key("a.jsonl", columns=("a.b",))]
    assert all(keys.count(one) == 1 for one in keys)


def key(*train, **options):
    domain = DomainConfig(name="d", source="files", train=train, **options)
    return open_source(domain, seed=0, max_document_bytes=1000).key


def test_a_glob_names_a_link_that_leads_nowhere(here):
    (here / "a.txt").write_text("a")
    (here / "b.txt").symlink_to("gone")
    with pytest.raises(MissingInputError, match=r"\*.txt: b.txt: No such file"):
        texts("*.txt")


def test_globs_of_absolute_paths_and_of_the_home_folder(here, monkeypatch):
    (here / "sub").mkdir()
    (here / "sub" / "a.txt").write_text("a")
    monkeypatch.setenv("HOME", str(here))
    assert texts(f"{here}/**/*.txt") == texts("~/s*/a.txt") == texts("~/sub/a.txt") == ["a"]
    with pytest.raises(MissingInputError, match=r"\*.md: the glob matches no file$"):
        texts(f"{here}/*.md")
    (here / "~").mkdir()
    (here / "~" / "b.txt").write_text("b")
    assert texts("~/b.txt") == ["b"]  # what is there under that very name


# ---- line ends ---------------------------------------------------------------------------------


def test_a_separator_is_found_between_line_ends_of_windows(here):
    (here / "a.txt").write_bytes(b"\r\n\r\n".join(b"note %d\r\nmore" % n for n in range(400)))
    found = texts("a.txt", separator="\n\n")
    assert found == [f"note {n}\nmore" for n in range(400)]
    assert texts("a.txt", separator="\r\n\r\n") == found


@pytest.mark.parametrize("before", range(4))
def test_a_line_end_across_two_blocks(here, before, monkeypatch):
    monkeypatch.setattr("sparsecl.data.sources.plain._CHUNK_BYTES", 8)
    (here / "a.txt").write_bytes(b"x" * (8 - before) + b"\r\n\r\nsecond\rlone\r")
    assert texts("a.txt", separator="\n\n") == ["x" * (8 - before), "second\rlone\r"]


def test_a_separator_that_never_occurs_is_said(here):
    (here / "a.txt").write_text("one\n\ntwo")
    (here / "b.jsonl").write_bytes(lines({"text": "c"}))
    for separator, words in (("\n\n", []), ("<|end|>", ["separator: '<|end|>' never occurs in"])):
        source = opened("a.txt", "b.jsonl", separator=separator)
        list(source.texts("train"))
        assert [line[: len(words[0])] for line in source.remarks.warnings()] == words


def opened(*train, **options):
    domain = DomainConfig(name="d", source="files", train=train, **options)
    return open_source(domain, seed=0, max_document_bytes=1000)


# ---- bad rows and empty shards -----------------------------------------------------------------

GOOD = [{"text": f"row {n}"} for n in range(401)]
BAD_ROWS = {
    "null": b'{"text": null}',
    "no field": b'{"body": "x"}',
    "no object": b"[1]",
    "not JSON": b"{oops",
    "not UTF-8": b'{"text": "\xff"}',
    "too long": b'{"text": "%s"}' % (b"x" * 40_000),
}


@pytest.mark.parametrize("what", BAD_ROWS)
def test_a_bad_row_is_an_error_or_left_out(here, what):
    content = lines(*GOOD[:200]) + BAD_ROWS[what] + b"\n" + lines(*GOOD[200:])
    (here / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match="a.jsonl:201: .*; on_bad_row: skip leaves such rows out$"):
        list(opened("a.jsonl").texts("train"))
    source = opened("a.jsonl", on_bad_row="skip")
    assert list(source.texts("train")) == [row["text"] for row in GOOD]
    assert source.remarks.summary()["bad_rows"] == 1
    (line,) = source.remarks.warnings()
    assert line.startswith("bad rows left out: 1, the first: a.jsonl:201: ")


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.json"])
def test_bad_rows_of_every_kind(here, name):
    table = pyarrow.table({"text": ["one", None, "x" * 40_000, "two"]})
    pyarrow.parquet.write_table(table, here / "a.parquet")
    (here / "a.csv").write_text("text,n\none,1\nshort\nlong,1,2\ntwo,2\n")
    (here / "a.json").write_text('[{"text": "one"}, null, {"text": 1}, {"text": "two"}]')
    with pytest.raises(DataError, match="; on_bad_row: skip leaves such rows out$"):
        list(opened(name).texts("train"))
    source = opened(name, on_bad_row="skip")
    assert list(source.texts("train")) == ["one", "two"]
    assert source.remarks.bad_rows == 2


def test_empty_shards_of_a_glob_are_counted(here):
    (here / "a.jsonl").write_bytes(lines({"text": "one"}))
    (here / "b.jsonl").write_bytes(b"")
    (here / "c.jsonl").write_bytes(b"\n")
    (here / "d.jsonl.gz").write_bytes(gzip.compress(b""))
    (here / "e.csv").write_bytes(b"text\n")
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], "str")}), "f.parquet")
    source = opened("*")
    assert list(source.texts("train")) == ["one"]
    assert source.remarks.summary() == {
        "bad_rows": 0,
        "empty_files": 5,
        "warnings": ["files without text passed over: 5, the first: b.jsonl"],
    }
    assert str(here / "b.jsonl") in source.reads
    for name in ("b.jsonl", "c.jsonl", "d.jsonl.gz", "e.csv", "f.parquet"):
        with pytest.raises(DataError, match=f"{name}.*(is empty|holds no text)"):
            list(opened("*", name).texts("train"))


# ---- fields ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_field_inside_another(here, name):
    rows = [{"doc": {"text": f"row {n}", "of": {"title": f"T{n}"}}, "n": n} for n in range(3)]
    (here / "a.jsonl").write_bytes(lines(*rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), here / "a.parquet")
    assert texts(name, text_field="doc.text") == ["row 0", "row 1", "row 2"]
    assert texts(name, columns=("doc.of.title", "doc.text"))[0] == "T0\nrow 0"
    for wrong in ("doc.body", "doc.text.more", "n.text", "doc.", ".text"):
        with pytest.raises(DataError, match=f"no field '{wrong}' .*; it has doc, n"):
            texts(name, text_field=wrong)
    with pytest.raises(DataError, match="field 'doc' must be text, got dict"):
        texts(name, text_field="doc")


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_column_whose_own_name_has_a_dot_wins(here, name):
    rows = [{"doc": {"text": "inside", "x.y": "odd"}, "doc.text": "outside"}]
    (here / "a.jsonl").write_bytes(lines(*rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), here / "a.parquet")
    assert texts(name, text_field="doc.text") == ["outside"]
    assert texts(name, text_field="doc.x.y") == ["odd"]
