"""The answer in short: sentences made of the tests, and of nothing that they do not say."""

from collections.abc import Sequence

from sparsecl.experiments.findings.collect import Study, nf_notes, pairing_problems
from sparsecl.experiments.findings.compare import Comparison, Contrast
from sparsecl.experiments.findings.power import contrast_power, could_have_seen
from sparsecl.experiments.findings.trends import Stop, Trends
from sparsecl.experiments.report.results import NOT_SHOWN, verdict
from sparsecl.experiments.study.measures import MEASURES
from sparsecl.metrics.bootstrap import MIN_SEEDS
from sparsecl.metrics.table import number


def headline(study: Study, comparison: Comparison) -> str:
    """One sentence for all planned contrasts on the primary metric."""
    primary, alpha = comparison.family("primary"), study.plan.analysis.alpha
    metric = study.plan.analysis.metrics[0]
    if not study.counts()["done"]:
        return "No run is finished, so there is no answer yet."
    if not primary:
        return "The plan has no contrast, so nothing was tested."
    reached = [contrast for contrast in primary if contrast.significant]
    if all(contrast.test.p is None for contrast in primary):
        return f"No planned contrast on {metric} could be tested: too few finished seeds."
    if not reached:
        return f"No planned contrast on {metric} reached p <= {alpha:g} after Holm's correction."
    which = "; ".join(
        f"{c.arm} {'better' if c.improves else 'worse'} than {c.against}" for c in reached
    )
    return (
        f"{len(reached)} of {len(primary)} planned contrasts on {metric} reached p <= {alpha:g} "
        f"after Holm's correction: {which}."
    )


def sentences(study: Study, comparison: Comparison) -> list[str]:
    """One for each primary contrast, in the order of the plan. A difference that is not shown is
    told together with what could have been."""
    texts = []
    for contrast in comparison.family("primary"):
        text = contrast_sentence(contrast)
        if verdict(contrast) == NOT_SHOWN:
            text += f" {could_have_seen(contrast_power(study, contrast, None))}"
        texts.append(text)
    return texts


def contrast_sentence(contrast: Contrast) -> str:
    """Difference, interval, corrected p or the reason for none, equivalence, verdict."""
    test, unit = contrast.test, MEASURES[contrast.measure].unit
    start = f"{contrast.arm} minus {contrast.against}, {contrast.measure}:"
    if test.mean is None:
        return f"{start} no pair of finished runs ({contrast.planned} planned)."
    text = f"{start} {signed(test.mean)} {unit}"
    if test.t is not None:
        text += f", {100 * test.t.level:g} % interval [{signed(test.t.low)}, {signed(test.t.high)}]"
    elif test.num_seeds > 1 and test.paired:
        low, high = min(contrast.pairs.differences), max(contrast.pairs.differences)
        text += f" (seeds from {signed(low)} to {signed(high)})"
    text += f", {test.num_seeds} of {contrast.planned} seeds"
    text += "" if test.paired else ", unpaired"
    text += f", {contrast.domains} domains behind a value" if contrast.domains else ""
    if contrast.adjusted is not None:
        text += f"; p = {number(contrast.adjusted, 4)} ({contrast.correction} over "
        text += f"{contrast.family_size})"
    elif test.why is not None:
        text += f"; no p ({test.why})"
    text += "" if test.t is not None else f"; no interval ({MIN_SEEDS} seeds are needed)"
    return f"{text}{_equivalence(contrast)}: {verdict(contrast)}."


def _equivalence(contrast: Contrast) -> str:
    """The two one-sided tests, where they add something: a difference that is shown and larger
    than the margin needs no second word."""
    found = contrast.test.equivalence
    if found is None or (contrast.significant and not found.inside):
        return ""
    low, high = signed(found.interval.low), signed(found.interval.high)
    place = "within" if found.inside else "not within"
    level = f"{100 * found.interval.level:g} %"
    return f"; {level} interval [{low}, {high}] {place} the margin of {found.margin:g} (TOST)"


def signed(value: float) -> str:
    """Four digits and always a sign, but for zero."""
    text = number(value, 4)
    return text if text.startswith("-") or float(text) == 0 else f"+{text}"


def runs(count: int) -> str:
    """ "1 run", "2 runs"."""
    return "1 run" if count == 1 else f"{count} runs"


def cautions(study: Study, comparison: Comparison, trends: Trends) -> list[str]:
    """What a reader must hold against the answer."""
    counts, texts = study.counts(), []
    open_runs = counts["begun"] + counts["missing"]
    if open_runs:
        texts.append(f"Provisional: {runs(open_runs)} of {len(study.results)} still to come.")
    if counts["failed"]:
        texts.append(
            f"{runs(counts['failed'])} failed; failed runs are in no figure. Where failing goes "
            "with an arm, the arm looks better than it is."
        )
    primary = comparison.family("primary")
    texts += [
        f"{c.arm} minus {c.against}: if each failed run counts as the largest difference seen, "
        f"against its arm, then p = {number(c.failed_as_worst, 4)} before correction (instead of "
        f"{number(c.test.p, 4)})."
        for c in primary
        if c.failed_as_worst is not None
    ]
    # Where there is no p at all, the sentence of the contrast has said so.
    reasons = [
        c.test.why for c in primary if c.test.why and c.test.p is not None and not c.significant
    ]
    texts += [f"What the tests cannot show: {why}." for why in dict.fromkeys(reasons)]
    texts += [f"{problem}." for problem in pairing_problems(study)]
    if "NF" in study.plan.analysis.metrics:
        texts += [f"{note}." for note in nf_notes(study)]
    texts += _turned(comparison, trends)
    texts += _controls(comparison)
    missed: dict[str, list[Stop]] = {}
    for stop in trends.stops:
        if stop.missed:
            missed.setdefault(f"{stop.arm} did not get to the loss of {stop.of}", []).append(stop)
    for text, found in missed.items():
        places = [f"{s.phase} {s.domain} ({s.missed} of {len(s.seeds)} seeds)" for s in found]
        texts.append(f"{text} in phases {', '.join(places)}: there it has learned less.")
    return texts


def _turned(comparison: Comparison, trends: Trends) -> Sequence[str]:
    """Primary contrasts whose sign hangs on the order of the domains: the intervals of two orders
    lie on either side of 0. Their mean may be near 0, and even equivalent to it."""
    texts = []
    for contrast in comparison.family("primary"):
        names = contrast.arm, contrast.against, contrast.measure
        shown = [
            (one.order, one.mean, one.interval)
            for one in trends.orders
            if one.order and (one.arm, one.against, one.measure) == names
            if one.mean is not None and one.interval is not None
            if one.interval.low > 0 or one.interval.high < 0
        ]
        if len({mean > 0 for _, mean, _ in shown}) < 2:
            continue
        parts = [
            f"{signed(mean)} [{signed(interval.low)}, {signed(interval.high)}] in order {order}"
            for order, mean, interval in shown
        ]
        texts.append(
            f"{contrast.arm} minus {contrast.against}, {contrast.measure}, has opposite signs in "
            f"the orders of the domains: {', '.join(parts)}. The mean over the orders says "
            "nothing of any one of them."
        )
    return texts


def _controls(comparison: Comparison) -> Sequence[str]:
    """The exploratory contrasts on the primary metric, in one line each."""
    primary = [contrast.measure for contrast in comparison.family("primary")][:1]
    return [
        f"Control (exploratory): {contrast_sentence(contrast)}"
        for contrast in comparison.family("exploratory")
        if contrast.measure in primary and contrast.test.mean is not None
    ]
