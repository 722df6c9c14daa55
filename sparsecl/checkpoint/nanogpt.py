"""A checkpoint of nanoGPT (https://github.com/karpathy/nanoGPT): ckpt.pt as its train.py saves it.

It is a pickle of a dictionary: "model", the state dict, and "model_args", its sizes. Linears are
[outputs, inputs] as ours, and GELU is the exact one; with `bias=False` nothing is left out.
"""

from collections.abc import Mapping
from pathlib import Path

from sparsecl.checkpoint.foreign import Weights, from_mapping, load_pickle
from sparsecl.checkpoint.gpt2_weights import gpt2_weights
from sparsecl.errors import DataError


def read_nanogpt(path: Path, *, trusted: bool, approximate: bool) -> Weights:
    """Open the weights under our names.

    Args:
        trusted: the pickle may be read, by the restricted unpickler.
        approximate: leave out biases.

    Raises:
        UserError: a pickle without trust, or biases without `approximate`.
        MissingInputError: the file is not there.
        DataError: it is no checkpoint of nanoGPT.
    """
    found, note = load_pickle(path, trusted=trusted)
    state, sizes = found.get("model"), found.get("model_args")
    if not isinstance(state, Mapping) or not isinstance(sizes, Mapping):
        raise DataError(f"{path}: has no `model` and `model_args`; it is no checkpoint of nanoGPT")
    heads = sizes.get("n_head")
    if not isinstance(heads, int) or isinstance(heads, bool):
        raise DataError(f"{path}: model_args.n_head={heads!r} is not a number of heads")
    tensors = from_mapping(path, state, (note,))
    weights = gpt2_weights(tensors, path, heads=heads, conv1d=False, approximate=approximate)
    return Weights(weights.shape, weights.vocab_size, weights.read, (note, *weights.notes))
