"""The weights of a Llama or Qwen2 of transformers under our names. All sizes are in its config."""

from pathlib import Path

import torch

from sparsecl.checkpoint.entries import entries
from sparsecl.checkpoint.foreign import Tensors, Weights
from sparsecl.checkpoint.hf_names import BUFFER, place
from sparsecl.errors import DataError
from sparsecl.model.config import ModelShape
from sparsecl.model.shapes import EMBEDDING, HEAD


def llama_weights(tensors: Tensors, where: Path, shape: ModelShape, vocab_size: int) -> Weights:
    """Check the names and open the weights.

    Args:
        where: the file or folder, for errors.
        shape: what its config says; sizes of tensors are compared as they are read.

    Raises:
        DataError: a tensor is missing, or is none of such a model.
    """
    if shape.layers > len(tensors.keys):
        raise DataError(f"{where}: {len(tensors.keys)} tensors are no {shape.layers} layers")
    wanted = entries(shape, vocab_size, frozenset())
    keys = {name: place("llama", name).key for name in wanted}
    for name, key in keys.items():
        if key not in tensors.keys:
            tied = "; its config says tie_word_embeddings=false" if name == HEAD else ""
            raise DataError(f"{where}: holds no {key}{tied}")
    others = {key for key in tensors.keys - set(keys.values()) if not BUFFER.fullmatch(key)}
    head = place("llama", HEAD).key
    if shape.tied and head in others:
        others.remove(head)
        if not torch.equal(tensors.read(head), tensors.read(keys[EMBEDDING])):
            raise DataError(
                f"{where}: {head} differs from {keys[EMBEDDING]}, but its config says "
                "tie_word_embeddings=true"
            )
    for key in sorted(others):
        raise DataError(f"{where}: {key} is not a tensor of the model that its config describes")

    def read(name: str) -> torch.Tensor:
        found = tensors.read(keys[name])
        if tuple(found.shape) != wanted[name].shape:
            raise DataError(
                f"{where}: {keys[name]} is of shape {list(found.shape)}, its config says "
                f"{list(wanted[name].shape)}"
            )
        return found.float().contiguous()

    return Weights(shape, vocab_size, read, ())
