"""config.json of transformers: what ours is written as, and what of others can be ours.

What decides a number of the model and is not computed here is refused by its name. Dropout is no
part of the function and is passed over.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard

from sparsecl.errors import DataError, UserError
from sparsecl.model.config import LARGEST, LAYER_NORM_EPS, ROPE_THETA, ModelShape
from sparsecl.opening import plain_input, read_plain

CONFIG = "config.json"

Gpt2Form = Literal["gpt", "gpt2"]

# Form -> names of its GELU; the first is the one that is written.
GELUS: dict[Gpt2Form, tuple[str, ...]] = {
    "gpt": ("gelu", "gelu_python"),
    "gpt2": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "gelu_python_tanh"),
}

# Options of GPT2Config that change the function: ours, which is also GPT-2's default.
GPT2_OPTIONS = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}

# Options of LlamaConfig and Qwen2Config: what ours computes, and who has that.
LLAMA_OPTIONS: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "use_sliding_window": (False, None),
    "use_mrope": (False, None),
    "rope_scaling": (None,),
    "quantization_config": (None,),
    "partial_rotary_factor": (1.0, None),
    "hidden_act": ("silu", "swish"),
}
WAYS_OUT = {
    "rope_scaling": "take a model that was trained without it (Llama 2, TinyLlama, SmolLM, Qwen2)",
    "quantization_config": "take the weights as they were before they were quantised",
    "use_sliding_window": "take a model whose layers all see the whole context",
    "sliding_window": "take a model whose layers all see the whole context",
    "layer_types": "take a model whose layers all see the whole context",
}
OTHERS = "take a model of the form of Llama 2, TinyLlama, SmolLM or Qwen2"


def hf_config(
    shape: ModelShape, *, vocab_size: int, eot_id: int | None, init_std: float
) -> dict[str, Any]:
    """The config of a model of ours, every field that decides a number written out."""
    config = _llama_config(shape) if shape.form == "llama" else _gpt2_config(shape)
    return {
        **config,
        "vocab_size": vocab_size,
        "tie_word_embeddings": shape.tied,
        "initializer_range": init_std,
        "bos_token_id": eot_id,
        "eos_token_id": eot_id,
        "use_cache": True,
    }


def _gpt2_config(shape: ModelShape) -> dict[str, Any]:
    assert shape.form != "llama"
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_positions": shape.context,
        "n_embd": shape.width,
        "n_layer": shape.layers,
        "n_head": shape.heads,
        "n_inner": shape.mlp,
        "activation_function": GELUS[shape.form][0],
        "layer_norm_epsilon": shape.norm_eps,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }


def _llama_config(shape: ModelShape) -> dict[str, Any]:
    qwen = shape.qkv_bias
    found = {
        "architectures": ["Qwen2ForCausalLM" if qwen else "LlamaForCausalLM"],
        "model_type": "qwen2" if qwen else "llama",
        "hidden_size": shape.width,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": shape.context,
        "hidden_act": "silu",
        "rms_norm_eps": shape.norm_eps,
        # Newer releases read the second, older ones the first.
        "rope_theta": shape.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "attention_dropout": 0.0,
    }
    if qwen:
        return {**found, "use_sliding_window": False}
    return {**found, "attention_bias": False, "mlp_bias": False, "head_dim": shape.head_width}


@dataclass(frozen=True)
class Gpt2Facts:
    """What no tensor of a GPT-2 tells."""

    heads: int
    form: Gpt2Form
    norm_eps: float


def read_gpt2_config(path: Path, config: Mapping[str, Any]) -> Gpt2Facts:
    """Of a config.json of model_type gpt2.

    Raises:
        UserError: the model computes what none of ours does.
        DataError: a value is not what it must be.
    """
    for key, ours in GPT2_OPTIONS.items():
        if config.get(key, ours) is not ours:
            raise UserError(f"{path}: {key}={config[key]!r}; this model has {key}={ours} only")
    activation = config.get("activation_function", "gelu_new")
    form: Gpt2Form = "gpt" if activation in GELUS["gpt"] else "gpt2"
    if activation not in GELUS[form]:
        raise UserError(
            f"{path}: activation_function={activation!r}; this model has GELU only "
            f"({', '.join(name for names in GELUS.values() for name in names)})"
        )
    heads = config.get("n_head")
    if not _is_count(heads):
        raise DataError(f"{path}: n_head={heads!r} is not a number of heads")
    return Gpt2Facts(heads, form, _number(path, config, "layer_norm_epsilon", LAYER_NORM_EPS))


def read_llama_config(path: Path, config: Mapping[str, Any]) -> tuple[ModelShape, int]:
    """Shape and number of token ids of a config.json of model_type llama or qwen2.

    Raises:
        UserError: the model computes what ours does not, by the name of the option.
        DataError: a value is not what it must be.
    """
    qwen = config["model_type"] == "qwen2"
    _refuse_options(path, config, qwen)
    sizes = {}
    for key in (
        *("num_hidden_layers", "hidden_size", "num_attention_heads", "max_position_embeddings"),
        *("intermediate_size", "vocab_size"),
    ):
        if not _is_count(value := config.get(key)):
            raise DataError(f"{path}: {key}={value!r} is not a number in 1..{LARGEST}")
        sizes[key] = value
    width, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads")
    kv_heads = heads if kv_heads is None else kv_heads
    if not _is_count(kv_heads) or width % heads or heads % kv_heads:
        raise DataError(
            f"{path}: num_key_value_heads={kv_heads!r} and num_attention_heads={heads} do not "
            f"divide hidden_size={width}"
        )
    if config.get("head_dim") not in (None, width // heads):
        raise UserError(
            f"{path}: head_dim={config['head_dim']!r}; here it is hidden_size / "
            f"num_attention_heads = {width // heads} only: {OTHERS}"
        )
    rope = config.get("rope_parameters") or {}
    shape = ModelShape(
        sizes["num_hidden_layers"],
        width,
        heads,
        context=sizes["max_position_embeddings"],
        mlp=sizes["intermediate_size"],
        form="llama",
        kv_heads=kv_heads,
        tied=config.get("tie_word_embeddings", False) is True,
        norm_eps=_number(path, config, "rms_norm_eps", 1e-6),
        rope_theta=_number(path, {**config, **rope}, "rope_theta", ROPE_THETA),
        qkv_bias=qwen,
    )
    return shape, sizes["vocab_size"]


def _refuse_options(path: Path, config: Mapping[str, Any], qwen: bool) -> None:
    found = {key: config[key] for key in LLAMA_OPTIONS if key in config}
    scaling = found.get("rope_scaling")
    rope = config.get("rope_parameters")
    for key, value in (("rope_scaling", scaling), ("rope_parameters", rope)):
        if value is None:
            continue
        if not isinstance(value, dict):
            raise DataError(f"{path}: {key}={value!r} is no mapping")
        kind = value.get("rope_type", value.get("type", "default"))
        if kind != "default":
            _refuse(path, key, kind, "rope_scaling")
        found.pop(key, None)
        found |= {name: value[name] for name in ("partial_rotary_factor",) if name in value}
    for key, value in found.items():
        if value not in LLAMA_OPTIONS[key]:
            _refuse(path, key, value, key)
    if not qwen and config.get("sliding_window") is not None:
        _refuse(path, "sliding_window", config["sliding_window"], "sliding_window")
    kinds = config.get("layer_types") or []
    other = [kind for kind in kinds if kind != "full_attention"]
    if other:
        _refuse(path, "layer_types", other[0], "layer_types")


def _refuse(path: Path, key: str, value: Any, reason: str) -> None:
    raise UserError(
        f"{path}: {key}={value!r} is not computed by this model: {WAYS_OUT.get(reason, OTHERS)}"
    )


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST


def _number(path: Path, config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise DataError(f"{path}: {key}={value!r} is not a number above 0")
    return float(value)


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
