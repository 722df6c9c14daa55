"""A checkpoint as the weights and config of a model of transformers, exactly.

Form gpt is a GPT2LMHeadModel with the exact (erf) GELU and with biases of zero, gpt2 one as it was
published; llama is a LlamaForCausalLM, or a Qwen2ForCausalLM if q, k and v have biases. Nothing is
approximated. The padding rows of the vocabulary, which depend on the layout of the run, are left
out. Absent weights become zeros of a dense matrix; which they were is written beside it in our own
file, so that `hf_import` restores it.
"""

from pathlib import Path

import torch

from sparsecl.checkpoint.canonical import MASTER, Advance, TensorSource
from sparsecl.checkpoint.entries import entries
from sparsecl.checkpoint.hf_config import CONFIG, hf_config
from sparsecl.checkpoint.hf_names import gpt2_biases, place
from sparsecl.checkpoint.stream_file import Spec, TensorFileWriter
from sparsecl.checkpoint.topologies import TOPOLOGY_FILE, save_topologies
from sparsecl.errors import DataError, UserError
from sparsecl.files import write_json
from sparsecl.model.config import ModelShape
from sparsecl.model.shapes import EMBEDDING, VOCABULARY

WEIGHTS = "model.safetensors"
PREFIX = "transformer."  # of GPT-2
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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

    One tensor of the file is in memory at a time.

    Args:
        folder: exists, and holds none of these files.
        vocab_size: token ids in use; rows of the embedding above are padding.
        eot_id: end of text, for generation; None = unknown.
        dtype: of the weights, a key of DTYPES.
        advance: called with the bytes of canonical tensors done.

    Raises:
        DataError: if the checkpoint is not of a model of this shape and vocabulary.
        UserError: if a weight is too large for `dtype`.
    """
    _check_is_ours(source, shape, vocab_size)
    _write_weights(source, shape, folder / WEIGHTS, vocab_size, DTYPES[dtype], advance)
    config = hf_config(shape, vocab_size=vocab_size, eot_id=eot_id, init_std=init_std)
    # transformers' names of dtypes; the older key is read by all of its releases.
    config["torch_dtype"] = str(DTYPES[dtype]).removeprefix("torch.")
    write_json(folder / CONFIG, config)
    ids = {"bos_token_id": eot_id, "eos_token_id": eot_id, "pad_token_id": eot_id}
    write_json(folder / "generation_config.json", {"_from_model_config": True, **ids})
    if source.topologies:
        save_topologies(folder / TOPOLOGY_FILE, source.topologies)
        (folder / TOPOLOGY_FILE).chmod(0o644)  # safetensors makes 0600; others are to read it


def _check_is_ours(source: TensorSource, shape: ModelShape, vocab_size: int) -> None:
    found = source.manifest.parameters
    rows = found[EMBEDDING].shape[0] if EMBEDDING in found else 0
    wanted = entries(shape, rows, frozenset())
    for name in [*wanted, *found]:
        sizes = [list(some[name].shape) if name in some else None for some in (found, wanted)]
        if sizes[0] != sizes[1] or not source.has(MASTER, name):
            raise DataError(
                f"{name}: {sizes[0]} in the checkpoint, {sizes[1]} in a model of its config"
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
    """Every tensor of the model but a head that is the embedding."""
    prefix = "" if shape.form == "llama" else PREFIX
    parts: dict[str, list[str]] = {}
    for name in source.manifest.parameters:
        parts.setdefault(place(shape.form, name).key, []).append(name)
    joined = [_Joined(source, shape, names, vocab_size, dtype) for names in parts.values()]
    zeros = gpt2_biases(shape) if shape.form == "gpt" else {}
    specs = {prefix + key: one.spec for key, one in zip(parts, joined, strict=True)}
    specs |= {prefix + key: Spec(dtype, (size,)) for key, size in zeros.items()}
    with TensorFileWriter(path, specs, {"format": "pt"}) as file:
        for key, one in zip(parts, joined, strict=True):
            one.write(file, prefix + key, advance)
        for key, size in zeros.items():
            file.write(prefix + key, torch.zeros(size, dtype=dtype))


class _Joined:
    """Parameters of ours that are one tensor there."""

    def __init__(
        self,
        source: TensorSource,
        shape: ModelShape,
        names: list[str],
        vocab_size: int,
        dtype: torch.dtype,
    ) -> None:
        self.source, self.names = source, names
        self.transposed = place(shape.form, names[0]).is_conv
        rows, *rest = source.manifest.parameters[names[0]].shape
        sizes = (vocab_size if names[0] in VOCABULARY else len(names) * rows, *rest)
        self.spec = Spec(dtype, sizes[::-1] if self.transposed else sizes)

    def write(self, file: TensorFileWriter, key: str, advance: Advance | None) -> None:
        """Read them and write the tensor. A function of its own: no two are ever held."""
        whole = torch.cat([self.source.read(MASTER, name) for name in self.names])
        num_bytes = whole.nbytes
        whole = whole.T if self.transposed else whole[: self.spec.shape[0]]
        whole = whole.to(self.spec.dtype)
        if not torch.isfinite(whole).all():
            raise UserError(
                f"{self.names[0]} does not fit {self.spec.dtype}, or is not finite: use "
                "--dtype fp32"
            )
        file.write(key, whole)
        if advance:
            advance(num_bytes)
