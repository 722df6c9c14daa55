"""The weights of some GPT-2 as those of a model of form gpt or gpt2, or why it is neither.

transformers' GPT-2 and nanoGPT compute the same function up to names, transposes and options. What
form gpt has no place for (biases beside the exact GELU) is refused, or, if the user asks for an
approximation, left out and said.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from sparsecl.checkpoint.entries import entries
from sparsecl.checkpoint.foreign import Tensors, Weights
from sparsecl.checkpoint.hf_config import Gpt2Form
from sparsecl.checkpoint.hf_names import BUFFER, gpt2_biases, place
from sparsecl.errors import DataError, UserError
from sparsecl.model.config import LAYER_NORM_EPS, ModelShape
from sparsecl.model.shapes import EMBEDDING

PREFIX = "transformer."
HEAD = "lm_head.weight"
APPROXIMATE = "--approximate"
EMBEDDED = "wte.weight"
WRAPPERS = ("_orig_mod.", "module.")  # what torch.compile and DDP put before every name
MAX_SIZE = 1 << 24  # of any one dimension: far above real models, and products stay exact


def gpt2_weights(
    tensors: Tensors,
    where: Path,
    *,
    heads: int,
    conv1d: bool,
    approximate: bool,
    form: Gpt2Form = "gpt",
    norm_eps: float = LAYER_NORM_EPS,
) -> Weights:
    """Check a GPT-2 and open it under our names.

    Args:
        tensors: with or without the prefix "transformer.", and those of WRAPPERS before it.
        where: the file, for errors.
        heads: attention heads, which no tensor tells.
        conv1d: linears are [inputs, outputs] (transformers), not [outputs, inputs] (nanoGPT).
        approximate: form gpt: leave out biases.
        form: gpt for the exact GELU, gpt2 for its tanh form.
        norm_eps: of all norms.

    Raises:
        DataError: it is no GPT-2, or not whole.
        UserError: it has what the form has not, and `approximate` is False.
    """
    tensors = _unwrapped(tensors, where)
    prefix = _prefix(tensors, where)
    names = {key.removeprefix(prefix) for key in tensors.keys if key != HEAD}
    names = {name for name in names if not BUFFER.fullmatch(name)}

    def get(name: str) -> torch.Tensor:
        if prefix + name not in tensors.keys:
            raise DataError(f"{where}: holds no {prefix}{name}; it is no GPT-2")
        return tensors.read(prefix + name)

    shape, vocab_size = _shape(get, names, where, heads, conv1d)
    shape = replace(shape, form=form, norm_eps=norm_eps)
    biases = gpt2_biases(shape)
    wanted = entries(shape, vocab_size, frozenset())
    keys = {place(form, name).key for name in wanted}
    for name in sorted(names - keys - biases.keys()):
        raise DataError(f"{where}: {prefix}{name} is not a tensor of a GPT-2")
    _check_head(tensors, prefix, where)
    notes = _left_out_biases(get, (names & biases.keys()) - keys, where, approximate)

    def read(name: str) -> torch.Tensor:
        spot, size = place(form, name), wanted[name].shape
        found = get(spot.key)
        whole = size if spot.third is None else (3 * size[0], *size[1:])
        transposed = conv1d and spot.is_conv
        if tuple(found.shape) != (whole[::-1] if transposed else whole):
            raise DataError(
                f"{where}: {prefix}{spot.key} is of shape {list(found.shape)}, which does not fit "
                f"width {shape.width} and {shape.mlp} hidden units"
            )
        found = found.T if transposed else found
        found = found if spot.third is None else found.chunk(3)[spot.third]
        return found.float().contiguous()

    return Weights(shape, vocab_size, read, notes)


def approximation(what: str, *, approximate: bool) -> str:
    """The line of something that ours computes otherwise.

    Raises:
        UserError: with it, if no approximation was asked for.
    """
    if not approximate:
        raise UserError(f"{what}. {APPROXIMATE} leaves it out, and changes what the model computes")
    return f"{what}: left out"


def _unwrapped(tensors: Tensors, where: Path) -> Tensors:
    names: dict[str, str] = {}
    for key in sorted(tensors.keys):
        name = key
        while wrapper := next((w for w in WRAPPERS if name.startswith(w)), None):
            name = name.removeprefix(wrapper)
        if name in names:
            raise DataError(f"{where}: {names[name]} and {key} are the same tensor of a GPT-2")
        names[name] = key
    return Tensors(frozenset(names), lambda name: tensors.read(names[name]), tensors.notes)


def _prefix(tensors: Tensors, where: Path) -> str:
    """What is before all names of a GPT-2."""
    for prefix in (PREFIX, ""):
        if prefix + EMBEDDED in tensors.keys:
            return prefix
    other = sorted(key for key in tensors.keys if key.endswith(EMBEDDED))
    if other:
        found = other[0].removesuffix(EMBEDDED)
        raise DataError(
            f"{where}: its names begin with {found[:80]!r}, those of a GPT-2 with {PREFIX!r} or "
            f"nothing; rename them"
        )
    some = ", ".join(sorted(tensors.keys)[:3])[:200] or "no tensors"
    raise DataError(f"{where}: holds no {EMBEDDED}, but {some}; it is no GPT-2")


def _shape(
    get: Callable[[str], torch.Tensor], names: set[str], where: Path, heads: int, conv1d: bool
) -> tuple[ModelShape, int]:
    """Sizes, from the tensors, and the number of token ids."""
    embedding, positions = get("wte.weight"), get("wpe.weight")
    up = get("h.0.mlp.c_fc.weight")
    if any(tensor.dim() != 2 or max(tensor.shape) > MAX_SIZE for tensor in (embedding, positions)):
        raise DataError(f"{where}: wte.weight or wpe.weight is no matrix of a usual size")
    if up.dim() != 2 or 0 in (*embedding.shape, *positions.shape, *up.shape):
        raise DataError(f"{where}: an empty tensor, or a linear that is no matrix")
    width = embedding.shape[1]
    if heads < 1 or width % heads:
        raise DataError(f"{where}: {heads} heads do not divide the width {width}")
    layers = 1
    while f"h.{layers}.ln_1.weight" in names:
        layers += 1
    mlp = up.shape[1] if conv1d else up.shape[0]
    shape = ModelShape(layers, width, heads, context=positions.shape[0], mlp=mlp)
    return shape, embedding.shape[0]


def _check_head(tensors: Tensors, prefix: str, where: Path) -> None:
    if HEAD not in tensors.keys:
        return
    if not torch.equal(tensors.read(HEAD), tensors.read(f"{prefix}wte.weight")):
        raise UserError(
            f"{where}: {HEAD} differs from {prefix}wte.weight; the head of forms gpt and gpt2 is "
            f"always tied to its {EMBEDDING}"
        )


def _left_out_biases(
    get: Callable[[str], torch.Tensor], names: set[str], where: Path, approximate: bool
) -> tuple[str, ...]:
    """A line if any bias is not zero."""
    largest, name = max(((float(get(name).abs().max()), name) for name in names), default=(0.0, ""))
    if largest == 0.0:
        return ()
    what = (
        f"{where}: has biases beside the exact GELU, form gpt has none ({name} is up to "
        f"{largest:.3g})"
    )
    return (approximation(what, approximate=approximate),)
