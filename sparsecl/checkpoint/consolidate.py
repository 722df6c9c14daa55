"""One plain safetensors file of a checkpoint's weights, for tools that know nothing of sparsecl.

Beside it lies what says how the weights are meant: the model part of the run's config and the
tokenizer. Nothing else of a run is kept; to go on training needs the checkpoint.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from sparsecl.checkpoint.canonical import MASTER, Advance, TensorSource, num_bytes
from sparsecl.checkpoint.new_output import new_folder
from sparsecl.checkpoint.stream_file import Spec, TensorFileWriter
from sparsecl.data.tokenizer import Tokenizer
from sparsecl.errors import DataError
from sparsecl.files import atomic_open

MODEL_FILE = "model.safetensors"
CONFIG_FILE = "config.yaml"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Dtype = Literal["fp32", "bf16", "fp16"]

# What of a run's config says what the weights mean.
PARTS = ("model", "topology", "tokenizer")


def consolidate(
    source: TensorSource,
    out: Path,
    *,
    dtype: Dtype = "fp32",
    config: Mapping[str, Any] | None = None,
    tokenizer: Tokenizer | None = None,
    advance: Advance | None = None,
) -> None:
    """Write the new folder `out`: model.safetensors, config.yaml, tokenizer files.

    Weights are the masters under their names, in dense layout: absent weights are 0, and the
    padding of the vocabulary is kept. One tensor is held at a time.

    Args:
        config: the run's, as `sparsecl.config.to_dict` gives it; None leaves config.yaml out.
        advance: called with the bytes done, `num_bytes` of the masters in all.

    Raises:
        DataError: a parameter has no master, or a weight is too large for `dtype`.
        CannotCreateError: if `out` is there already or cannot be made.
        StorageError: if it cannot be written; nothing is left then.
    """
    entries = source.manifest.parameters
    specs = {name: Spec(DTYPES[dtype], entry.shape) for name, entry in entries.items()}
    # "format" is what transformers asks of a file's header; the others are for people.
    about = {"format": "pt", "step": str(source.manifest.step), "dtype": dtype}
    with new_folder(out) as folder:
        with TensorFileWriter(folder / MODEL_FILE, specs, about) as writer:
            for name in entries:
                _copy(source, name, DTYPES[dtype], writer)
                if advance:
                    advance(num_bytes(source, [(MASTER, name)]))
        if config is not None:
            parts = {key: config[key] for key in PARTS if key in config}
            with atomic_open(folder / CONFIG_FILE) as file:
                file.write(yaml.safe_dump(parts, sort_keys=False, width=100))
        if tokenizer is not None:
            tokenizer.save(folder)


def _copy(source: TensorSource, name: str, dtype: torch.dtype, writer: TensorFileWriter) -> None:
    """A function of its own, so that no two tensors are ever held."""
    if not source.has(MASTER, name):
        raise DataError(f"the checkpoint holds no weights of {name}")
    master = source.read(MASTER, name)
    largest = torch.finfo(dtype).max
    if master.numel() and (peak := float(master.abs().max())) > largest:
        raise DataError(f"{name} holds a weight of {peak:g}, {dtype} ends at {largest:g}")
    writer.write(name, master.to(dtype))
