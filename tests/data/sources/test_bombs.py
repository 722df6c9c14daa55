"""Small files that unpack to gigabytes: refused in bounded memory."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tests.events import HANG

ROOT = Path(__file__).resolve().parents[3]
LIMIT = 1536 << 20  # address space of the child; its imports take a third of it

# Reads a file as a run does, under a limit; prints the refusal, or how much it read.
CHILD = """
import resource, sys
import pyarrow.compute, pyarrow.parquet
from sparsecl.data.config import DomainConfig
from sparsecl.data.sources import open_source
from sparsecl.errors import UserError

limit = int(sys.argv[2])
domain = DomainConfig(name="d", source="files", train=(sys.argv[1],))
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    texts = open_source(domain, seed=0, max_document_bytes=int(sys.argv[3])).texts("train")
    print("read", sum(map(len, texts)))
except UserError as error:
    print(error.exit_code, error)
"""


def read(path, max_document_bytes=100_000):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [str(path), str(LIMIT), str(max_document_bytes)]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *words], capture_output=True, text=True, env=env, timeout=HANG
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    return done.stdout.strip()


def packed(path, head, num_bytes, tail=b""):
    """A gz file of `head`, so many letters, and `tail`; its letters are compressed only once."""
    block = gzip.compress(b"a" * (8 << 20))  # members of a gz file follow each other
    with open(path, "wb") as file:
        file.write(gzip.compress(head))
        for _ in range(num_bytes // (8 << 20)):
            file.write(block)
        file.write(gzip.compress(tail))
    return path


def test_one_line_of_a_gigabyte(tmp_path):
    head = json.dumps({"text": "fine"}).encode() + b'\n{"text": "'
    path = packed(tmp_path / "a.jsonl.gz", head, 1 << 30, b'"}\n')
    assert path.stat().st_size < 2 << 20
    found = read(path)
    assert found.startswith(f"65 {path}:2: the line is longer than 3200000 bytes, 32 times")


def test_a_gigabyte_without_a_line_end_in_plain_text(tmp_path):
    path = packed(tmp_path / "a.txt.gz", b"", 1 << 30)
    found = read(path)
    assert found.startswith(f"65 {path}: unpacks to more than 500 times its size")


def write(path, column, **options):
    table = pyarrow.table({"text": column, "id": pyarrow.array(range(len(column)))})
    pyarrow.parquet.write_table(table, path, compression="zstd", **options)
    return path


def test_a_dictionary_that_every_row_repeats(tmp_path):
    indices = pyarrow.array([0] * 1000, pyarrow.int32())
    column = pyarrow.DictionaryArray.from_arrays(indices, ["a" * (20 << 20)])  # 20 GB of text
    path = write(tmp_path / "a.parquet", column)
    assert path.stat().st_size < 20_000
    found = read(path)
    assert found.startswith(f"65 {path}: row 1: field 'text' is longer than 3200000 bytes")
    found = read(path, 1_000_000)
    assert found.startswith(f"65 {path}: unpacks to more than 500 times its size")


def test_one_cell_of_many(tmp_path):
    cells = [*(f"row {n}" for n in range(300)), "a" * (40 << 20), "end"]
    path = write(tmp_path / "a.parquet", cells, use_dictionary=False)
    found = read(path)
    assert found.startswith(f"65 {path}: row 301: field 'text' is longer than 3200000 bytes")


def test_sizes_that_the_file_admits(tmp_path):
    path = write(tmp_path / "a.parquet", ["a" * (8 << 20)] * 12, use_dictionary=False)
    found = read(path)
    assert found.startswith(f"65 {path}: unpacks to more than 500 times its size")


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
