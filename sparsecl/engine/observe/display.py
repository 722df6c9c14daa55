"""What a person sees on the terminal: header, costs, evaluations."""

import shlex
import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from sparsecl.engine import ledger
from sparsecl.engine.run_config import RunConfig
from sparsecl.engine.schedule import Schedule
from sparsecl.engine.texts import Scored
from sparsecl.model.flops import ParameterCounts
from sparsecl.model.memory import Layout, RankMemory
from sparsecl.sparse.backends import BackendName
from sparsecl.topology.layer import LayerTopology
from sparsecl.topology.report import describe

WIDTH = 100  # columns of a terminal
FORMS = {"gpt": "GPT", "gpt2": "GPT-2", "llama": "Llama"}


def watch(folder: Path) -> str:
    """The command that shows the curves of a run, ready for a shell."""
    return f"tensorboard --logdir {shlex.quote(str(folder))}"


def header(
    config: RunConfig,
    schedule: Schedule,
    counts: ParameterCounts,
    topologies: Mapping[str, LayerTopology],
    *,
    layout: Layout,
    world_size: int,
    data: str,
    reading: str,
    scored: Mapping[str, Scored] | None = None,
    backends: Mapping[str, BackendName] | None = None,
) -> str:
    """What is about to be trained, in a few aligned lines.

    Args:
        layout: as `rank_layout` of engine/schedule.py gives it.
        reading: planned passes over the training text, from engine/reading.py.
        scored: by domain, how much text is behind its scores; None = not known yet.
        backends: what topology.backend auto has chosen, by layer name; None = not known yet.
    """
    shape = schedule.shape
    role = " (role update)" if config.topology.role == "update" and topologies else ""
    vocab = counts.embedding // shape.width
    memory = ledger.rank_memory(config, vocab, topologies, layout, backends=backends).memory
    lines = {
        "run": f"{config.name}, seed {config.seed}",
        "model": f"{FORMS[shape.form]} {shape.layers} layers x {shape.width} wide, "
        f"{shape.heads} heads, context {shape.context}",
        "parameters": f"{counts.live:,} live of {counts.total:,} (density "
        f"{counts.density_model:.3f}; masked matrices {counts.density_masked:.3f})",
        "topology": describe(config.topology, topologies) + role,
        "methods": ", ".join(config.methods.used()) or "none",
        "layout": f"{world_size} process{'es' if world_size > 1 else ''}: tp "
        f"{layout.tp_size}{' (positions spread)' if layout.sequence and layout.tp_size > 1 else ''}"
        f" x dp {layout.dp_size}, ZeRO {layout.zero_stage}, {config.precision}",
        "memory": f"{_bytes(memory.total)} per rank: "
        + ", ".join(f"{part} {_bytes(size)}" for part, size in _memory_parts(memory).items()),
        "batch": f"{config.batch.sequences} sequences = {schedule.tokens_per_step:,} tokens per "
        f"step, {schedule.accumulation} x {schedule.micro} per rank"
        + (f"; logits of {layout.loss_chunk:,} tokens at a time" if layout.loss_chunk else ""),
        "data": data,
        "phases": ", ".join(
            f"{schedule.domain_name(phase)} {phase.num_steps}" for phase in schedule.phases
        )
        + " steps",
        "passes": reading,
        **_scored_lines(config, scored),
    }
    return "\n".join(_wrap(f"  {key:<11} ", value) for key, value in lines.items())


