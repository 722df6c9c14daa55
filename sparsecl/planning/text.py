"""Estimates as text for people."""

from collections.abc import Sequence

from sparsecl.engine.observe.display import run_parts
from sparsecl.planning.estimate import Estimate
from sparsecl.planning.fit import Fit
from sparsecl.planning.scaling import Row
from sparsecl.planning.subjects import Subjects
from sparsecl.planning.traffic import Flow

GIB = 2**30

TIMES = {
    "products": "matrix products",
    "attention": "attention",
    "elementwise": "norms, sums, GELU",
    "logits": "softmax of logits",
    "storage": "masks, expansions",
    "starting": "starting kernels",
    "optimizer": "optimizer",
    "gaps": "gaps",
    "exposed": "communication",
}


def run_text(found: Estimate, price: float | None) -> str:
    """All figures of one run."""
    parts = [_head(found), _memory(found), _traffic(found), _time(found), _cost(found, price)]
    return "\n\n".join([*parts, *_warnings(found.warnings)])


def study_text(subjects: Subjects, found: Sequence[Estimate], price: float | None) -> str:
    """One line for each arm, and the sum."""
    width = max(6, *(len(e.subject.name) for e in found))
    first, arms = found[0], sum(not e.subject.is_tuning for e in found)
    lines = [
        f"{subjects.title}: {arms} arms, {num_runs(found)} runs, each on {first.gpus} x "
        f"{first.machine.name}",
        "",
        f"{'arm':<{width}}  {'runs':>4} {'live':>14} {'density':>7} {'GiB/rank':>9} {'fits':>5} "
        f"{'micro':>7} {'step ms':>9} {'tokens/s':>11} {'MFU':>6} {'h/run':>7} {'GPU-hours':>10}"
        + (f" {'cost':>11}" if price is not None else ""),
    ]
    for e in found:
        counts, hours = e.subject.counts, arm_hours(e)
        micro = f"{e.schedule.micro}/{e.largest_micro}"
        lines.append(
            f"{e.subject.name:<{width}}  {e.subject.num_runs:>4} {counts.live:>14,} "
            f"{counts.density_masked:>7.3f} {e.fit.needed / GIB:>9.2f} "
            f"{'yes' if e.fit.fits else 'NO':>5} {micro:>7} {e.time.step * 1e3:>9.2f} "
            f"{e.tokens_per_second:>11,.0f} {e.utilisation(e.machine.peak):>6.1%} "
            f"{e.cost.seconds / 3600:>7.2f} {hours:>10,.1f}"
            + (f" {hours * price:>11,.2f}" if price is not None else "")
        )
    total = study_hours(found)
    money = "" if price is None else f", ${total * price:,.2f} at ${price:g} per GPU-hour"
    lines += [
        "",
        f"In all: {total:,.1f} GPU-hours{money}; {total / first.gpus:,.1f} h on {first.gpus} GPUs, "
        "one run after the other",
        "(micro: planned / largest that fits; MFU: of the datasheet's peak; GPU-hours with "
        "evaluations and checkpoints)",
    ]
    warnings = dict.fromkeys(f"{e.subject.name}: {w}" for e in found for w in e.warnings)
    return "\n".join([*lines, *_warnings(tuple(warnings))])


def scaling_text(title: str, rows: Sequence[Row | str]) -> str:
    """A table over numbers of GPUs."""
    lines = [
        title,
        f"{'GPUs':>5} {'batch':>7} {'A x micro':>9} {'step ms':>9} {'tokens/s':>12} "
        f"{'efficiency':>10} {'waiting':>8} {'save GB':>8} {'save s':>7} {'MTTF h':>8} "
        f"{'every':>15} {'goodput':>8} {'run h':>8}",
    ]
    for row in rows:
        lines.append(row if isinstance(row, str) else _scaling_row(row))
    return "\n".join(lines)


def arm_hours(found: Estimate) -> float:
    """GPU-hours of all runs of an arm."""
    return found.subject.num_runs * found.cost.gpu_hours


def study_hours(found: Sequence[Estimate]) -> float:
    """GPU-hours of all runs."""
    return sum(arm_hours(e) for e in found)


