"""A study as one table for the terminal: arms, runs, figures, tests of the primary metric."""

import textwrap

from sparsecl.experiments.findings.collect import Study, nf_notes, pairing_problems
from sparsecl.experiments.findings.compare import Comparison, Contrast, Figure, compare
from sparsecl.experiments.findings.frontier import families, family_contrasts, frontier_text
from sparsecl.experiments.study.measures import MEASURES
from sparsecl.experiments.study.subject import Subject
from sparsecl.metrics.bootstrap import MIN_SEEDS
from sparsecl.metrics.columns import align, column_widths
from sparsecl.metrics.table import WIDTH, clip, number

MAX_ARM = 24
COLUMNS: dict[Subject, dict[str, str]] = {
    "text": {"NF": "NF", "final_loss": "final loss", "learned_loss": "learned"},
    "stream": {
        "last_third": "last third",
        "lost": "lost",
        "dead": "dead",
        "erank": "eff. rank",
        "weight_size": "mean |w|",
    },
}
"""Measure -> heading of its column, beside the primary one."""


def study_table(study: Study, comparison: Comparison | None = None) -> str:
    """One line an arm, at most WIDTH columns; then what a reader must know before believing it.

    Args:
        comparison: of this study, where the caller has it already.
    """
    comparison = compare(study) if comparison is None else comparison
    parts = [
        [_heading(study)],
        _table(study, comparison),
        _legend(study, comparison),
        _notes(study, comparison),
        _over_rates(study),
    ]
    lines = [line for part in parts for line in ([*part, ""] if part else [])]
    return "\n".join(lines[:-1])


def _over_rates(study: Study) -> list[str]:
    """Families of arms that differ in the learning rate alone, in one line each comparison."""
    lines, found = [], families(study) if study.plan.subject == "text" else []
    for text in frontier_text(family_contrasts(study, found)):
        lines += textwrap.wrap(text, WIDTH, subsequent_indent="  ")
    of_trials = ", trials of the tuning" if any(family.trials for family in found) else ""
    return [f"over learning rates{of_trials} (not planned):", *lines] if lines else []


def p_text(contrast: Contrast) -> str:
    """ "0.0312", or "-" where the seeds cannot support a p."""
    return number(contrast.adjusted, 4)


def _heading(study: Study) -> str:
    counts = study.counts()
    done = f"{counts['done']} of {len(study.results)} runs done"
    others = [f"{counts[name]} {name}" for name in ("failed", "begun", "missing") if counts[name]]
    return f"study {study.plan.name}: " + ", ".join([done, *others])


def _table(study: Study, comparison: Comparison) -> list[str]:
    """Header and rows; columns are as wide as their widest cell."""
    primary = study.plan.analysis.metrics[0]
    shown = [level] if (level := _level(study, comparison)) else []
    others = _others(study)
    names = ["arm", "runs", primary, *shown, *others.values(), "p (Holm)"]
    rows = [names]
    for arm in study.plan.arms:
        figure = comparison.figures[arm.name, primary]
        done = f"{len(study.seeds_done(arm.name))}/{figure.planned}"
        means = [_mean(comparison.figures[arm.name, key]) for key in others]
        test = _against_reference(study, comparison, arm.name)
        p = "-" if test is None else p_text(test)
        interval = [_interval(figure)] if shown else []
        rows.append([clip(arm.name, MAX_ARM), done, _mean(figure), *interval, *means, p])
    room = WIDTH - sum(column_widths(rows)) - 2 * len(names)
    return align(rows, gap="  " if room >= 0 else " ")


def _mean(figure: Figure) -> str:
    return number(figure.estimate.mean if figure.estimate else None)


def _interval(figure: Figure) -> str:
    interval = figure.estimate.t if figure.estimate else None
    return "-" if interval is None else f"[{number(interval.low)}, {number(interval.high)}]"


def _level(study: Study, comparison: Comparison) -> str:
    """Heading of the intervals; empty if no arm has seeds for one."""
    primary = study.plan.analysis.metrics[0]
    estimates = (comparison.figures[arm.name, primary].estimate for arm in study.plan.arms)
    known = any(one is not None and one.t is not None for one in estimates)
    return f"{100 * (1 - study.plan.analysis.alpha):g} % interval" if known else ""


def _against_reference(study: Study, comparison: Comparison, arm: str) -> Contrast | None:
    """The planned test of an arm with the reference on the primary metric, either way round."""
    both = {arm, study.plan.reference_of(study.plan.arm(arm))}
    found = (c for c in comparison.family("primary") if {c.arm, c.against} == both)
    return next(found, None)


def _others(study: Study) -> dict[str, str]:
    """The further columns: measure -> heading."""
    primary = study.plan.analysis.metrics[0]
    return {key: text for key, text in COLUMNS[study.plan.subject].items() if key != primary}


def _legend(study: Study, comparison: Comparison) -> list[str]:
    primary = study.plan.analysis.metrics[0]
    reference = clip(study.plan.analysis.reference, MAX_ARM)
    columns = {primary: primary, **_others(study)}
    meanings = {name: _meaning(key) for key, name in columns.items()}
    if _level(study, comparison):
        meanings["interval"] = "of the mean: Student's t over seeds"
    meanings["p (Holm)"] = f"planned test of {primary} with {reference}, corrected; -: none"
    left = max(map(len, meanings)) + 4
    lines = []
    for name, text in meanings.items():
        first = f"  {name}".ljust(left)
        lines += textwrap.wrap(first + text, WIDTH, subsequent_indent=" " * left)
    return lines


def _meaning(key: str) -> str:
    measure = MEASURES[key]
    unit = "" if measure.unit in ("share", "-") else f", {measure.unit}"
    return f"{measure.text}{unit}; {measure.better} is better"


def _notes(study: Study, comparison: Comparison) -> list[str]:
    """What stands between the table and a conclusion."""
    notes = [
        f"{name} failed and is in no figure: {reason}" for name, reason in study.failures.items()
    ]
    primary = comparison.family("primary")
    notes += dict.fromkeys(f"no p: {c.test.why}" for c in primary if c.test.why and c.pairs.seeds)
    seeds = max((len(figure.seeds) for figure in comparison.figures.values()), default=0)
    if 0 < seeds < MIN_SEEDS:
        notes.append(f"no interval: {seeds} of the {MIN_SEEDS} seeds that one needs")
    unpaired = dict.fromkeys(f"{c.arm} and {c.against}" for c in primary if not c.test.paired)
    notes += [f"compared without pairing by seed: {names}" for names in unpaired]
    notes += [*nf_notes(study), *pairing_problems(study)]
    wrapped = [
        textwrap.wrap(f"note: {note}", WIDTH, subsequent_indent="  ", break_on_hyphens=False)
        for note in notes
    ]
    return [line for lines in wrapped for line in lines]