def evaluation_line(
    step: int,
    losses: Mapping[str, float],
    trained: str | None,
    *,
    border: bool = False,
    told: bool = False,
) -> str:
    """Validation losses of all domains; the one in training stands in brackets.

    Args:
        border: a row of the result matrix, which stands on more text than scores inside a phase.
        told: methods were told the domain.
    """
    what = "told the domain" if told else "border loss" if border else "validation loss"
    label = f"  step {step:>6}  {what:<15} "
    lines = [label]
    for name, loss in losses.items():
        part = f"[{name} {loss:.3f}]" if name == trained else f" {name} {loss:.3f} "
        if len(lines[-1]) + len(part) > WIDTH:
            lines.append(" " * len(label))
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def costs(
    config: RunConfig,
    schedule: Schedule,
    counts: ParameterCounts,
    topologies: Mapping[str, LayerTopology],
    *,
    vocab: int,
    layout: Layout,
    backends: Mapping[str, BackendName] | None = None,
) -> str:
    """FLOPs of training and bytes per rank, for --dry_run. Arguments as for `header`."""
    backend = config.topology.backend if topologies else "dense"
    flops = ledger.flops(config, schedule, counts, topologies, backends=backends)
    token, parts = flops.per_token, run_parts(flops)
    held = ledger.rank_memory(config, vocab, topologies, layout, backends=backends)
    memory, host = held.memory, held.methods.host
    by = f"by backend {backend}" if topologies else "by a dense model"
    if topologies and backend == "auto" and backends is None:
        by = "at most; backend auto is measured when the run starts"
    again = round(flops.tokens * config.methods.replayed_share)
    replayed = f" and up to {again:,} again" if again else ""
    storage = f"{config.topology.storage} storage" if topologies else "dense model"
    return "\n".join(
        [
            f"  FLOPs per token: {token.useful:.3e} useful (live weights), "
            f"{token.executed:.3e} executed ({by})",
            f"  Tokens: {flops.tokens:,}{replayed}; training: "
            f"{flops.executed + again * token.executed:.3e} FLOPs executed",
            *([f"  By live weights: {flops.total:.3e} FLOPs: {parts}"] if parts else []),
            f"  Memory per rank, {storage}: {_bytes(memory.total)} (buffers of DeepSpeed come on "
            "top)",
            *(f"    {part:<12}{_bytes(size):>12}" for part, size in _memory_parts(memory).items()),
            *([f"    (methods keep {_bytes(host)} in the host's memory)"] if host else []),
        ]
    )


def run_parts(flops: ledger.RunFlops) -> str:
    """Of what the FLOPs of a run consist, where methods add to the passes of the model; else
    nothing."""
    kinds = {"gradients of absent weights": flops.gradients, "scores of the graph": flops.scores}
    parts = [f"{name} {size:.3e}" for name, size in kinds.items() if size]
    changes = flops.training != flops.per_token.useful * flops.tokens
    if not parts and not changes:
        return ""
    passes = "passes at a density that changes" if changes else "passes"
    return ", ".join([f"{passes} {flops.training:.3e}", *parts])


def _scored_lines(config: RunConfig, scored: Mapping[str, Scored] | None) -> dict[str, str]:
    """How much validation text is behind rows of the matrix, and behind scores inside a phase."""
    if scored is None:
        cap = config.eval.cap_at_ends
        most = "all validation text" if cap is None else f"up to {cap:,} validation tokens"
        return {"scored": f"before training and after each phase: {most} of each domain"}
    return {
        "scored": "before training and after each phase: " + _text_of(scored, "ends"),
        **({"  in phases": _text_of(scored, "inside")} if config.eval.every else {}),
    }


def _text_of(scored: Mapping[str, Scored], text: str) -> str:
    parts = []
    for name, sizes in scored.items():
        of = sizes[text]
        parts.append(
            f"{name} {of['documents']:,} of {sizes['all']['documents']:,} documents, "
            f"{of['windows']:,} windows, {of['tokens']:,} tokens"
        )
    return "; ".join(parts)


def _memory_parts(memory: RankMemory) -> dict[str, int]:
    """The parts of the ledger that are not empty, in its order."""
    return {name: size for name, size in asdict(memory).items() if size}


def data_line(domains: Mapping[str, tuple[int, int]], tokenizer: str) -> str:
    """Training and validation tokens of each domain in one line."""
    parts = [
        f"{name} {_count(train)}+{_count(validation)}"
        for name, (train, validation) in domains.items()
    ]
    return f"{', '.join(parts)} tokens (train+validation), {tokenizer}"


def overlap_line(overlap: Mapping[str, float | None]) -> str:
    """How much of each domain's validation text is in training text; None: not known."""
    parts = [
        f"{name} {'-' if share is None else f'{share:.1%}'}" for name, share in overlap.items()
    ]
    return _wrap(
        f"  {'overlap':<11} ", f"13-grams of validation also in training: {', '.join(parts)}"
    )


def _wrap(label: str, value: str) -> str:
    """`label` and `value` in lines of at most WIDTH columns, the value's aligned."""
    return textwrap.fill(
        value,
        WIDTH,
        initial_indent=label,
        subsequent_indent=" " * len(label),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _count(number: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)


def _bytes(number: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number} B"
