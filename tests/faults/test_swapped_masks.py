"""The masks of another run, density or layer in a checkpoint whose digests are in order."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sparsecl.checkpoint.manifest import read_manifest, write_manifest
from sparsecl.checkpoint.topologies import TOPOLOGY_FILE
from sparsecl.engine.resume import state
from sparsecl.errors import DataError
from sparsecl.files import sha256_file
from tests.distributed import cases

pytestmark = pytest.mark.dist

UP = ("layers.0.mlp.up.weight", "layers.1.mlp.up.weight")  # of one shape


def save(cache: str, overrides: tuple[str, ...], folder: str) -> None:
    trainer, _, _ = cases.assemble(cases.load(cache, overrides), "zero2", folder)
    trainer._save()


def restore(cache: str, folder: str) -> str:
    """The error of a restore."""
    trainer, _, built = cases.assemble(cases.load(cache, ()), "zero2", "unused")
    with pytest.raises(DataError) as caught:
        state.restore(Path(folder), built, trainer.methods)
    return str(caught.value)


def sign(folder: Path) -> None:
    """Put the digests of the files that are there into the manifest."""
    manifest = read_manifest(folder)
    for name in manifest.files:
        path = folder / name
        manifest.files[name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    write_manifest(folder, manifest)


@pytest.fixture(scope="module")
def made(pool, shared_cache, tmp_path_factory) -> Path:
    """Checkpoints of step 0: of the run, of another seed, and of another density."""
    root = tmp_path_factory.mktemp("masks")
    for name, overrides in {
        "run": (),
        "seed": ("seed=1",),
        "density": ("topology.density=0.5",),
    }.items():
        pool.run(save, 1, str(shared_cache), overrides, str(root / name))
    return root


@pytest.mark.fault("C6")
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("seed", "topology digest of layers.0.attention."),
        ("density", "layers.0.attention.q.weight: pieces do not cover it"),
        ("layer", f"topology digest of {UP[0]} is"),
    ],
)
def test_other_masks_are_refused(pool, shared_cache, tmp_path, made, kind, text):
    folder = Path(shutil.copytree(made / "run" / "step_0", tmp_path / "step_0"))
    path = folder / TOPOLOGY_FILE
    if kind == "layer":
        bits = load_file(path)
        assert not np.array_equal(bits[UP[0]], bits[UP[1]])
        bits[UP[0]], bits[UP[1]] = bits[UP[1]], bits[UP[0]]
        save_file(bits, path)
    else:
        shutil.copy(made / kind / "step_0" / TOPOLOGY_FILE, path)
    sign(folder)
    (message,) = pool.run(restore, 1, str(shared_cache), str(folder))
    assert text in message and "\n" not in message
