"""CSV, JSON arrays, and every kind packed in every way."""

import bz2
import gzip
import itertools
import json
import lzma
import re

import pytest
import zstandard

from sparsecl.data.config import DomainConfig
from sparsecl.data.sources import open_source
from sparsecl.data.sources.readers import READERS
from sparsecl.errors import DataError

TEXTS = [f"caf\u00e9 {n}\nand, \"more\"\t of 'it' \U0001f600" for n in range(50)]


def squeeze_zst(content):
    return zstandard.ZstdCompressor().compress(content)


PACKERS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": squeeze_zst,
}


def cells(mark):
    rows = ["id" + mark + "text"]
    rows += [f"{n}{mark}" + '"' + text.replace('"', '""') + '"' for n, text in enumerate(TEXTS)]
    return "\r\n".join(rows).encode()


RECORDS = [{"id": n, "text": text} for n, text in enumerate(TEXTS)]
LINES = "\n".join(map(json.dumps, RECORDS)).encode()
CONTENTS = {
    ".txt": "<|end|>".join(TEXTS).encode(),
    ".jsonl": LINES,
    ".json": json.dumps(RECORDS, indent=1, ensure_ascii=False).encode(),
    ".csv": cells(","),
    ".tsv": cells("\t"),
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def texts(name, max_document_bytes=1000, **options):
    domain = DomainConfig(name="d", source="files", train=(name,), **options)
    source = open_source(domain, seed=0, max_document_bytes=max_document_bytes)
    return list(source.texts("train"))


def refused(name, content, **options):
    with open(name, "wb") as file:
        file.write(content)
    with pytest.raises(DataError) as error:
        texts(name, **options)
    line = str(error.value)
    assert "\n" not in line and name in line
    return line


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize(("kind", "packing"), itertools.product(CONTENTS, PACKERS))
def test_every_kind_in_every_packing(here, kind, packing, bom):
    (here / f"a{kind}{packing}").write_bytes(PACKERS[packing](bom + CONTENTS[kind]))
    options = {"separator": "<|end|>"} if kind == ".txt" else {}
    assert texts(f"a{kind}{packing}", **options) == TEXTS


def test_these_are_the_kinds():
    kinds = {name.removesuffix(packing) for name in READERS for packing in PACKERS if packing}
    kinds = {kind for kind in kinds if kind.count(".") == 1}
    assert kinds - {".text", ".md", ".rst", ".tex", ".py", ".ndjson", ".parquet"} == {*CONTENTS}
    assert len(READERS) == 11 * len(PACKERS) + 1  # parquet is packed inside


@pytest.mark.parametrize("packing", [p for p in PACKERS if p])
def test_packed_data_that_is_cut_or_broken_is_named(packing):
    whole = PACKERS[packing](LINES * 20)
    assert "data is truncated; copy" in refused(f"a.jsonl{packing}", whole[: len(whole) // 2])
    assert f"broken {packing[1:]} data" in refused(f"b.jsonl{packing}", b"plain text, no more")


@pytest.mark.parametrize("packing", [p for p in PACKERS if p])
def test_several_packed_parts_in_one_file(here, packing):
    parts = [PACKERS[packing](f'{{"text": "{n}"}}\n'.encode()) for n in range(3)]
    (here / f"a.jsonl{packing}").write_bytes(b"".join(parts))
    assert texts(f"a.jsonl{packing}") == ["0", "1", "2"]


def test_zst_with_a_window_of_a_dump(here):
    """`zstd --long=31`, as archives of forums are packed; the library allows 2**27 by itself."""
    long = zstandard.ZstdCompressionParameters(
        window_log=28, write_content_size=False, strategy=zstandard.STRATEGY_FAST, hash_log=10
    )
    stream = zstandard.ZstdCompressor(compression_params=long).compressobj()
    (here / "a.jsonl.zst").write_bytes(stream.compress(LINES) + stream.flush())
    assert texts("a.jsonl.zst") == TEXTS


def test_the_key_and_the_reads_are_those_of_the_packed_file(here):
    (here / "a.csv.zst").write_bytes(squeeze_zst(CONTENTS[".csv"]))
    domain = DomainConfig(name="d", source="files", train=("a.csv.zst",))
    source = open_source(domain, seed=0, max_document_bytes=1000)
    assert list(source.texts("train")) == TEXTS
    size = (here / "a.csv.zst").stat().st_size
    assert [num_bytes for num_bytes, _ in source.reads.values()] == [size]


# ---- CSV ---------------------------------------------------------------------------------------


def test_csv_by_hand(here):
    rows = b'text,"long name",n\r\n"a ""b""\r\nc",x,1\r\n\r\n,y,2\r\nd,"",3'
    (here / "a.csv").write_bytes(rows)
    assert texts("a.csv") == ['a "b"\nc', "", "d"]
    assert texts("a.csv", columns=("n", "long name")) == ["1\nx", "2\ny", "3\n"]
    (here / "b.csv").write_text("a.b,text\n1,2\n")
    assert texts("b.csv", text_field="a.b") == ["1"]
    (here / "c.csv").write_text("text\n" + "w" * 200_000)  # above csv's own bound of a cell
    assert texts("c.csv", max_document_bytes=100_000) == ["w" * 200_000]


CSV_MISTAKES = {
    "no column": (b"a,b\n1,2\n", "no field 'text' .*; it has a, b"),
    "two columns": (b"text,text\n1,2\n", "two columns 'text'"),
    "few cells": (b"id,text\n1\n", "bad.csv:2: 1 cells, the first row has 2"),
    "open quote": (b'text,n\n"a,1\nb,2\n', "bad.csv:2: not CSV: unexpected end of data"),
    "odd quote": (b'text,n\na,1\n"b"c,2\n', "bad.csv:3: not CSV: ',' expected after '\"'"),
    "not UTF-8": (b"text\na\n\xff\n", "bad.csv:3: byte 0xff at byte offset 7 is not UTF-8"),
    "NUL": (b"text\na\0\n", "bad.csv:2: NUL at byte offset 6"),
    "no rows": (b"text\n", "bad.csv: holds no text"),
    "long": (b'text\n"' + b"ab\n" * 11_000, "bad.csv:2: the row is longer than 32000 bytes"),
}


@pytest.mark.parametrize("what", CSV_MISTAKES)
def test_a_mistake_of_csv_is_named(what):
    content, message = CSV_MISTAKES[what]
    line = refused("bad.csv", content)
    assert re.search(message, line), line


@pytest.mark.parametrize("what", ["open quote", "odd quote", "not UTF-8", "long"])
def test_what_may_take_other_rows_along_is_never_left_out(what):
    refused("bad.csv", CSV_MISTAKES[what][0], on_bad_row="skip")


# ---- JSON arrays -------------------------------------------------------------------------------


def test_json_by_hand(here, monkeypatch):
    (here / "a.json").write_text('\n [ {"text": "a", "n": [1, {"x": "]"}]} ,\n{"text":"b"}] \n')
    assert texts("a.json") == ["a", "b"]
    (here / "a.json").write_bytes(LINES)  # lines under the same suffix
    assert texts("a.json") == TEXTS
    (here / "a.json").write_text('{"text": "alone"}')
    assert texts("a.json") == ["alone"]
    assert "holds no text" in refused("b.json", b"[]")


@pytest.mark.parametrize("size", range(1, 12))
def test_json_wherever_the_blocks_end(here, size, monkeypatch):
    monkeypatch.setattr("sparsecl.data.sources.plain._CHUNK_BYTES", size)
    records = [{"text": '\u00e9"\\ \U0001f600', "n": -1.5e-7, "t": [True, None]}, 12345, [], {}]
    (here / "a.json").write_text(json.dumps([{"text": "first"}, *records, {"text": "last"}]))
    assert texts("a.json", on_bad_row="skip") == ["first", '\u00e9"\\ \U0001f600', "last"]


JSON_MISTAKES = {
    "cut": (b'[{"text": "a"}, {"text": "b', "item 2: not JSON: Unterminated string"),
    "cut between": (b'[{"text": "a"},', "item 2: not JSON: Expecting value"),
    "open": (b'[{"text": "a"}', "item 1: the array is not closed, or a comma is missing"),
    "comma": (b'[{"text": "a"} {"text": "b"}]', "item 1: the array is not closed, or a comma"),
    "broken": (b'[{"text": oops, "more": "' + b"x" * 99 + b'"}]', "item 1: not JSON: Expecting"),
    "behind": (b'[{"text": "a"}] x', "there is more behind the array"),
    "deep": (b"[" * 100_000, "item 1: not JSON that can be read"),
    "not UTF-8": (b'[{"text": "\xff"}]', "byte 0xff at byte offset 11 is not UTF-8"),
    "long": (
        b'[{"text": "a"}, {"text": "%s"}]' % (b"x" * 40_000),
        "item 2: is longer than 32000 bytes, 32 times data.max_document_bytes",
    ),
}


@pytest.mark.parametrize("what", JSON_MISTAKES)
def test_a_mistake_of_json_is_named(what):
    content, message = JSON_MISTAKES[what]
    for options in ({}, {"on_bad_row": "skip"}):
        assert message in refused("bad.json", content, **options)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (b'{"body": "a"}', "item 2: no field 'text' (text_field, columns); it has body"),
        (b'{"text": null}', "item 2: field 'text' must be text, got NoneType"),
        (b'"text"', "item 2: a JSON object is expected, got str"),
        (b'{"text": "\\ud800"}', "item 2: the text holds NUL or half a surrogate pair"),
    ],
)
def test_an_item_that_cannot_be_used(item, message):
    line = refused("bad.json", b'[{"text": "a"}, ' + item + b"]")
    assert message in line and line.endswith("on_bad_row: skip leaves such rows out")
