"""Results as text, one function for each mode."""

from collections.abc import Mapping
from typing import Any

from sparsecl.benchmarks import gpu_table
from sparsecl.benchmarks.arms import BASELINE
from sparsecl.benchmarks.checkpoints import WAYS
from sparsecl.benchmarks.layers import BLOCK, SHAPES
from sparsecl.benchmarks.memory import PASS, STATE
from sparsecl.benchmarks.nanogpt import TOLERANCE
from sparsecl.benchmarks.steps import PARTS

MB = 1e6


def as_table(result: Mapping[str, Any]) -> str:
    """The table of a result's mode."""
    return TABLES[result["mode"]](result)


def steps_table(result: Mapping[str, Any]) -> str:
    """One line for each arm: medians in milliseconds, speed, ratio with its quartiles."""
    return "\n\n".join(_steps_group(group) for group in result["groups"])


def _steps_group(group: Mapping[str, Any]) -> str:
    lines = [
        f"density {group['density']:g}, {group['tokens_per_step']} tokens per step",
        f"{'arm':<16}{'step ms':>11}"
        + "".join(f"{part:>11}" for part in PARTS)
        + f"{'tokens/s':>12}   ratio to {BASELINE} (quartiles)",
    ]
    for name, arm in group["arms"].items():
        times = "".join(f"{arm['median_seconds'][p] * 1e3:>11.2f}" for p in ("step", *PARTS))
        speed = f"{arm['tokens_per_second']:>12,.0f}"
        lines.append(f"{name:<16}{times}{speed}   {_ratio(arm['ratio'])}")
    choices = {name: arm["choices"] for name, arm in group["arms"].items()}
    return "\n".join([*lines, *_choices(choices)])


def nanogpt_table(result: Mapping[str, Any]) -> str:
    """One line for each arm, our dense step over its step; then weights and losses of both."""
    lines = [
        f"{result['tokens_per_step']} tokens per step, {result['environment']['threads']} threads",
        f"{'arm':<16}{'step ms':>11}"
        + "".join(f"{part:>11}" for part in PARTS)
        + f"{'tokens/s':>12}   {BASELINE} / it (quartiles)",
    ]
    for name, arm in result["arms"].items():
        times = "".join(f"{arm['median_seconds'][p] * 1e3:>11.2f}" for p in ("step", *PARTS))
        speed = f"{arm['tokens_per_second']:>12,.0f}"
        lines.append(f"{name:<16}{times}{speed}   {_ratio(arm['dense_over_it'])}")
    weights, losses = result["weights"], result["losses"]
    lines.append(f"weights: {weights['ours']:,} of ours, {weights['theirs']:,} of its")
    for kind, (ours, theirs) in weights["differ"].items():
        lines.append(f"  {kind}: {ours:,} of ours, {theirs:,} of its")
    if losses is None:
        lines.append("losses: not compared, its parameters are others than ours")
    else:
        apart = abs(losses["ours"] - losses["theirs"])
        word = "the same" if apart <= TOLERANCE else "NOT THE SAME"
        lines.append(
            f"loss on the same weights: {losses['ours']:.6f} of ours, {losses['theirs']:.6f} of "
            f"its, apart {apart:.1e}: {word} (limit {TOLERANCE:g})"
        )
    last = ", ".join(f"{name} {arm['last_loss']:.6f}" for name, arm in result["arms"].items())
    return "\n".join([*lines, f"loss of the last step: {last}"])


def layers_table(result: Mapping[str, Any]) -> str:
    """Ratio to dense of every shape, of their sum over a block, and of the chained block."""
    return "\n\n".join(_layers_group(group) for group in result["groups"])


def _layers_group(group: Mapping[str, Any]) -> str:
    lines = [
        f"density {group['density']:g}, {group['tokens_per_step']} tokens, linears alone: "
        f"ms, and ratio to {BASELINE}",
        f"{'arm':<16}"
        + "".join(f"{unit:>18}" for unit in SHAPES)
        + f"{'sum of block':>18}   chained block (quartiles)",
    ]
    for name, total in group["sums"].items():
        cells = [
            (found["median_seconds"]["step"], found["ratio"]["median"])
            for found in (group["units"][unit][name] for unit in SHAPES)
        ]
        cells.append((total["seconds"], total["ratio"]["median"]))
        text = "".join(f"{1e3 * seconds:>10.2f}{ratio:>8.3f}" for seconds, ratio in cells)
        block = group["units"][BLOCK][name]
        chained = f"{1e3 * block['median_seconds']['step']:.2f} ms {_ratio(block['ratio'])}"
        lines.append(f"{name:<16}{text}   {chained}")
    return "\n".join([*lines, *_choices(group["choices"])])


def growth_table(result: Mapping[str, Any]) -> str:
    """One line for each axis and arm: exponents of step and update with R^2, and the points."""
    lines = [
        f"{'time ~ x^k':<14}{'arm':<16}{'k step':>8}{'R^2':>8}{'k update':>10}{'R^2':>8}   x: ms"
    ]
    for line in result["lines"]:
        step, update = line["slopes"]["step"], line["slopes"]["update"]
        pairs = zip(line["sizes"], line["median_seconds"], strict=True)
        points = ", ".join(f"{size:,}: {1e3 * times['step']:.1f}" for size, times in pairs)
        lines.append(
            f"{line['axis']:<14}{line['arm']:<16}"
            f"{step['exponent']:>8.3f}{step['r_squared']:>8.4f}"
            f"{update['exponent']:>10.3f}{update['r_squared']:>8.4f}   {points}"
        )
    first = result["memory"][0]
    lines += [
        f"memory of a {BASELINE} step, {first['tokens']} tokens a pass, MB (10^6 bytes)",
        f"{'logits at once':<16}{'state':>10}{'pass':>10}{'formula':>10}{'together':>10}",
    ]
    for row in result["memory"]:
        state, peak = row["measured"]["state"] / MB, row["measured"]["pass"] / MB
        lines.append(
            f"{row['loss_chunk'] or 'all':<16}{state:>10.2f}{peak:>10.2f}"
            f"{row['formula']['pass'] / MB:>10.2f}{state + peak:>10.2f}"
        )
    return "\n".join(lines)


