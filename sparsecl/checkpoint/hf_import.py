"""A model of transformers: its folder, or one weight file with config.json beside it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from sparsecl.checkpoint.foreign import (
    PICKLES,
    SAFETENSORS,
    Tensors,
    Weights,
    from_mapping,
    load_pickle,
    open_safetensors,
    refuse_pickle,
)
from sparsecl.checkpoint.gpt2_weights import gpt2_weights
from sparsecl.checkpoint.hf import WEIGHTS
from sparsecl.checkpoint.hf_config import CONFIG, read_gpt2_config, read_json, read_llama_config
from sparsecl.checkpoint.llama_weights import llama_weights
from sparsecl.errors import DataError, MissingInputError, UserError

INDEX = "model.safetensors.index.json"
KINDS = ("gpt2", "llama", "qwen2")


def read_model(path: Path, *, trusted: bool, approximate: bool) -> Weights:
    """Open the weights under our names.

    Args:
        path: folder of a model, or its .safetensors or .bin file.
        trusted: pickles may be read, by the restricted unpickler.
        approximate: leave out what our model has no place for.

    Raises:
        MissingInputError: a file is not there.
        DataError: a file is not what it must be.
        UserError: a pickle without trust, or a model that ours cannot express.
    """
    folder = path if path.is_dir() else path.parent
    tensors = _open(path, trusted)
    where = folder / CONFIG
    if not where.is_file():
        raise MissingInputError(
            f"{where}: not there; the number of heads (n_head, num_attention_heads) is in no weight"
        )
    config = read_json(where)
    kind = config.get("model_type", "gpt2")
    if kind not in KINDS:
        raise UserError(f"{where}: model_type={kind!r}; only {', '.join(KINDS)} can be imported")
    if kind == "gpt2":
        facts = read_gpt2_config(where, config)
        found = gpt2_weights(
            tensors,
            path,
            heads=facts.heads,
            conv1d=True,
            approximate=approximate,
            form=facts.form,
            norm_eps=facts.norm_eps,
        )
    else:
        shape, vocab_size = read_llama_config(where, config)
        found = llama_weights(tensors, path, shape, vocab_size)
    return replace(found, notes=(*tensors.notes, *found.notes))


def _open(path: Path, trusted: bool) -> Tensors:
    """The weights of a folder, safetensors before pickles, or of the file that was named."""
    if not path.exists():
        raise MissingInputError(f"{path}: no such folder or file")
    files = _weight_files(path) if path.is_dir() else [path]
    suffixes = {file.suffix for file in files}
    if suffixes == {SAFETENSORS}:
        return open_safetensors(files)
    if not suffixes <= set(PICKLES):
        raise UserError(f"{path}: expected {SAFETENSORS}, or a pickle ({', '.join(PICKLES)})")
    tensors: dict[str, Any] = {}
    notes = []
    for file in files:
        refuse_pickle(file, trusted=trusted)
        found, note = load_pickle(file, trusted=trusted)
        tensors |= found
        notes.append(note)
    return from_mapping(path, tensors, tuple(notes))


def _weight_files(folder: Path) -> list[Path]:
    """The files of the model in one of the forms that transformers saves."""
    if (folder / INDEX).is_file() and not (folder / WEIGHTS).is_file():
        return _listed_files(folder)
    for pattern in (
        WEIGHTS,
        "model-*-of-*.safetensors",
        "pytorch_model.bin",
        "pytorch_model-*-of-*.bin",
    ):
        files = sorted(folder.glob(pattern))
        if files:
            return files
    raise MissingInputError(f"{folder}: holds no {WEIGHTS}")


def _listed_files(folder: Path) -> list[Path]:
    """The files that the index of a model in several files names."""
    listed = read_json(folder / INDEX).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise DataError(f"{folder / INDEX}: has no weight_map from names to files")
    files = [folder / name for name in sorted(set(listed.values()))]
    for file in files:
        if file.parent != folder or file.suffix != SAFETENSORS:
            raise DataError(f"{folder / INDEX}: names {file.name[:80]!r}, no {SAFETENSORS} in it")
        if not file.is_file():
            raise MissingInputError(f"{file}: not there; {INDEX} names it")
    return files
