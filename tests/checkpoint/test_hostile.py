"""Checkpoints that somebody made to do harm, or that were damaged: refused before use, code 65.

Digests fit wherever the maker could compute them. Nothing is executed, followed or allocated.
"""

import contextlib
import copy
import json
import os
import pickle
import resource
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from sparsecl.checkpoint import manifest as manifests
from sparsecl.checkpoint.manifest import MANIFEST, verify
from sparsecl.checkpoint.publish import LATEST, newest_valid
from sparsecl.checkpoint.reader import Reader, weight_reader
from sparsecl.checkpoint.topologies import TOPOLOGY_FILE
from sparsecl.errors import DataError
from sparsecl.files import sha256_file
from tests.checkpoint import made
from tests.checkpoint.tiny import save, value_of

SHARD = "rank_0.safetensors"
HUGE = 1 << 40


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A whole checkpoint, not to be changed."""
    return save(tmp_path_factory.mktemp("good"), 1)


@pytest.fixture
def folder(good, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(good, tmp_path / "checkpoints" / "step_1"))


def forge(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest and make all digests fit again, as an attacker would."""
    body = json.loads((folder / MANIFEST).read_text())
    del body["sha256"]
    for name in body["files"]:
        path = folder / name
        body["files"][name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    change(body)
    whole = {"sha256": manifests._own_digest(body), **body}
    (folder / MANIFEST).write_text(manifests._text(whole))


def replace(folder: Path, name: str, content: bytes) -> None:
    """Put another file in place, known to the manifest."""
    (folder / name).write_bytes(content)
    forge(folder, lambda body: None)


def put(*keys: Any) -> Callable[[dict[str, Any]], None]:
    """Set body[k1][k2].. = the last of `keys`."""

    def change(body: dict[str, Any]) -> None:
        *path, last, value = keys
        for key in path:
            body = body[key]
        body[last] = value

    return change


@contextlib.contextmanager
def little_memory(more: int = 1 << 28):
    """Nothing large can be allocated in here: 256 MiB beyond what is mapped now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)


def refused(folder: Path, message: str = "") -> None:
    """Neither the check nor the reader lets it through, and the reason is one line."""
    with little_memory(), pytest.raises(DataError) as raised:
        verify(folder)
        Reader(folder)
    assert "\n" not in str(raised.value) and str(folder) in str(raised.value)
    assert message in str(raised.value), raised.value
    assert raised.value.exit_code == 65


PIECE = [SHARD, "master", "norm", 0, 0, 3]


@pytest.mark.fault("C15", "C16", "C17")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("format", 5), "made by a newer version"),
        (put("format", 2), "made by an older version"),
        (put("format", "2"), "no version ever wrote that"),
        (put("format", True), "no version ever wrote that"),
        (put("files", {"../../secret": {"bytes": 1, "sha256": "0" * 64}}), "outside its folder"),
        (put("files", {"/etc/passwd": {"bytes": 1, "sha256": "0" * 64}}), "outside its folder"),
        (put("files", {"rank_0.safetensors/../x": {}}), "outside its folder"),
        (put("files", SHARD, {"bytes": 1}), "needs bytes and sha256"),
        (put("files", SHARD, "bytes", -1), "bytes is -1"),
        (put("files", SHARD, "bytes", 1e3), "bytes is 1000.0"),
        (put("files", SHARD, "sha256", "x" * 64), "sha256 of rank_0.safetensors"),
        (put("step", -1), "step is -1"),
        (put("step", True), "step is True"),
        (put("step", 2), "of step 2, not of step_1"),
        (put("tp_size", 0), "tp_size is 0"),
        (put("tp_size", 10**30), "tp_size is 1000000"),
        (put("tp_size", 3), "cannot be split over tp_size 3"),
        (put("pieces", "x"), "pieces is no list"),
        (put("pieces", 0, PIECE[:5]), "six fields"),
        (put("pieces", 0, ["rank_7.safetensors", *PIECE[1:]]), "in no file"),
        (put("pieces", 0, ["../x", *PIECE[1:]]), "in no file"),
        (put("pieces", 0, [TOPOLOGY_FILE, *PIECE[1:]]), "in no file"),
        (put("pieces", 0, [SHARD, "master", "other", 0, 0, 3]), "unknown parameter"),
        (put("pieces", 0, [SHARD, "master", ["norm"], 0, 0, 3]), "unknown parameter"),
        (put("pieces", 0, [SHARD, 7, "norm", 0, 0, 3]), "printable"),
        (put("pieces", 0, PIECE), "there twice"),
        (put("pieces", 1, [*PIECE[:3], 1, 0, 3]), "tp_rank is 1"),
        (put("pieces", 1, [*PIECE[:4], -1, 3]), "start is -1"),
        (put("pieces", 1, [*PIECE[:5], HUGE]), "wrong length"),
        (put("pieces", 1, [*PIECE[:5], 2]), "wrong length"),
        (put("pieces", 1, [*PIECE[:5], 1 << 70]), "numel is 118059"),
        (put("pieces", 1, [*PIECE[:5], None]), "numel is no number"),
        (put("pieces", 1, [*PIECE[:4], 1, 3]), "overlap or leave a gap"),
        (put("pieces", 1, [SHARD, "exp_avg", *PIECE[2:]]), "holds no exp_avg/norm"),
        (put("parameters", "norm", 3), "needs shape"),
        (put("parameters", "norm", "shape", [HUGE]), "do not cover"),
        (put("parameters", "norm", "shape", [HUGE, HUGE]), "too many elements"),
        (put("parameters", "norm", "shape", [-3]), "shape is -3"),
        (put("parameters", "norm", "shape", [1] * 9), "at most 8 numbers"),
        (put("parameters", "norm", "partition_dim", 1), "partition_dim is 1"),
        (put("parameters", "norm", "live", True), "matrix only"),
        (put("parameters", "norm", "live", 1), "true or false"),
        (put("parameters", "up.weight", "shape", [1 << 15, 1 << 15]), "not a live set"),
        (put("parameters", "up.weight", "live", False), "do not cover"),
        (put("parameters", "n\nm", {"shape": [], "partition_dim": -1, "live": False}), "printable"),
        (put("state", []), "state is no mapping"),
    ],
)
def test_hostile_manifests(folder, change, message):
    forge(folder, change)
    refused(folder, message)


@pytest.mark.fault("C15")
@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"sha256": ' + "[" * 100_000,
        "",
        "null",
        "{}",
        '{"sha256": 3, "step": NaN}',
        '{"step": ' + "9" * 5000 + "}",
        "\x00" * 100,
    ],
)
def test_what_is_no_manifest(folder, text):
    (folder / MANIFEST).write_text(text)
    refused(folder, MANIFEST)


def test_a_manifest_is_read_only_up_to_a_size(folder, monkeypatch):
    monkeypatch.setattr(manifests, "MAX_BYTES", 100)
    refused(folder, "at most 100 bytes")


@pytest.mark.fault("C2", "S4")
def test_the_digest_is_checked_before_anything_else(folder):
    """But for the number of a newer format: its digest may be made in another way."""
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"format": 4', '"format": 2'))
    refused(folder, "sha256 does not match")
    (folder / MANIFEST).write_text(text.replace('"format": 4', '"format": 5'))
    refused(folder, "made by a newer version")


@pytest.mark.parametrize("twist", [lambda t: t[:-1], lambda t: t + "\n", lambda t: " " + t])
def test_the_same_content_in_another_text_is_not_the_same_manifest(folder, twist):
    path = folder / MANIFEST
    path.write_text(twist(path.read_text()))
    refused(folder, "sha256 does not match")


# ---- files ------------------------------------------------------------------------------------


def header(entries: Any, claimed: int | None = None, data: bytes = b"") -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text + data


def entry(shape: Any, begin: Any, end: Any, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


UP, NORM = "master/up.weight", "master/norm"
BOMBS = {
    "empty": b"",
    "three bytes": b"abc",
    "a header of 1 TB": header({}, HUGE),
    "a header of 2**64 - 1": header({}, 2**64 - 1),
    "no JSON": header(b"\xff" * 50),
    "depth": header(b"[" * 100_000),
    "NaN length": header(b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}'),
    "outside": header({UP: entry([6], 0, 24), NORM: entry([3], 24, HUGE)}, data=b"\0" * 36),
    "overlap": header({UP: entry([6], 0, 24), NORM: entry([3], 12, 24)}, data=b"\0" * 24),
    "negative": header({UP: entry([6], -24, 0)}, data=b"\0" * 24),
    "backwards": header({UP: entry([6], 24, 0)}, data=b"\0" * 24),
    "huge shape": header({UP: entry([HUGE, HUGE], 0, 24)}, data=b"\0" * 24),
    "another shape": header({UP: entry([9], 0, 36), NORM: entry([3], 36, 48)}, data=b"\0" * 48),
    "integers": header(
        {UP: entry([6], 0, 24, "I32"), NORM: entry([3], 24, 36, "I32")}, data=b"\0" * 36
    ),
    "one missing": header({UP: entry([6], 0, 24)}, data=b"\0" * 24),
}


@pytest.mark.fault("C15")
@pytest.mark.parametrize("name", [SHARD, TOPOLOGY_FILE])
@pytest.mark.parametrize("bomb", BOMBS)
def test_hostile_safetensors(folder, name, bomb):
    replace(folder, name, BOMBS[bomb])
    refused(folder, name)


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


@pytest.mark.fault("C14")
@pytest.mark.parametrize("name", [SHARD, TOPOLOGY_FILE, MANIFEST, LATEST])
@pytest.mark.parametrize("form", ["pickle", "torch zip", "numpy"])
def test_no_pickle_is_ever_opened(folder, tmp_path, name, form):
    canary, path = tmp_path / "canary", tmp_path / "made"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Payload(canary)))
    elif form == "torch zip":
        torch.save({UP: torch.zeros(6), "x": Payload(canary)}, path)
    else:
        with open(path, "wb") as file:
            np.save(file, np.array([Payload(canary)], dtype=object), allow_pickle=True)
    with pytest.raises(FileExistsError):  # the payload works
        canary.mkdir()
        pickle.loads(pickle.dumps(Payload(canary)))
    canary.rmdir()
    if name == LATEST:
        path.rename(folder.parent / LATEST)
        found, (note,) = newest_valid(folder.parent)
        assert found == folder and "latest: ignored" in note
    elif name == MANIFEST:
        path.rename(folder / MANIFEST)
        refused(folder, MANIFEST)
    else:
        replace(folder, name, path.read_bytes())
        refused(folder, name)
    assert not canary.exists()


@pytest.mark.fault("C17")
@pytest.mark.parametrize("name", [SHARD, TOPOLOGY_FILE, MANIFEST])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "missing"])
def test_only_plain_files_are_opened(folder, tmp_path, name, kind):
    """A pipe would make a reader wait for ever, a link leads out of the folder."""
    path = folder / name
    path.rename(tmp_path / "elsewhere")
    if kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    refused(folder, name)


@pytest.mark.fault("C17")
def test_a_linked_folder_is_no_candidate(folder):
    folder.rename(folder.parent / "elsewhere")
    folder.symlink_to(folder.parent / "elsewhere")
    assert newest_valid(folder.parent) == (None, [])


@pytest.mark.fault("C7")
@pytest.mark.parametrize(
    "live",
    [
        np.array([3, 3], dtype=np.int32),  # more than 1/32 of 32 cells
        np.array([0, 0, 0, 1], dtype=np.int8),
        np.array([255, 255, 255], dtype=np.uint8),
        np.array([[255, 0, 0, 0]], dtype=np.uint8),
        np.array([0.5], dtype=np.float32),
        np.array([255, 255, 0, 0], dtype=np.uint8),  # 16 live weights, 6 are in the shard
    ],
)
def test_hostile_live_sets(folder, live):
    save_file({"up.weight": live}, folder / TOPOLOGY_FILE)
    forge(folder, lambda body: None)
    refused(folder)


@pytest.mark.parametrize("edges", [[5, 2], [5, 5], [-1, 5], [0, HUGE // 2**9]])
def test_hostile_indices(folder, edges):
    save_file({"up.weight": np.array(edges, dtype=np.int64).astype(np.int32)},
              folder / TOPOLOGY_FILE)  # fmt: skip
    forge(folder, put("parameters", "up.weight", "shape", [1 << 10, 1 << 10]))
    refused(folder, "not a live set")


@pytest.mark.fault("C15")
def test_few_indices_do_not_become_a_gigabyte(folder):
    """A matrix of 2**31 - 2**16 cells is a valid claim; the graph is built when asked for."""
    save_file({"up.weight": np.arange(6, dtype=np.int32)}, folder / TOPOLOGY_FILE)
    forge(folder, put("parameters", "up.weight", "shape", [(1 << 15) - 1, 1 << 16]))
    with little_memory():
        reader = Reader(folder)
    assert reader.manifest.parameters["up.weight"].shape == (32767, 65536)


# ---- files that belong elsewhere -----------------------------------------------------------------


@pytest.mark.fault("C3")
def test_swapped_and_mixed_shards(tmp_path):
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    a, b = (folder / SHARD for folder in (first, second))
    shutil.copy(a, kept := tmp_path / "kept")
    shutil.copy(b, a)
    refused(first, "sha256 differs")
    shutil.copy(kept, a)
    shutil.copy(kept, first / "rank_1.safetensors")
    refused(first, "does not know this file")
    (first / "rank_1.safetensors").rename(first / "notes.txt")  # nothing reads it
    assert value_of(first) == 1
    first.rename(tmp_path / "step_9")
    refused(tmp_path / "step_9", "of step 1, not of step_9")


@pytest.mark.fault("C4")
@pytest.mark.parametrize(
    ("content", "note"),
    [
        ("step_1\n", None),
        ("", "empty"),
        ("\n", "empty"),
        ("../..\n", "'../..'"),
        ("/etc\n", "'/etc'"),
        ("step_7\n", "'step_7'"),
        ("step_1/../../x", "no checkpoint here"),
        ("\xff\x00\x1b[31m" * 50, "no checkpoint here"),
        ("step_1\nstep_1\n", "no checkpoint here"),
    ],
)
def test_what_latest_says_is_a_hint(folder, content, note):
    root = folder.parent
    (root / LATEST).write_bytes(content.encode("latin-1"))
    found, notes = newest_valid(root)
    assert found == folder
    assert len(notes) == (note is not None)
    for line in notes:
        assert note in line and line.isprintable() and str(root / LATEST) in line


@pytest.mark.fault("C4")
def test_latest_is_not_followed(folder, tmp_path):
    (tmp_path / "secret").write_text("step_1\n")
    (folder.parent / LATEST).symlink_to(tmp_path / "secret")
    assert "not a plain file" in newest_valid(folder.parent)[1][0]


# ---- damage --------------------------------------------------------------------------------------


@pytest.mark.fault("C1")
@pytest.mark.parametrize("name", [SHARD, TOPOLOGY_FILE, MANIFEST])
def test_every_truncation_is_found(folder, name):
    raw = (folder / name).read_bytes()
    for kept in (0, len(raw) // 2, len(raw) - 1):
        (folder / name).write_bytes(raw[:kept])
        refused(folder, name)


@pytest.mark.fault("C2")
@pytest.mark.parametrize("name", [SHARD, TOPOLOGY_FILE, MANIFEST])
def test_single_bits_are_found(folder, name):
    """Every byte of it once, each time another bit."""
    raw = (folder / name).read_bytes()
    path = folder / name
    for position in range(len(raw)):
        changed = bytearray(raw)
        changed[position] ^= 1 << (position * 5 % 8)
        path.write_bytes(changed)
        with pytest.raises(DataError):
            verify(folder)
    path.write_bytes(raw)
    assert value_of(folder) == 1


def test_what_is_not_there_is_not_made_up(good):
    reader = Reader(good)
    assert not reader.has("exp_avg", "norm")
    with pytest.raises(DataError, match="holds no exp_avg of norm"):
        reader.read("exp_avg", "norm")
    assert copy.copy(reader.states()) == ["master"]


def test_a_topology_is_read_from_weights_whose_digests_fit(tmp_path):
    folder = made.save(tmp_path)
    wanted = made.matrices()["master", "a.up.weight"].numpy()
    assert (weight_reader()(folder, "a.up") == wanted).all()
    path = folder / made.FILE
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="sha256 differs"):
        weight_reader()(folder, "a.up")
