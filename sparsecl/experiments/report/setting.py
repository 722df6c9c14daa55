"""What was run, on what, with which code: everything of a report that is not a result."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from markupsafe import Markup

from sparsecl.experiments.findings.collect import RunResult, Study
from sparsecl.experiments.findings.compare import unprobed
from sparsecl.experiments.report import page
from sparsecl.experiments.report.page import bullets, facts, fold, heading, listing, paragraph
from sparsecl.experiments.report.table import Cell, Column, Table
from sparsecl.experiments.study.study_plan import ENVIRONMENT, StudyPlan, arm_config
from sparsecl.opening import read_plain

SHOWN_DIGITS = 16
"""Of a sha256, enough to see that two are equal; the CSV has all."""


def banner(study: Study) -> Markup:
    """Names every run without a result; empty if all are done."""
    counts = study.counts()
    if counts["done"] == len(study.results):
        return Markup()
    texts = [f"{counts['done']} of {len(study.results)} runs are done"]
    texts += [f"{counts[name]} {name}" for name in ("failed", "begun", "missing") if counts[name]]
    failed = [f"{name}: {reason}" for name, reason in study.failures.items()]
    lead = ", ".join(texts) + ". Averages are over the runs that are done."
    return page.banner(lead, failed)


def plan_facts(study: Study) -> Markup:
    """The plan in a few lines."""
    plan = study.plan
    return facts(
        [
            ("study", plan.name),
            ("scale", plan.scale),
            ("seeds", ", ".join(map(str, plan.seeds))),
            ("reference", plan.analysis.reference),
            *_deepspeed(plan),
            ("CPU threads of a run", str(plan.threads)),
            ("size of the tests", f"{plan.analysis.alpha:g}"),
            ("plan digest", plan.digest),
        ]
    )


def differences(study: Study) -> Markup:
    """What sets each arm apart from the reference."""
    lines = [
        f"{arm.name}: {'; '.join(arm.differences) or 'as the reference'}"
        for arm in unprobed(study.plan.arms)
        if not study.plan.is_reference(arm)
    ]
    if not lines:
        return Markup()
    of_its_size = " of its size" if study.plan.sizes() else ""
    head = paragraph(f"What differs from the reference{of_its_size}, and nothing else does:")
    return heading("Arms") + head + bullets(lines)


def digests_table(study: Study) -> Table:
    """Digests of data and tokenizer of each seed."""
    columns = (
        Column(key="seed", heading="seed"),
        Column(key="data", heading="data"),
        Column(key="tokenizer", heading="tokenizer"),
        Column(key="runs", heading="runs"),
    )
    rows: list[tuple[Cell, ...]] = []
    for seed in study.plan.seeds:
        found = Counter(
            (str(digests.get("data", "")), str(digests.get("tokenizer", "")))
            for r in study.results
            if r.run.seed == seed and r.summary is not None
            for digests in [r.summary["digests"]]
        )
        rows += [
            (seed, data[:SHOWN_DIGITS], tokenizer[:SHOWN_DIGITS], count)
            for (data, tokenizer), count in sorted(found.items())
        ]
    caption = f"sha256 of the prepared data and the tokenizer, first {SHOWN_DIGITS} digits."
    return Table(name="digests", caption=caption, columns=columns, rows=tuple(rows))


def base_config(study: Study) -> Markup:
    """The resolved run config of the reference, folded."""
    file = arm_config(study.folder, study.plan.analysis.reference)
    try:
        text = read_plain(file).decode("utf-8", "replace")
    except OSError:
        return Markup()
    title = f"Run config of {study.plan.analysis.reference}, seed {study.plan.seeds[0]}"
    return fold(title, listing(text))


def origins(study: Study) -> list[tuple[str, str]]:
    """What made the runs, name and value: digest, commits, versions; several where they differ."""
    commits: Counter[str] = Counter()
    versions: dict[str, set[str]] = {}
    for result in study.results:
        if result.status == "done":
            found = _environment(_made_with(study, result))
            commits[str(found.get("commit") or "unknown")] += 1
            for name, value in (found.get("versions") or {}).items():
                versions.setdefault(str(name), set()).add(str(value))
    pairs = [("plan digest", study.plan.digest), *_deepspeed(study.plan)]
    pairs += [
        ("commit", f"{name} ({count} runs)" if len(commits) > 1 else name)
        for name, count in sorted(commits.items())
    ]
    pairs += [(name, ", ".join(sorted(found))) for name, found in sorted(versions.items())]
    return pairs


def _made_with(study: Study, result: RunResult) -> Path:
    """Where it stands what a run was made with; a run on a stream leaves it to its study."""
    of_study = study.plan.subject == "stream"
    return (study.folder if of_study else result.folder) / ENVIRONMENT


def _deepspeed(plan: StudyPlan) -> list[tuple[str, str]]:
    """Nothing in a study of streams."""
    return [("DeepSpeed config", plan.ds_config)] if plan.ds_config else []


def repeat(study: Study) -> Markup:
    """Commands, commits and versions."""
    pairs = origins(study)
    commits = sum(name == "commit" for name, _ in pairs)
    mixed = commits > 1 or any(", " in value for name, value in pairs)
    warning = (
        paragraph("Runs were made with unequal code or packages: compare with care.")
        if mixed
        else Markup()
    )
    return (
        listing(f"{study.plan.command}\npython tools/report.py STUDY_DIR")
        + warning
        + facts(pairs)
        + paragraph(
            "Every figure here is computed from the scalars.jsonl of the runs (and their "
            "interference.json); making the report again from the same runs gives the same bytes."
        )
    )


def _environment(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_plain(file))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
