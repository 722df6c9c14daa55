"""Small files that unpack to gigabytes: refused in bounded memory."""

import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from tests.events import HANG

ROOT = Path(__file__).resolve().parents[3]
LIMIT = 1536 << 20  # address space of the child; its imports take a third of it

# Reads files as a run does, under a limit; prints of each the refusal, or how much it read.
CHILD = """
import resource, sys
import pyarrow.compute, pyarrow.parquet
from sparsecl.data.config import DomainConfig
from sparsecl.data.sources import open_source
from sparsecl.errors import UserError

limit, room, on_bad_row = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in sys.argv[4:]:
    domain = DomainConfig(name="d", source="files", train=(path,), on_bad_row=on_bad_row)
    try:
        texts = open_source(domain, seed=0, max_document_bytes=room).texts("train")
        print("read", sum(map(len, texts)))
    except UserError as error:
        print(error.exit_code, error)
"""


def read_all(paths, max_document_bytes=100_000, on_bad_row="error"):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [str(LIMIT), str(max_document_bytes), on_bad_row, *map(str, paths)]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *words], capture_output=True, text=True, env=env, timeout=HANG
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(paths)
    return done.stdout.splitlines()


def read(path, max_document_bytes=100_000):
    (line,) = read_all([path], max_document_bytes)
    return line


PACKERS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor().compress,
}


