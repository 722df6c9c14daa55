"""What the compared methods need and cost, so that unlike is not taken for like."""

from collections.abc import Iterable, Mapping
from typing import Any

from sparsecl import config as configs
from sparsecl.engine.run_config import RunConfig
from sparsecl.errors import UserError
from sparsecl.experiments.findings.collect import Study
from sparsecl.experiments.report.table import Cell, Column, Table
from sparsecl.experiments.report.tables import mean_of
from sparsecl.experiments.study.study_plan import arm_config
from sparsecl.methods.facts import FLAGS
from sparsecl.metrics.forgetting import finite
from sparsecl.metrics.summary import matrix_of

BASES = ("dense", "fixed sparse", "update")


def methods_of(study: Study, arm: str) -> dict[str, Mapping[str, str]] | None:
    """Flags of the methods that an arm uses, by name, as its run config has them; None if that is
    not there or cannot be read."""
    file = arm_config(study.folder, arm)
    try:
        config = configs.load(RunConfig, file)
    except UserError:
        return None
    base = "dense" if config.topology.kind == "dense" else "fixed sparse"
    if config.topology.role == "update" and base != "dense":
        base = "update"
    used = {name: block.flags for name, block in config.methods.used().items()}
    # What rewires replaces the fixed topology; the others come on top of what they are used with.
    return used if config.methods.rewires else {base: {}, **used}


def flags_table(study: Study) -> Table | None:
    """One line an arm; None if no arm uses a method beside its topology."""
    used = {arm.name: methods_of(study, arm.name) for arm in study.plan.arms}
    if not any(set(names or ()) - set(BASES) for names in used.values()):
        return None
    columns = (
        Column(key="arm", heading="arm"),
        Column(key="methods", heading="methods"),
        *(Column(key=flag, heading=flag) for flag in FLAGS),
    )
    rows: list[tuple[Cell, ...]] = []
    for arm, names in used.items():
        if names is None:
            continue
        texts = [_flag(names.values(), flag) for flag in FLAGS]
        rows.append((arm, " + ".join(names), *texts))
    caption = "; ".join(f"{flag}: {text}" for flag, text in FLAGS.items()) + "."
    return Table(name="methods", caption=caption, columns=columns, rows=tuple(rows))


def told_table(study: Study) -> Table:
    """What the arms reach whose methods are told the domain that is tested; no rows if none is."""
    names = ("F_last", "final loss")
    columns = (
        Column(key="arm", heading="arm"),
        Column(key="seeds", heading="seeds"),
        *(Column(key=name, heading=name) for name in names),
        *(Column(key=f"{name} told", heading=f"{name}, told") for name in names),
    )
    rows: list[tuple[Cell, ...]] = []
    for arm in study.plan.arms:
        done = [run.summary for run in study.done(arm.name) if run.summary is not None]
        told = [summary for summary in done if "matrix_with_identity" in summary]
        if told:
            figures = [_figures(told, where) for where in ("", "_with_identity")]
            rows.append((arm.name, len(told), *figures[0], *figures[1]))
    caption = (
        "Methods of flag I. All other figures of this report, and the first two here, are scored "
        "without telling a method which domain is tested; the last two (nats per token) are the "
        "matrix_with_identity of results.json, and no match for arms that are not told."
    )
    return Table(name="told", caption=caption, columns=columns, rows=tuple(rows))


def measured_table(study: Study) -> Table:
    """What methods measured of themselves at the end, a line a method and figure; no rows if none
    does."""
    columns = tuple(
        Column(key=key, heading=key) for key in ("arm", "method", "figure", "at the end")
    )
    rows: list[tuple[Cell, ...]] = []
    for arm in study.plan.arms:
        done = [run.summary for run in study.done(arm.name) if run.summary is not None]
        found: dict[tuple[str, str], list[float | None]] = {}
        for summary in done:
            for name, method in summary.get("methods", {}).items():
                for figure, value in (method.get("phase_ends") or [{}])[-1].items():
                    found.setdefault((name, figure), []).append(value)
        rows += [(arm.name, *key, mean_of(values)) for key, values in found.items()]
    caption = (
        "What methods measure of themselves after the last phase, the mean over seeds "
        "(sparsecl/methods/README.md says what the figures are)."
    )
    return Table(name="measured", caption=caption, columns=columns, rows=tuple(rows))


def _figures(summaries: list[dict[str, Any]], suffix: str) -> list[float | None]:
    """Means over runs of F_last and of the mean loss of all domains at the end."""
    last = [matrix_of(summary, f"matrix{suffix}").loss[-1] for summary in summaries]
    return [
        mean_of([summary[f"forgetting{suffix}"]["F_last"] for summary in summaries]),
        mean_of([finite(float(row.mean())) for row in last]),
    ]


def _flag(methods: Iterable[Mapping[str, str]], flag: str) -> str:
    texts = (flags.get(flag, "") for flags in methods)
    return ", ".join(dict.fromkeys(text for text in texts if text))
