"""README.md of an exported model: what it is, how it was made, how to load it.

Only what the checkpoint says is written; what it does not know is said to be unknown.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsecl.engine.run_config import RunConfig
    from sparsecl.topology.layer import LayerTopology

NAMES = {"gpt": "GPT-2 with exact GELU and biases of zero", "gpt2": "GPT-2"}


def card_text(
    config: "RunConfig",
    state: Mapping[str, Any],
    topologies: "Mapping[str, LayerTopology]",
    *,
    step: int,
    vocab_size: int,
    has_tokenizer: bool,
) -> str:
    """The card.

    Args:
        config: of the run that made the checkpoint.
        state: of its manifest; nothing in it is trusted to be there.
        topologies: its live sets by parameter name; empty if all weights are there.
        step: optimizer steps done.
    """
    parts = [
        _front(),
        *_model(config, vocab_size),
        *_topology(config, topologies, vocab_size),
        *_training(config, state, step),
        *_loading(has_tokenizer, bool(topologies)),
        "## Licence\n\nThe licence of the data, and so of the weights, is unknown to the program "
        "that wrote this. Whoever publishes them has to find out and write it here.",
    ]
    return "\n\n".join(parts) + "\n"


def _front() -> str:
    return (
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\nlicense: unknown\n"
        "tags:\n- sparse\n- continual-learning\n---"
    )


def _model(config: "RunConfig", vocab_size: int) -> list[str]:
    shape = config.model.resolved()
    qwen = "Qwen2" if shape.qkv_bias else "Llama"
    kind = NAMES.get(shape.form, qwen)
    sizes = (
        f"{shape.layers} layers of width {shape.width}, {shape.heads} heads"
        + (f" ({shape.kv_heads} of keys and values)" if shape.kv_heads < shape.heads else "")
        + f", {shape.mlp} hidden units, context {shape.context}, {vocab_size} token ids"
    )
    return [
        f"# A {'sparse ' if config.topology.kind != 'dense' else ''}language model",
        f"A model of the architecture of {kind}: {sizes}. It was written by sparsecl, which asks "
        "whether a sparse topology by itself makes a model forget less. It is a result of research "
        "and not made for use: it was not tuned to follow instructions, and nothing was filtered.",
    ]


def _topology(
    config: "RunConfig", topologies: "Mapping[str, LayerTopology]", vocab_size: int
) -> list[str]:
    from sparsecl.model.flops import count_parameters

    by_layer = {name.removesuffix(".weight"): found for name, found in topologies.items()}
    counts = count_parameters(config.model.resolved(), vocab_size, by_layer)
    if not topologies:
        kind = "dense: every weight is there"
        if config.topology.kind != "dense":
            kind = f"{config.topology.kind}, role update: all weights are there, few were trained"
        return ["## Topology", f"{kind[0].upper()}{kind[1:]}. {counts.total:,} parameters."]
    rows = [
        ("kind", config.topology.kind),
        ("density of the masked matrices", f"{counts.density_masked:.4g}"),
        ("density of the whole model", f"{counts.density_model:.4g}"),
        ("live parameters", f"{counts.live:,}"),
        ("parameters in the file", f"{counts.total:,}"),
    ]
    text = (
        "Absent weights are zeros of dense matrices here, so nothing is saved in memory or time. "
        "Which ones they are is in `topology.safetensors`. Fine-tuning would fill them."
    )
    return ["## Topology", _table(("", ""), rows), text]


def _training(config: "RunConfig", state: Mapping[str, Any], step: int) -> list[str]:
    if state.get("weights_only") is True:
        return [
            "## Training",
            "The weights were imported and not trained further. What they were trained on is not "
            "known here.",
        ]
    names = [domain.name for domain in config.data.domains]
    order = config.phases.order or tuple(names)
    found = [
        "## Training",
        f"{step:,} optimizer steps on {len(names)} domains"
        + (" at once: " if config.phases.joint else ", one after the other: ")
        + ", ".join(order)
        + f". {config.precision}, seed {config.seed}."
        + (" It began with the weights of another checkpoint." if state.get("init_from") else ""),
    ]
    last = {key: _last_row(state, key, len(names)) for key in ("loss", "bits_per_byte")}
    if any(value is not None for row in last.values() for value in row):
        rows = [
            (name, *(_number(last[key][index]) for key in last)) for index, name in enumerate(names)
        ]
        found.append("On held-out text, after the last phase that was finished:")
        found.append(_table(("domain", "loss (nats per token)", "bits per byte"), rows))
    return found


def _last_row(state: Mapping[str, Any], key: str, num_domains: int) -> Sequence[Any]:
    matrix = state.get("matrix")
    rows = matrix.get(key) if isinstance(matrix, dict) else None
    row = rows[-1] if isinstance(rows, list) and rows else None
    # The first row is of before training.
    fits = isinstance(row, list) and len(row) == num_domains and len(rows or ()) > 1
    return row if fits and row is not None else [None] * num_domains


def _number(value: Any) -> str:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return f"{value:.4f}" if known else "unknown"


def _loading(has_tokenizer: bool, has_topology: bool) -> list[str]:
    lines = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("FOLDER")',
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
        'inputs = tokenizer("Once", return_tensors="pt")',
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))",
    ]
    if not has_tokenizer:
        lines = ["from transformers import AutoModelForCausalLM", "", lines[2]]
    code = "```python\n" + "\n".join(lines) + "\n```"
    back = "`sparsecl-convert hf-import FOLDER OUT` makes a checkpoint of it again"
    back += ", with its live sets." if has_topology else "."
    missing = "" if has_tokenizer else "The tokenizer is not in this folder. "
    return ["## Loading", code, missing + back]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
