"""A GPT-2 of transformers: its folder, or one weight file with config.json beside it."""

from pathlib import Path
from typing import Any

from sparsecl.checkpoint.foreign import (
    PICKLES,
    SAFETENSORS,
    Tensors,
    from_mapping,
    load_pickle,
    open_safetensors,
    refuse_pickle,
)
from sparsecl.checkpoint.gpt2_weights import Weights, approximation, gpt2_weights
from sparsecl.checkpoint.hf import ACTIVATION, CONFIG, NORM_EPS, WEIGHTS, read_json
from sparsecl.errors import DataError, MissingInputError, UserError

_EXACT_GELU = (ACTIVATION, "gelu_python")
_TANH_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "gelu_python_tanh")

# Options of GPT2Config that change the function: ours, which is also GPT-2's default.
_OPTIONS = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}


def read_gpt2(path: Path, *, trusted: bool, approximate: bool) -> Weights:
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
    if not (folder / CONFIG).is_file():
        raise MissingInputError(
            f"{folder / CONFIG}: not there; the number of heads (n_head) is in no weight"
        )
    config = read_json(folder / CONFIG)
    notes = _check_config(folder / CONFIG, config, approximate)
    found = gpt2_weights(
        tensors, path, heads=_heads(folder, config), conv1d=True, approximate=approximate
    )
    return Weights(
        found.shape, found.vocab_size, found.read, (*tensors.notes, *notes, *found.notes)
    )


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


def _check_config(path: Path, config: dict[str, Any], approximate: bool) -> list[str]:
    """Lines for what ours computes otherwise; see `approximation`."""
    if config.get("model_type", "gpt2") != "gpt2":
        raise UserError(f"{path}: model_type={config['model_type']!r}; only gpt2 can be imported")
    for key, ours in _OPTIONS.items():
        if config.get(key, ours) is not ours:
            raise UserError(f"{path}: {key}={config[key]!r}; this model has {key}={ours} only")
    notes = []
    activation = config.get("activation_function", "gelu_new")
    if activation in _TANH_GELU:
        what = f"{path}: activation_function={activation}; this model has the exact GELU"
        notes.append(approximation(what, approximate=approximate))
    elif activation not in _EXACT_GELU:
        raise UserError(f"{path}: activation_function={activation!r}; this model has GELU only")
    eps = config.get("layer_norm_epsilon", NORM_EPS)
    if eps != NORM_EPS:
        what = f"{path}: layer_norm_epsilon={eps!r}; this model has {NORM_EPS}"
        notes.append(approximation(what, approximate=approximate))
    return notes


def _heads(folder: Path, config: dict[str, Any]) -> int:
    heads = config.get("n_head")
    if not isinstance(heads, int) or isinstance(heads, bool):
        raise DataError(f"{folder / CONFIG}: n_head={heads!r} is not a number of heads")
    return heads
