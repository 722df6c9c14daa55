"""Masks of a user: files that claim, unpack or run more than they should."""

import io
import json
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sparsecl.errors import UserError
from sparsecl.topology.build import build_topologies
from sparsecl.topology.config import TopologyConfig
from sparsecl.topology.layer import LayerShape
from tests.security.canary import Canary, harmless, refused

SHAPES = [LayerShape("a", "q", 2, 3), LayerShape("b", "up", 4, 2)]
MASKS = {"a": np.eye(2, 3, dtype=bool), "b": np.eye(4, 2, dtype=bool)}


def read(path: Path) -> dict[str, np.ndarray]:
    found = build_topologies(TopologyConfig(kind="from_file", path=str(path)), SHAPES, seed=0)
    return {name: topology.mask() for name, topology in found.items()}


def npy(descr: str, shape: str, content: bytes = b"\1" * 6, version: int = 1) -> bytes:
    """An array file whose header says what it likes."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + content


def npz(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def good(name: str) -> bytes:
    file = io.BytesIO()
    np.save(file, MASKS[name])
    return file.getvalue()


@pytest.mark.parametrize(
    ("descr", "shape"),
    [
        ("'|b1'", "(1000000, 1000000)"),  # a terabyte
        ("'<f8'", "(2, 3)"),  # more than there is
        ("'|b1'", "(9223372036854775807, 9223372036854775807)"),
        ("'|b1'", "(" + "9" * 400 + ", 1)"),
        ("'|b1'", "(-1, -6)"),
        ("'|b1'", "(2, 3.0)"),
        ("'|b1'", "(" + "1, " * 100 + ")"),
        ("'|b1'", "(" * 5000 + ")" * 5000),
        ("'|O'", "(2, 3)"),
        ("[('x', '|O')]", "(2, 3)"),
        ("'<U1000000000'", "(2, 3)"),
        ("'<M8[s]'", "(2, 3)"),
        ("__import__('os').system('CANARY')", "(2, 3)"),
        ("'|b1'", "__import__('os').system('CANARY')"),
    ],
)
@pytest.mark.parametrize("version", [1, 2, 9])
def test_headers_of_arrays(tmp_path, canary, descr, shape, version):
    descr, shape = (text.replace("CANARY", canary.command) for text in (descr, shape))
    path = npz(tmp_path / "m.npz", a=npy(descr, shape, version=version), b=good("b"))
    assert str(path) in refused(lambda: read(path), canary, 65)


def test_the_headers_of_the_test_are_right_otherwise(tmp_path):
    path = npz(tmp_path / "m.npz", a=npy("'|b1'", "(2, 3)", MASKS["a"].tobytes()), b=good("b"))
    assert all((mask == MASKS[name]).all() for name, mask in read(path).items())


def test_a_zip_that_unpacks_to_much(tmp_path, canary):
    side = 8192  # 64 MB of zeros are 64 kB
    large = npy("'|b1'", f"({side}, {side})", bytes(side * side))
    path = npz(tmp_path / "m.npz", a=large, b=good("b"))
    assert path.stat().st_size < 1 << 17
    assert f"({side}, {side}), the model has (2, 3)" in refused(lambda: read(path), canary, 65)


@pytest.mark.fault("C14")
@pytest.mark.parametrize("name", ["m.npz", "m.safetensors"])
def test_a_pickle_under_another_name(tmp_path, canary, name):
    for protocol in (0, 4):
        (tmp_path / name).write_bytes(canary.pickle(protocol))
        refused(lambda: read(tmp_path / name), canary, 65)


def test_pickled_arrays(tmp_path, canary):
    """In the array, behind an honest header, and as a member without any."""
    for content in (npy("'|O'", "(2, 3)", canary.pickle()), canary.pickle()):
        path = npz(tmp_path / "m.npz", a=content, b=good("b"))
        refused(lambda p=path: read(p), canary, 65)
    np.save(tmp_path / "m.npy", np.array([canary.pickle()], dtype=object), allow_pickle=True)
    os.rename(tmp_path / "m.npy", tmp_path / "m.npz")
    refused(lambda: read(tmp_path / "m.npz"), canary, 65)


def entry(begin: int, end: int, **changes: object) -> dict[str, object]:
    return {"dtype": "BOOL", "shape": [2, 3], "data_offsets": [begin, end], **changes}


B = {"dtype": "BOOL", "shape": [4, 2], "data_offsets": [6, 14]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry(0, 2**40, shape=[2**20, 2**20]), "b": B},
        {"a": entry(0, 6, shape=[2**40, 2**40]), "b": B},
        {"a": entry(0, 6, shape=[-2, -3]), "b": B},
        {"a": entry(2**60, 2**60 + 6), "b": B},
        {"a": entry(8, 14), "b": B},  # overlaps
        {"a": entry(6, 0), "b": B},
        {"a": entry(0, 6, shape=[float("nan"), 3]), "b": B},
        {"a": entry(0, 6, data_offsets=[0, 6.5]), "b": B},
        {"a": entry(0, 6, dtype="OBJECT"), "b": B},
        {"a": entry(0, 6, dtype="F4"), "b": B},
        {"a": "CANARY", "b": B},
        ["a", "b"],
        "[" * 100_000,
        '{"a": ' * 100_000,
        '{"a": 1, "a": 2}',
        "{}",
    ],
)
def test_headers_of_safetensors(tmp_path, canary, header):
    text = header if isinstance(header, str) else json.dumps(header)
    raw = text.replace("CANARY", canary.command).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + b"\1" * 14)
    assert str(path) in refused(lambda: read(path), canary, 65)


@pytest.mark.parametrize("length", [2**63, 2**60, 2**33, 0])
def test_a_header_that_is_longer_than_the_file(tmp_path, canary, length):
    path = tmp_path / "m.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    refused(lambda: read(path), canary, 65)


@pytest.mark.parametrize("name", ["m.npz", "m.safetensors"])
def test_a_pipe_does_not_hang(tmp_path, canary, name):
    os.mkfifo(tmp_path / name)
    assert "not a plain file" in refused(lambda: read(tmp_path / name), canary, 66)


@pytest.mark.parametrize("name", ["m.npz", "m.safetensors"])
def test_damage_is_refused_or_harmless(tmp_path, canary: Canary, name):
    """Cuts and flipped bits anywhere: masks of the right shapes, or one line."""
    path = tmp_path / name
    if name.endswith("npz"):
        np.savez_compressed(path, **MASKS)
    else:
        from safetensors.numpy import save_file

        save_file(MASKS, path)
    whole, rng, refusals = path.read_bytes(), np.random.default_rng(5), 0
    for _ in range(150):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), size=rng.integers(1, 4)):
            damaged[place] ^= 1 << rng.integers(0, 8)
        path.write_bytes(
            damaged[: rng.integers(1, len(whole) + 1)] if rng.random() < 0.3 else damaged
        )
        found = harmless(lambda: read(path), canary)
        refusals += isinstance(found, UserError)
        if not isinstance(found, UserError):
            assert {key: mask.shape for key, mask in found.items()} == {"a": (2, 3), "b": (4, 2)}
    assert refusals > 50
