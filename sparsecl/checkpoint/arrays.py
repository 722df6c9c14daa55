"""What methods and observers keep in a checkpoint that belongs to no parameter: one file of rank 0.

Every rank has the same arrays and reads them all, whatever the layout, so they are neither cut nor
named in global coordinates. Without such arrays there is no file.
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from sparsecl.checkpoint.manifest import Manifest
from sparsecl.checkpoint.shards import open_shard

METHODS_FILE = "methods.safetensors"


def read_arrays(folder: Path, manifest: Manifest) -> Mapping[str, torch.Tensor]:
    """By METHOD.ARRAY or OBSERVER.ARRAY; empty if the checkpoint has none.

    Raises:
        DataError: if the file is not a plain safetensors file.
    """
    if METHODS_FILE not in manifest.files:
        return {}
    found = open_shard(folder / METHODS_FILE)
    return {key: found.get_tensor(key) for key in sorted(found.keys())}