def packed(path, head, num_bytes, tail=b"", letter=b"a"):
    """A packed file of `head`, so many letters, and `tail`; letters are compressed only once."""
    pack = PACKERS[path.suffix[1:]]
    block = pack(letter * ((8 << 20) // len(letter)))  # parts of a packed file follow each other
    with open(path, "wb") as file:
        file.write(pack(head))
        for _ in range(num_bytes // (8 << 20)):
            file.write(block)
        file.write(pack(tail))
    return path


def one_line(folder, packing):
    head = json.dumps({"text": "fine"}).encode() + b'\n{"text": "'
    return packed(folder / f"a.jsonl.{packing}", head, 1 << 30, b'"}\n')


RATIO = "unpacks to more than 500 times its size"


@pytest.mark.fault("H7")
def test_one_line_of_a_gigabyte(tmp_path):
    paths = [one_line(tmp_path, packing) for packing in PACKERS]
    for path, found in zip(paths, read_all(paths), strict=True):
        assert path.stat().st_size < 2 << 20
        assert found.startswith(f"65 {path}:2: the line is longer than 3200000 bytes, 32 times")


def test_bad_rows_that_are_left_out_are_counted_as_well(tmp_path):
    paths = [one_line(tmp_path, packing) for packing in PACKERS]
    for path, found in zip(paths, read_all(paths, on_bad_row="skip"), strict=True):
        assert found.startswith(f"65 {path}: {RATIO}")


@pytest.mark.fault("H7")
def test_a_gigabyte_without_a_line_end_in_plain_text(tmp_path):
    paths = [packed(tmp_path / f"a.txt.{packing}", b"", 1 << 30) for packing in PACKERS]
    for path, found in zip(paths, read_all(paths), strict=True):
        assert found.startswith(f"65 {path}: {RATIO}")


def test_one_cell_and_one_item_of_a_gigabyte(tmp_path):
    cell = packed(tmp_path / "a.csv.gz", b'text,n\n1,2\n"', 1 << 30)
    lines = packed(tmp_path / "b.tsv.gz", b'text\tn\n1\t2\n"', 1 << 30, letter=b"a\n" * 10)
    item = packed(tmp_path / "c.json.gz", b'[{"text": "fine"}, {"text": "', 1 << 30)
    found = read_all([cell, lines, item])
    assert found[0].startswith(f"65 {cell}:3: the row is longer than 3200000 bytes, 32 times")
    assert found[1].startswith(f"65 {lines}:3: the row is longer than 3200000 bytes, 32 times")
    assert found[2].startswith(f"65 {item}: item 2: is longer than 3200000 bytes, 32 times")


def test_much_of_nothing(tmp_path):
    blank = b" " * 65535 + b"\n"
    paths = [
        packed(tmp_path / "a.jsonl.gz", b"", 128 << 20, letter=blank),
        packed(tmp_path / "b.json.gz", b"[", 128 << 20, letter=blank),
    ]
    for path, found in zip(paths, read_all(paths), strict=True):
        assert found.startswith(f"65 {path}: {RATIO}")


def test_windows_that_do_not_fit_into_memory(tmp_path):
    """What a file of a few bytes says of its window is believed as far as memory goes."""
    small = zstandard.ZstdCompressionParameters(window_log=10, write_content_size=False)
    stream = zstandard.ZstdCompressor(compression_params=small).compressobj()
    zst = bytearray(stream.compress(b'{"text": "a"}') + stream.flush())
    assert zst[4:6] == b"\0\0"  # no size of the content, a window of 1 KiB
    zst[5] = (31 - 10) << 3
    (tmp_path / "a.jsonl.zst").write_bytes(zst)
    xz = lzma.compress(b'{"text": "a"}', filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 4096}])
    huge = xz.replace(b"\x21\x01\x00", b"\x21\x01\x26", 1)  # LZMA2, with 2 GiB
    header = huge[12:20]  # of the block, and then its CRC
    crc = zlib.crc32(header).to_bytes(4, "little")
    (tmp_path / "a.jsonl.xz").write_bytes(huge[:20] + crc + huge[24:])
    for line in read_all(sorted(tmp_path.iterdir())):
        assert line.startswith("65 ") and str(tmp_path) in line, line


def write(path, column, **options):
    table = pyarrow.table({"text": column, "id": pyarrow.array(range(len(column)))})
    pyarrow.parquet.write_table(table, path, compression="zstd", **options)
    return path


@pytest.mark.fault("H7")
def test_a_dictionary_that_every_row_repeats(tmp_path):
    indices = pyarrow.array([0] * 1000, pyarrow.int32())
    column = pyarrow.DictionaryArray.from_arrays(indices, ["a" * (20 << 20)])  # 20 GB of text
    path = write(tmp_path / "a.parquet", column)
    assert path.stat().st_size < 20_000
    found = read(path)
    assert found.startswith(f"65 {path}: row 1: field 'text' is longer than 3200000 bytes")
    found = read(path, 1_000_000)
    assert found.startswith(f"65 {path}: {RATIO}")


@pytest.mark.fault("H7")
def test_one_cell_of_many(tmp_path):
    cells = [*(f"row {n}" for n in range(300)), "a" * (40 << 20), "end"]
    path = write(tmp_path / "a.parquet", cells, use_dictionary=False)
    found = read(path)
    assert found.startswith(f"65 {path}: row 301: field 'text' is longer than 3200000 bytes")


@pytest.mark.fault("H7")
def test_sizes_that_the_file_admits(tmp_path):
    path = write(tmp_path / "a.parquet", ["a" * (8 << 20)] * 12, use_dictionary=False)
    found = read(path)
    assert found.startswith(f"65 {path}: {RATIO}")


def test_rows_that_are_long_and_do_not_pack_are_read(tmp_path):
    cells = [f"{n} {os.urandom(50_000).hex()}" for n in range(400)]  # 40 MB in one row group
    path = write(tmp_path / "a.parquet", cells, use_dictionary=False)
    assert read(path) == f"read {sum(map(len, cells))}"


@pytest.mark.parametrize("dictionary", [True, False])
def test_honest_parquet_is_read_as_it_is(tmp_path, dictionary):
    pieces = ["caf\u00e9 " * 9, "one", "two\n"]
    path = write(
        tmp_path / "a.parquet",
        [pieces[n % 3] for n in range(1000)],
        row_group_size=300,
        use_dictionary=dictionary,
    )
    assert read(path) == f"read {sum(len(pieces[n % 3]) for n in range(1000))}"