def memory_table(result: Mapping[str, Any]) -> str:
    """Two lines for each arm: measured megabytes, and those of the formulas."""
    names = ("state", *STATE, "pass")
    lines = [
        f"MB (10^6 bytes); state = {' + '.join(STATE)}; pass = {' + '.join(PASS)}",
        f"{'density':>7} {'arm':<14}{'':<9}"
        + "".join(f"{name:>10}" for name in names)
        + f"   matrices / {BASELINE}",
    ]
    for row in result["rows"]:
        for kind in ("measured", "formula"):
            head = f"{row['density']:>7g} {row['arm']:<14}" if kind == "measured" else " " * 22
            sizes = "".join(f"{row[kind][name] / MB:>10.2f}" for name in names)
            lines.append(f"{head}{kind:<9}{sizes}   {row['matrices_to_dense'][kind]:.4f}")
        ratio = row["ratio"]
        lines.append(f"{'':<22}ratio    {ratio['state']:>10.4f}{'':>60}{ratio['pass']:>10.4f}")
    return "\n".join(lines)


def wire_table(result: Mapping[str, Any]) -> str:
    """One line for each arm and stage: counted and expected bytes, and the calls that were seen."""
    lines = [
        f"{result['dp']} data-parallel ranks; bytes that each hands over for one reduction",
        f"{'density':>7} {'arm':<14}{'ZeRO':>5}{'parameters':>13}{'expected':>14}{'padding':>9}"
        f"{'counted':>14}{'ratio':>9}   calls",
    ]
    for row in result["rows"]:
        calls = ", ".join(f"{name} {count}" for name, count in row["calls"].items())
        others = ", ".join(f"{name} {count}" for name, count in row["other_calls"].items())
        lines.append(
            f"{row['density']:>7g} {row['arm']:<14}{row['stage']:>5}{row['parameters']:>13,}"
            f"{row['expected']:>14,}{row['padding']:>9,}{row['bytes']:>14,}"
            f"{row['bytes'] / row['expected']:>9.5f}"
            f"   {calls}" + (f" (not counted: {others})" if others else "")
        )
    return "\n".join(lines)


def checkpoints_table(result: Mapping[str, Any]) -> str:
    """One line for each arm: bytes, stalls in milliseconds, and their share of training."""
    hours, bound = result["mttf_seconds"] / 3600, result["stall_bound"]
    lines = [
        "MB (10^6 bytes); graph = live sets, in MB; save = writing in the foreground",
        "stall = what training waits, ms (quartiles); share = stall / T, fore- and background",
        f"T = sqrt(2 x MTTF x save), Young, MTTF {hours:g} h; ! = above {bound:.1%} (CheckFreq)",
        "slower = a step while a writer is at work / the step before it",
        f"{'density':>7} {'arm':<12} {'storage':<7} {'live':>11} {'MB':>8} {'graph':>6}"
        f" {'/ dense':>7} {'step ms':>8} {'save ms':>8}"
        + "".join(f" {'stall ' + way:>22}" for way in WAYS)
        + f" {'T s':>5} {'steps':>6} {'share f.':>8} {'share b.':>8} {'slower':>6}",
    ]
    for row in result["rows"]:
        save = row["save"]["foreground"]["median"]
        stalls = (f"{_milliseconds(row['stall'][way]):>22}" for way in WAYS)
        shares = (f"{share:.3%}{'!' if share > bound else ' '}" for share in row["share"].values())
        cells = (
            f"{row['density']:>7g} {row['arm']:<12} {row['storage']:<7}",
            f"{row['live_parameters']:>11,} {row['bytes'] / MB:>8.2f}",
            f"{row['topology_bytes'] / MB:>6.2f} {row['bytes_to_dense']:>7.4f}",
            f"{row['step']['median'] * 1e3:>8.1f} {save * 1e3:>8.1f}",
            *stalls,
            f"{row['interval_seconds']:>5.0f} {row['interval_steps']:>6.0f}",
            *(f"{share:>8}" for share in shares),
            f"{row['step_while_writing']['median']:>6.2f}",
        )
        lines.append(" ".join(cells))
    return "\n".join(lines)


def _milliseconds(seconds: Mapping[str, float]) -> str:
    median, q1, q3 = (seconds[name] * 1e3 for name in ("median", "q1", "q3"))
    return f"{median:.1f} ({q1:.1f}-{q3:.1f})"


def _ratio(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.4f} ({ratio['q1']:.4f} - {ratio['q3']:.4f})"


def _choices(choices: Mapping[str, list[str]]) -> list[str]:
    """What backend auto has taken, under the table."""
    return [f"  {name}: {line}" for name, lines in choices.items() for line in lines]


TABLES = {
    "steps": steps_table,
    "per_layer": layers_table,
    "growth": growth_table,
    "memory": memory_table,
    "wire": wire_table,
    "gpu_table": gpu_table.table,
    "nanogpt": nanogpt_table,
    "checkpoints": checkpoints_table,
}