def size_text(size: float) -> str:
    """Bytes in the unit of their size."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size:.0f} B"


def num_runs(found: Sequence[Estimate]) -> int:
    """Over all arms."""
    return sum(e.subject.num_runs for e in found)


def _scaling_row(row: Row) -> str:
    every = f"{row.interval_seconds / 60:.1f} min = {row.interval_steps}"
    return (
        f"{row.gpus:>5} {row.sequences:>7} {f'{row.accumulation} x {row.micro}':>9} "
        f"{row.step_seconds * 1e3:>9.2f} {row.tokens_per_second:>12,.0f} {row.efficiency:>10.1%} "
        f"{row.exposed_share:>8.1%} {row.checkpoint_bytes / 1e9:>8.2f} {row.save_seconds:>7.1f} "
        f"{row.mttf_hours:>8.1f} {every:>15} {row.goodput:>8.1%} {row.run_hours:>8.2f}"
        + ("" if row.fits else "  DOES NOT FIT")
    )


def _head(found: Estimate) -> str:
    subject, schedule, counts = found.subject, found.schedule, found.subject.counts
    config, shape = subject.config, found.schedule.shape
    flops, token = found.flops, found.flops.per_token
    kind = config.topology.kind
    storage = "" if kind == "dense" else f", {config.topology.storage} storage"
    form = "" if shape.form == "gpt" else f"{shape.form}, "
    return "\n".join(
        [
            f"{subject.name} on {found.gpus} x {found.machine.name}",
            f"  model       {form}{shape.layers} layers x {shape.width}, {shape.heads} heads, "
            f"context {shape.context}; topology {kind}{storage}; {config.precision}",
            f"  parameters  {counts.live:,} live of {counts.total:,} (density of the matrices "
            f"{counts.density_masked:.3f})",
            f"  FLOPs/token {token.useful:.3e} by live weights, {token.executed:.3e} executed, "
            f"{token.dense:.3e} dense",
            f"  FLOPs       {flops.total:.3e} of the run by live weights, "
            f"{flops.executed:.3e} executed",
            *([f"              {parts}"] if (parts := run_parts(flops)) else []),
            f"  layout      tp {config.parallel.tensor} x dp {schedule.dp_size}, "
            f"ZeRO {found.stage}; batch {schedule.accumulation} x {schedule.micro} sequences per "
            f"rank = {schedule.tokens_per_step:,} tokens per step",
        ]
    )


def memory_rows(fit: Fit) -> dict[str, int]:
    """Bytes of a rank at the largest moment of a step, by use; their sum is `needed`."""
    memory = fit.memory
    backward = {
        "activations": memory.activations,
        "logits": fit.logits,
        "other transient": memory.transient - fit.logits,
        "buckets": fit.buffers.buckets,
        "gathered": fit.buffers.gathered,
    }
    return {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "master": 0 if fit.on_host else memory.master,
        "moments": 0 if fit.on_host else memory.moments,
        "anchors": memory.anchors,
        "beside masters": 0 if fit.on_host else memory.beside,
        "methods": memory.methods,
        "indices": memory.indices,
        "kept matrices": memory.kept,
        **({"fp32 gradients": fit.buffers.update} if fit.in_update else backward),
        "fragments": fit.fragments,
        "libraries": fit.context,
    }


def _memory(found: Estimate) -> str:
    fit = found.fit
    rows = memory_rows(fit)
    lines = [f"    {name:<16}{size_text(size):>14}" for name, size in rows.items() if size]
    if fit.on_host:
        lines.append(f"    (master and moments, {size_text(fit.on_host)}, are on the host)")
    if fit.remembered:
        lines.append(f"    (methods keep {size_text(fit.remembered)} on the host)")
    verdict = "fits" if fit.fits else "DOES NOT FIT"
    moment = "while the optimizer steps" if fit.in_update else "in the backward pass"
    return "\n".join(
        [
            f"  Memory per rank, at the largest moment of a step: {moment}",
            *lines,
            f"    {'in all':<16}{size_text(fit.needed):>14} of {size_text(fit.available)}: "
            f"{verdict}",
            f"    largest micro-batch that fits: {found.largest_micro} sequences",
        ]
    )


def _traffic(found: Estimate) -> str:
    schedule = found.schedule
    sizes = {"dp": schedule.dp_size, "tp": found.subject.config.parallel.tensor}
    flows = [flow for flow in found.traffic if sizes[flow.axis] > 1]
    if not flows:
        return "  Traffic per step and rank: none"
    lines = [_flow(flow, sizes[flow.axis]) for flow in flows]
    return "\n".join(["  Traffic per step and rank (handed over; sent by a ring)", *lines])


def _flow(flow: Flow, ranks: int) -> str:
    return (
        f"    {flow.what:<17}{flow.axis} {ranks:<5}{flow.collective:<15}{flow.handed / 1e6:>10.2f} "
        f"MB {flow.wire(ranks) / 1e6:>10.2f} MB  {flow.calls} calls"
    )


def _time(found: Estimate) -> str:
    time, machine = found.time, found.machine
    parts = {text: getattr(time, name) for name, text in TIMES.items()}
    lines = [
        f"    {text:<19}{seconds * 1e3:>10.3f} ms {seconds / time.step:>7.1%}"
        for text, seconds in parts.items()
        if seconds
    ]
    hidden = time.communication - time.exposed
    if hidden > 0:
        lines.append(f"    (communication hidden behind the backward pass: {hidden * 1e3:.3f} ms)")
    return "\n".join(
        [
            f"  Step by the roofline ({machine.gemm_rate / 1e12:.4g} TFLOP/s in products, "
            f"{machine.memory_rate / 1e12:.3g} TB/s; runs reach {machine.reached:.0%} of it)",
            *lines,
            f"    {'step':<19}{time.step * 1e3:>10.3f} ms = {found.tokens_per_second:,.0f} "
            f"tokens/s, {found.tokens_per_second / found.gpus:,.0f} per GPU",
            f"    MFU {found.utilisation(machine.peak):.1%} of the datasheet's "
            f"{machine.peak / 1e12:.4g} TFLOP/s, {found.utilisation(machine.gemm_rate):.1%} of the "
            "measured",
        ]
    )


def _cost(found: Estimate, price: float | None) -> str:
    cost = found.cost
    money = "" if price is None else f", ${cost.gpu_hours * price:,.2f}"
    return "\n".join(
        [
            f"  One run: {cost.steps:,} steps, {cost.tokens:,} tokens, {cost.evaluations} "
            f"evaluations, {cost.saves} checkpoints of {size_text(found.checkpoint_bytes)}",
            f"    {cost.train_seconds / 3600:.3f} h training + "
            f"{cost.evaluation_seconds / 3600:.3f} h evaluation + {cost.save_seconds / 3600:.3f} h "
            f"saving = {cost.gpu_hours:,.2f} GPU-hours{money}",
            f"    passes: {found.reading}",
        ]
    )


def _warnings(warnings: Sequence[str]) -> list[str]:
    return [f"warning: {text}" for text in warnings]
