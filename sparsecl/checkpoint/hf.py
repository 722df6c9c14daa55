"""A checkpoint as the weights and config of transformers' GPT2LMHeadModel, exactly.

W = width, M = hidden units. Our GPT is a GPT-2 with the exact (erf) GELU and without biases, so
nothing is approximated: the biases are written as zeros, and the padding rows of the vocabulary,
which depend on the layout of the run, are left out. Absent weights become zeros of a dense matrix;
which they were is written beside it in our own file, so that `hf_import` restores it.
"""

import json
from pathlib import Path
from typing import Any

import torch

from sparsecl.checkpoint.canonical import MASTER, Advance, TensorSource
from sparsecl.checkpoint.gpt2_names import EMBEDDING, entries, gpt2_biases, place
from sparsecl.checkpoint.stream_file import Spec, TensorFileWriter
from sparsecl.checkpoint.topologies import TOPOLOGY_FILE, save_topologies
from sparsecl.errors import DataError, UserError
from sparsecl.files import write_json
from sparsecl.model.config import ModelShape
from sparsecl.opening import plain_input, read_plain

WEIGHTS, CONFIG = "model.safetensors", "config.json"
PREFIX = "transformer."
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# F.gelu without an approximation, as in our Mlp; "gelu_new" would be the tanh form.
ACTIVATION = "gelu"
NORM_EPS = 1e-5  # nn.LayerNorm's default, which model/gpt.py uses


def export_weights(
    source: TensorSource,
    shape: ModelShape,
    folder: Path,
    *,
    vocab_size: int,
    eot_id: int | None,
    init_std: float,
    dtype: str = "fp32",
    advance: Advance | None = None,
) -> None:
    """Write config.json, generation_config.json, model.safetensors and topology.safetensors.

    One tensor of GPT-2 is in memory at a time.

    Args:
        folder: exists, and holds none of these files.
        vocab_size: token ids in use; rows of the embedding above are padding.
        eot_id: end of text, for generation; None = unknown.
        dtype: of the weights, a key of DTYPES.
        advance: called with the bytes of canonical tensors done.

    Raises:
        DataError: if the checkpoint is not of a GPT of this shape and vocabulary.
        UserError: if a weight is too large for `dtype`.
    """
    _check_is_gpt(source, shape, vocab_size)
    _write_weights(source, shape, folder / WEIGHTS, vocab_size, DTYPES[dtype], advance)
    config = gpt2_config(shape, vocab_size=vocab_size, eot_id=eot_id, init_std=init_std)
    # transformers' names of dtypes; the older key is read by all of its releases.
    config["torch_dtype"] = str(DTYPES[dtype]).removeprefix("torch.")
    write_json(folder / CONFIG, config)
    ids = {"bos_token_id": eot_id, "eos_token_id": eot_id, "pad_token_id": eot_id}
    write_json(folder / "generation_config.json", {"_from_model_config": True, **ids})
    if source.topologies:
        save_topologies(folder / TOPOLOGY_FILE, source.topologies)
        (folder / TOPOLOGY_FILE).chmod(0o644)  # safetensors makes 0600; others are to read it


def gpt2_config(
    shape: ModelShape, *, vocab_size: int, eot_id: int | None, init_std: float
) -> dict[str, Any]:
    """GPT2Config of our GPT, every field that decides a number written out."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": vocab_size,
        "n_positions": shape.context,
        "n_embd": shape.width,
        "n_layer": shape.layers,
        "n_head": shape.heads,
        "n_inner": shape.mlp,
        "activation_function": ACTIVATION,
        "layer_norm_epsilon": NORM_EPS,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "initializer_range": init_std,
        "bos_token_id": eot_id,
        "eos_token_id": eot_id,
        "use_cache": True,
    }


def _check_is_gpt(source: TensorSource, shape: ModelShape, vocab_size: int) -> None:
    found = source.manifest.parameters
    rows = found[EMBEDDING].shape[0] if EMBEDDING in found else 0
    wanted = entries(shape, rows, frozenset())
    for name in [*wanted, *found]:
        sizes = [list(some[name].shape) if name in some else None for some in (found, wanted)]
        if sizes[0] != sizes[1] or not source.has(MASTER, name):
            raise DataError(
                f"{name}: {sizes[0]} in the checkpoint, {sizes[1]} in a GPT of its config"
            )
    if rows < vocab_size:
        raise DataError(f"{EMBEDDING}: {rows} rows, but the tokenizer has {vocab_size} ids")


def _write_weights(
    source: TensorSource,
    shape: ModelShape,
    path: Path,
    vocab_size: int,
    dtype: torch.dtype,
    advance: Advance | None,
) -> None:
    """Every tensor of GPT2LMHeadModel but the head, which is the embedding."""
    parts: dict[str, list[str]] = {}
    for name in source.manifest.parameters:
        parts.setdefault(place(name).key, []).append(name)
    specs = {key: _spec(source, names, vocab_size, dtype) for key, names in parts.items()}
    biases = gpt2_biases(shape)
    specs |= {key: Spec(dtype, (size,)) for key, size in biases.items()}
    with TensorFileWriter(
        path, {PREFIX + key: spec for key, spec in specs.items()}, {"format": "pt"}
    ) as file:
        for key, names in parts.items():
            _write_one(source, names, file, PREFIX + key, specs[key], advance)
        for key, size in biases.items():
            file.write(PREFIX + key, torch.zeros(size, dtype=dtype))


def _spec(source: TensorSource, names: list[str], vocab_size: int, dtype: torch.dtype) -> Spec:
    """Shape of the tensor that `names` are joined to."""
    rows, *rest = source.manifest.parameters[names[0]].shape
    sizes = (vocab_size if names[0] == EMBEDDING else len(names) * rows, *rest)
    return Spec(dtype, sizes[::-1] if place(names[0]).is_linear else sizes)


def _write_one(
    source: TensorSource,
    names: list[str],
    file: TensorFileWriter,
    key: str,
    spec: Spec,
    advance: Advance | None,
) -> None:
    """Read what belongs to one tensor of GPT-2 and write it."""
    whole = torch.cat([source.read(MASTER, name) for name in names])
    num_bytes = whole.nbytes
    whole = (whole.T if place(names[0]).is_linear else whole[: spec.shape[0]]).to(spec.dtype)
    if not torch.isfinite(whole).all():
        raise UserError(f"{names[0]} does not fit {spec.dtype}, or is not finite: use --dtype fp32")
    file.write(key, whole)
    if advance:
        advance(num_bytes)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a file that may come from anyone.

    Raises:
        DataError: it cannot be read, or is no object.
    """
    try:
        found = json.loads(read_plain(path, plain_input))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({type(error).__name__})") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: not a JSON object")
    return found
