"""Our parameters under the names of transformers: GPT-2's (nanoGPT has them too), and Llama's.

W = width. GPT-2 keeps q, k and v as one matrix, and transformers keeps its linears as Conv1D,
[inputs, outputs]: the transpose of ours and of nanoGPT's. Llama and Qwen2 keep all as we do.
"""

import re
from dataclasses import dataclass, replace

from sparsecl.model.config import Form, ModelShape
from sparsecl.model.shapes import parts

# Module of ours -> module of GPT-2 and our third of it (None = all of it).
_GPT2: dict[str, tuple[str, int | None]] = {
    "embedding": ("wte", None),
    "positions": ("wpe", None),
    "norm1": ("ln_1", None),
    "attention.q": ("attn.c_attn", 0),
    "attention.k": ("attn.c_attn", 1),
    "attention.v": ("attn.c_attn", 2),
    "attention.o": ("attn.c_proj", None),
    "norm2": ("ln_2", None),
    "mlp.up": ("mlp.c_fc", None),
    "mlp.down": ("mlp.c_proj", None),
    "norm": ("ln_f", None),
}
_LLAMA: dict[str, str] = {
    "embedding": "model.embed_tokens",
    "norm1": "input_layernorm",
    **{f"attention.{kind}": f"self_attn.{kind}_proj" for kind in "qkvo"},
    "norm2": "post_attention_layernorm",
    **{f"mlp.{kind}": f"mlp.{kind}_proj" for kind in ("gate", "up", "down")},
    "norm": "model.norm",
    "head": "lm_head",
}
_NAME = re.compile(r"(?:layers\.(\d+)\.)?(.+)\.(weight|bias)")

# Causal masks and frequencies that older releases saved: they hold no weight.
BUFFER = re.compile(
    r"h\.\d+\.attn\.(bias|masked_bias)|model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
)


@dataclass(frozen=True)
class TensorPlace:
    """Where one of our parameters lies in a model of transformers."""

    key: str
    """Of GPT-2 without the prefix "transformer."."""

    third: int | None = None
    """0, 1, 2: the rows W * third to W * (third + 1) of three W; None: the whole."""

    is_conv: bool = False
    """Conv1D keeps it transposed."""


def place(form: Form, name: str) -> TensorPlace:
    """Of the parameter `name` of a model of this form."""
    found = _NAME.fullmatch(name)
    assert found, name
    index, part, leaf = found.groups()
    if form == "llama":
        before = "" if index is None else f"model.layers.{index}."
        return TensorPlace(f"{before}{_LLAMA[part]}.{leaf}")
    module, third = _GPT2[part]
    before = "" if index is None else f"h.{index}."
    is_conv = leaf == "weight" and part.startswith(("attention", "mlp"))
    return TensorPlace(f"{before}{module}.{leaf}", third, is_conv)


def gpt2_biases(shape: ModelShape) -> dict[str, int]:
    """Key of every bias of a GPT-2 of this shape -> its length."""
    sizes: dict[str, int] = {}
    for part in parts(replace(shape, form="gpt2"), 1):
        if part.name.endswith(".bias"):
            key = place("gpt2", part.name).key
            sizes[key] = sizes.get(key, 0) + part.shape[0]
    return sizes
