"""What is written one tensor at a time is a safetensors file like any other."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sparsecl.checkpoint.stream_file import NAMES, Spec, TensorFileWriter
from sparsecl.errors import CannotCreateError, StorageError

TENSORS = {
    f"{name} {shape}": torch.arange(n).reshape(shape).to(dtype)
    for dtype, name in NAMES.items()
    for n, shape in ((1, ()), (0, (0,)), (3, (3,)), (6, (2, 3)))
}
SPECS = {key: Spec(value.dtype, tuple(value.shape)) for key, value in TENSORS.items()}


def test_safetensors_reads_it(tmp_path):
    path = tmp_path / "x.safetensors"
    with TensorFileWriter(path, SPECS, {"format": "pt"}) as writer:
        for key in reversed(list(TENSORS)):  # the order does not matter
            writer.write(key, TENSORS[key])
    found = load_file(path)
    assert found.keys() == TENSORS.keys()
    for key, value in TENSORS.items():
        assert found[key].dtype == value.dtype and torch.equal(found[key], value), key
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    # Each tensor lies at a multiple of its element size, so that a reader can map it.
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    for key, spec in SPECS.items():
        assert header[key]["data_offsets"][0] % spec.dtype.itemsize == 0


def test_a_slice_is_written_as_its_values(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    with TensorFileWriter(tmp_path / "x", {"x": Spec(torch.float32, (3, 2))}) as writer:
        writer.write("x", whole[:, 1:3])
    assert torch.equal(load_file(tmp_path / "x")["x"], whole[:, 1:3])


def test_what_was_declared_must_come_once(tmp_path):
    specs = {"x": Spec(torch.float32, (2,))}
    with pytest.raises(AssertionError, match="never written"):
        with TensorFileWriter(tmp_path / "x", specs):
            pass
    with TensorFileWriter(tmp_path / "x", specs) as writer:
        with pytest.raises(AssertionError):
            writer.write("x", torch.zeros(3))
    with TensorFileWriter(tmp_path / "x", specs) as writer:
        writer.write("x", torch.zeros(2))
        with pytest.raises(KeyError):
            writer.write("x", torch.zeros(2))


def test_a_full_disk_is_said(tmp_path):
    specs = {"x": Spec(torch.float32, (1 << 16,))}
    with pytest.raises(CannotCreateError, match="there is no folder"):
        TensorFileWriter(tmp_path / "nowhere" / "x", specs)
    with pytest.raises(StorageError, match="No space left"):
        with TensorFileWriter(tmp_path / "x", specs) as writer:
            writer._file = open("/dev/full", "wb")
            writer.write("x", torch.zeros(1 << 16))
