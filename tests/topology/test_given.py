"""Masks from files: formats, what counts as zero, every way to bring a wrong file."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from sparsecl.errors import DataError, MissingInputError, UserError
from sparsecl.topology.build import build_topologies
from sparsecl.topology.config import BlockConfig, TopologyConfig
from sparsecl.topology.layer import LayerShape

SHAPES = [LayerShape("layers.0.q", "q", 2, 3), LayerShape("layers.0.up", "up", 4, 2)]
MASKS = {
    "layers.0.q": np.array([[1, 0, 1], [0, 1, 0]], dtype=bool),
    "layers.0.up": np.array([[1, 1], [0, 1], [1, 0], [0, 0]], dtype=bool),
}


def write(path, arrays):
    np.savez(path, **arrays) if path.suffix == ".npz" else save_file(arrays, path)
    return path


def read(path, kind="from_file", **options):
    config = TopologyConfig(kind=kind, path=str(path), **options.pop("config", {}))
    return build_topologies(config, SHAPES, seed=0, **options)


def assert_masks(topologies):
    assert list(topologies) == list(MASKS)
    for name, mask in MASKS.items():
        assert (topologies[name].mask() == mask).all()


@pytest.mark.parametrize("name", ["masks.npz", "masks.safetensors"])
@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint16, np.float16, np.float32, np.int64])
@pytest.mark.parametrize("suffix", ["", ".weight"])
def test_masks_of_every_type(tmp_path, name, dtype, suffix):
    arrays = {key + suffix: (mask * 7).astype(dtype) for key, mask in MASKS.items()}
    assert_masks(read(write(tmp_path / name, arrays)))


@pytest.mark.parametrize("name", ["masks.npz", "masks.safetensors"])
def test_the_kind_follows_the_name_and_not_what_a_link_leads_to(tmp_path, name):
    """Caches link a name to a file without any suffix, or with another one."""
    write(tmp_path / name, MASKS).rename(tmp_path / "3af1.data")
    (tmp_path / name).symlink_to("3af1.data")
    assert_masks(read(tmp_path / name))
    (tmp_path / "blob").symlink_to(name)
    with pytest.raises(DataError, match="blob: expected a .npz or .safetensors file"):
        read(tmp_path / "blob")


@pytest.mark.parametrize("name", ["model.npz", "model.safetensors"])
def test_zeros_of_weights(tmp_path, name):
    # Negative zero is zero; NaN and the smallest number live. An embedding is no layer.
    arrays = {
        key: np.where(mask, np.float32(1e-45), np.float32(-0.0)) for key, mask in MASKS.items()
    }
    arrays["layers.0.q"][1, 1] = np.nan
    arrays["embedding"] = np.ones((5, 5), dtype=np.float32)
    assert_masks(read(write(tmp_path / name, arrays), "from_zeros"))


def test_zeros_of_bf16_weights(tmp_path):
    # NumPy has no such type, and most published models have no other.
    header, data = {}, b""
    for name, mask in MASKS.items():
        bits = np.where(mask, 0x0001, 0x8000).astype("<u2").tobytes()
        offsets = [len(data), len(data) + len(bits)]
        header[name] = {"dtype": "BF16", "shape": mask.shape, "data_offsets": offsets}
        data += bits
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    assert_masks(read(tmp_path / "model.safetensors", "from_zeros"))


def test_a_folder_of_shards(tmp_path):
    for number, (name, mask) in enumerate(MASKS.items()):
        write(tmp_path / f"shard{number}.safetensors", {f"{name}.weight": mask.astype(np.float32)})
    assert_masks(read(tmp_path, "from_zeros"))
    write(tmp_path / "shard9.safetensors", {"layers.0.q.weight": MASKS["layers.0.q"]})
    with pytest.raises(DataError, match=r"layers\.0\.q\.weight is in .*shard0.* and in .*shard9"):
        read(tmp_path, "from_zeros")


def test_a_checkpoint_is_read_by_the_function_handed_in(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    asked = []

    def reader(folder, name):
        asked.append((folder, name))
        return MASKS[name] * np.float32(0.5)

    assert_masks(read(tmp_path, "from_zeros", read_checkpoint=reader))
    assert asked == [(tmp_path, name) for name in MASKS]
    with pytest.raises(MissingInputError, match=r"^topology\.path: .* checkpoint of a run"):
        read(tmp_path, "from_zeros")


@pytest.mark.parametrize("name", ["masks.npz", "masks.safetensors"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers.0.up": None}, r"none of its 1 arrays is for layers\.0\.up"),
        ({"layers.0.upp": np.ones((2, 2))}, r"layers\.0\.upp is not a masked layer"),
        ({"layers.0.q.weight": np.ones((2, 3))}, r"two arrays for layers\.0\.q"),
        ({"layers.0.q": np.ones((3, 2))}, r"layers\.0\.q is \(3, 2\), the model has \(2, 3\)"),
        ({"layers.0.q": np.zeros((2, 3))}, r"layers\.0\.q \(2 x 3\) has no live weight in"),
    ],
)
def test_a_file_that_does_not_fit(tmp_path, name, change, words):
    arrays = {key: value for key, value in (MASKS | change).items() if value is not None}
    with pytest.raises(UserError, match=r"^topology\.path: .*" + words) as error:
        read(write(tmp_path / name, arrays))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["masks.npz", "masks.safetensors"])
def test_a_damaged_file(tmp_path, name):
    path = write(tmp_path / name, MASKS)
    whole = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(content)
        with pytest.raises(
            DataError, match=r"^topology\.path: .*masks.* cannot be read: "
        ) as error:
            read(path)
        assert "\n" not in str(error.value)


def test_pickles_are_refused(tmp_path):
    arrays = MASKS | {"layers.0.q": np.array([[{}] * 3] * 2, dtype=object)}
    with pytest.raises(DataError, match="cannot be read: Object arrays"):
        read(write(tmp_path / "masks.npz", arrays))


def test_what_is_not_there(tmp_path):
    for path, words in ((tmp_path / "no.npz", "is not there"), (tmp_path, "neither manifest.json")):
        with pytest.raises(MissingInputError, match=words):
            read(path)
    (tmp_path / "masks.pt").touch()
    with pytest.raises(DataError, match=r"masks\.pt: expected a \.npz or \.safetensors"):
        read(tmp_path / "masks.pt")


def test_given_masks_must_consist_of_tiles_when_a_block_is_asked_for(tmp_path):
    path = write(tmp_path / "masks.npz", MASKS)
    read(path, config={"block": BlockConfig(size=1)})
    with pytest.raises(UserError, match=r"^topology\.block\.size=2 does not .*layers\.0\.q"):
        read(path, config={"block": BlockConfig(size=2)})
