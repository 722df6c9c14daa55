"""The sections of the page, each from tables, figures and a few words; in the order of reading."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from sparsecl.experiments.findings.collect import Study, pairing_problems
from sparsecl.experiments.findings.compare import Comparison
from sparsecl.experiments.findings.frontier import frontier_text
from sparsecl.experiments.findings.trends import Trends
from sparsecl.experiments.report import answer, frontier, results, setting, tables, tuning
from sparsecl.experiments.report.methods import flags_table, measured_table, told_table
from sparsecl.experiments.report.onset import onset_table, probes_table
from sparsecl.experiments.report.page import (
    Section,
    bullets,
    fold,
    heading,
    join,
    paragraph,
    strong,
)
from sparsecl.experiments.report.table import Table, as_html
from sparsecl.experiments.study.measures import MEASURES
from sparsecl.metrics.bootstrap import MIN_BOOTSTRAP, MIN_SEEDS
from sparsecl.metrics.forgetting import MIN_IMPROVEMENT
from sparsecl.metrics.reading import planned_often


@dataclass(frozen=True)
class Material:
    """What sections are made of."""

    study: Study
    comparison: Comparison
    trends: Trends
    plots: Mapping[str, Markup]
    """By name of the figure."""
    tables: dict[str, Table] = field(default_factory=dict)
    """Filled by `table`: every table of the page is written as CSV and LaTeX too."""

    def table(self, table: Table | None, *, folded: bool = False) -> Markup:
        """A table as HTML; nothing if it has no rows."""
        if table is None or not table.rows:
            return Markup()
        self.tables[table.name] = table
        return as_html(table, folded=folded)

    def plot(self, name: str) -> Markup:
        """A figure as HTML; nothing if there was nothing to draw."""
        return self.plots.get(name, Markup())


Sections = Sequence[tuple[str, str, Callable[[Material], Markup]]]
"""Name, title, and what builds it."""


def built(parts: Sections, material: Material) -> list[Section]:
    """All sections that have something to say."""
    made = ((name, title, build(material)) for name, title, build in parts)
    return [Section(name, title, body) for name, title, body in made if body]


def sections(material: Material) -> list[Section]:
    """Those of a study of text; a question without an answer keeps its place and says why."""
    return built(SECTIONS, material)


def question(m: Material) -> Markup:
    study, analysis = m.study, m.study.plan.analysis
    primary = MEASURES[analysis.metrics[0]]
    planned = [f"{c.arm} minus {c.against}" for c in study.plan.contrasts()]
    alpha = f"{analysis.alpha:g}"
    margin = analysis.margins.get(analysis.metrics[0])
    against = (
        "A planned contrast speaks for a difference if its p, corrected over all planned contrasts "
        f"with Holm's method, is at most {alpha}. Without that nothing is concluded"
    )
    if margin is not None:
        against += (
            f", unless the interval of the difference lies within {margin:g} {primary.unit} of 0: "
            "then the arms are equivalent for all that was asked"
        )
    return join(
        (
            paragraph(study.plan.question or "The study file states no question."),
            paragraph(
                f"Fixed before the runs: the primary measure is {analysis.metrics[0]} "
                f"({primary.text}; {primary.unit}, {primary.better} is better), compared "
                "seed by seed:"
            ),
            bullets(planned),
            paragraph(f"{against}."),
        )
    )


def answer_in_short(m: Material) -> Markup:
    over_rates = frontier_text(m.trends.family_contrasts)
    return join(
        (
            strong(answer.headline(m.study, m.comparison)),
            bullets(answer.sentences(m.study, m.comparison)),
            *([paragraph("Learning rates taken out (not planned):")] if over_rates else []),
            bullets(over_rates),
            bullets(answer.cautions(m.study, m.comparison, m.trends)),
        )
    )


def _setting(m: Material) -> Markup:
    problems = pairing_problems(m.study)
    pairing = heading("Pairing") + (
        paragraph("Runs of one seed are not equal where they must be:") + bullets(problems)
        if problems
        else paragraph("Runs of one seed have the same data and tokenizer digests.")
    )
    return (
        setting.plan_facts(m.study)
        + setting.differences(m.study)
        + pairing
        + m.table(setting.digests_table(m.study))
        + setting.base_config(m.study)
    )


def _runs(m: Material) -> Markup:
    return join(
        map(
            m.table,
            (
                tables.arms_table(m.study),
                tables.status_table(m.study),
                tables.failures_table(m.study),
            ),
        )
    )


def _tuning(m: Material) -> Markup:
    found = m.study.plan.tuning
    if found is None:
        return Markup()
    taken, curves = tuning.taken_table(found), tuning.curves_table(found)
    body = tuning.words(found) + m.plot("tuning") + m.table(taken) + m.table(curves, folded=True)
    return body + m.table(tuning.trials_table(found, m.trends.trials), folded=True)


def _figures(m: Material) -> Markup:
    if not m.study.counts()["done"]:
        return paragraph("No run is finished.")
    metrics = dict.fromkeys([*m.study.plan.analysis.metrics, "learned_loss"])
    made = [m.plot("arms"), m.table(tables.texts_table(m.study)), *_many_passes(m)]
    made += [m.table(tables.measure_table(m.study, m.comparison, metric)) for metric in metrics]
    made += [m.table(tables.means_table(m.study, m.comparison))]
    made += [m.table(tables.seeds_table(m.study), folded=True)]
    return join(made)


def _many_passes(m: Material) -> list[Markup]:
    """What a reader should know of text that was read too often; once for the whole study."""
    found = (planned_often(r.records) for r in m.study.results if r.records is not None)
    lines = dict.fromkeys(line for run in found for line in run)
    return [bullets(list(lines))]


def tests(m: Material) -> Markup:
    text = paragraph(
        "p: sign-flip permutation test of the paired differences, exact up to 20 seeds; for "
        "unpaired arms a permutation test of the two groups; none where that number of seeds could "
        "never give a p at or below the planned size."
    )
    if any(contrast.test.t for contrast in m.comparison.contrasts):
        text += paragraph(
            "Intervals: Student's t (unpaired: Welch's). TOST: two one-sided t tests against the "
            "margin that was fixed beforehand. d_z: mean difference over its standard deviation."
        )
    primary = m.table(results.contrasts_table(m.study, m.comparison, "primary"))
    secondary = m.table(results.contrasts_table(m.study, m.comparison, "secondary"))
    if not primary:
        return paragraph("The plan has no contrast.")
    more = heading("Secondary measures") + secondary if secondary else Markup()
    return text + heading("Primary measure") + primary + more


def _orders(m: Material) -> Markup:
    orders = m.study.plan.orders
    if not orders:
        return Markup()
    lines = [f"{name}: {', '.join(order)}" for name, order in orders.items()]
    return (
        paragraph("Every seed was run in each of these orders, and counts with the mean over them:")
        + bullets(lines)
        + m.table(results.orders_table(m.study, m.trends))
    )


def _controls(m: Material) -> Markup:
    body = join(
        map(
            m.table,
            (
                results.contrasts_table(m.study, m.comparison, "exploratory"),
                results.stops_table(m.trends),
                results.alone_table(m.trends),
            ),
        )
    )
    return body or paragraph("The study has no controls.")


def _matrices(m: Material) -> Markup:
    numbers = join(map(m.table, tables.matrix_tables(m.study)))
    body = m.plot("matrices") + fold("The means to four digits", numbers)
    return body or paragraph("No run is finished.")


def _curves(m: Material) -> Markup:
    return m.plot("curves") + m.plot("level") or paragraph("No run is finished.")


def _crossover(m: Material) -> Markup:
    body = m.plot("crossover") + m.plot("core")
    table = m.table(results.crossover_table(m.study, m.trends))
    return body + table or paragraph("Nothing can cross: one phase, or one arm.")


def _pareto(m: Material) -> Markup:
    body = m.plot("pareto") + m.table(results.pareto_table(m.trends))
    return body or paragraph("Fewer than two arms have finished runs of the same seeds.")


def _frontier(m: Material) -> Markup:
    body = frontier.words(m.study, m.trends) + m.plot("frontier") + m.plot("movement")
    body += m.table(frontier.families_table(m.trends))
    return body + m.table(frontier.frontier_table(m.study, m.trends))


def _density(m: Material) -> Markup:
    body = m.plot("tickets") + m.plot("density") + m.table(results.density_table(m.study, m.trends))
    return body or paragraph(
        "No three arms differ in density alone, so no relation with density can be fitted."
    )


def _optima(m: Material) -> Markup:
    body = m.plot("optima") + m.table(results.optima_table(m.study, m.trends))
    return body or paragraph("The study has one size of the model.")


def _interference(m: Material) -> Markup:
    body = m.plot("interference") + m.table(results.interference_table(m.trends))
    body += bullets([f"Cannot be read: {text}" for text in m.trends.interference_problems])
    return body or paragraph(
        "Not measured: no finished run has an interference.json (tools/interference.py writes it)."
    )


def _plasticity(m: Material) -> Markup:
    table = m.table(results.plasticity_table(m.study), folded=True)
    body = m.plot("plasticity") + table
    return body or paragraph("Not measured: no finished run has a plasticity panel.")


def _onset(m: Material) -> Markup:
    probed = m.trends.probed
    body = m.plot("onset") + m.table(onset_table(m.study, probed))
    return body + m.table(probes_table(m.study, probed), folded=True)


def _methods(m: Material) -> Markup:
    parts = (flags_table, told_table, measured_table)
    return Markup().join(m.table(make(m.study)) for make in parts)


def _cost(m: Material) -> Markup:
    return m.plot("cost") + m.table(tables.cost_table(m.study, m.comparison))


def _definitions(m: Material) -> Markup:
    figures = m.comparison.figures.values()
    known = any(figure.estimate is not None and figure.estimate.t for figure in figures)
    return m.table(tables.definitions_table(m.study)) + bullets(
        [*DEFINITIONS, *INTERVALS[: int(known)]]
    )


DEFINITIONS = (
    "Losses are of the next token, in nats per token, on held-out text of each domain: before "
    "training and after each phase on up to eval.end_tokens of it, inside phases on eval.tokens, "
    "in windows spread evenly over all its documents. What mixes both (curves over a phase, "
    "learning_area, where stopped_early stops) stands on the text of the latter. L[P, i] is "
    "the loss on domain i after the last phase, L[l(i), i] right after the last phase that trained "
    "it, L[b(i), i] right before the first.",
    "F_last: mean of L[P, i] - L[l(i), i] over the domains that another phase followed.",
    "NF: mean over the same domains of (L[P, i] - L[l(i), i]) / (L[b(i), i] - L[l(i), i]); domains "
    f"whose loss fell by less than {MIN_IMPROVEMENT:g} do not count. A contrast takes the domains "
    "that count in both runs of a pair.",
    "KL: mean over the domains of F_last of KL(model right after the domain's last phase || model "
    "at the end), on eval.kl_tokens held-out tokens of the domain: how far later phases moved it.",
    "learned_loss: mean of L[l(i), i] over all trained domains. first_loss: the loss on the domain "
    "of the first phase at its end. learning_area: area under the loss of a domain over its own "
    "phase, divided by the tokens of the phase; mean over phases.",
    "Tokens per live parameter (training tokens of one run over live parameters, as planned) say "
    "how near a model is to its capacity: forgetting is strong near capacity, and a sparse net has "
    "less capacity.",
    "Crossover: the phase at which the accumulated disadvantage of the arm begins to shrink, if "
    "the phases before it are reliably worse and those from it on reliably better.",
)

INTERVALS = (
    f"Intervals: Student's t over seeds, from {MIN_SEEDS} seeds on; of a fit by the jackknife over "
    f"seeds. From {MIN_BOOTSTRAP} seeds on bootstrap intervals (percentile, BCa; 10,000 resamples "
    "of whole seeds) stand beside them; with fewer they are too narrow.",
)


def repeat(m: Material) -> Markup:
    return setting.repeat(m.study)


SECTIONS: Sections = (
    ("question", "Question and hypothesis", question),
    ("answer", "Answer in short", answer_in_short),
    ("setting", "Setting", _setting),
    ("runs", "Arms and runs", _runs),
    ("tuning", "Tuning before the test", _tuning),
    ("figures", "Results of the arms", _figures),
    ("curves", "Forgetting curves", _curves),
    ("matrices", "Loss matrices", _matrices),
    ("tests", "Planned tests", tests),
    ("orders", "By order of the domains", _orders),
    ("controls", "Controls", _controls),
    ("crossover", "Crossover", _crossover),
    ("pareto", "What learning costs against what is kept", _pareto),
    ("frontier", "At equal learned loss, and at equal movement", _frontier),
    ("density", "Forgetting against density", _density),
    ("optima", "Best density against the size of the model", _optima),
    ("interference", "Interference", _interference),
    ("plasticity", "Plasticity", _plasticity),
    ("onset", "Probes with a new domain", _onset),
    ("methods", "What the methods need", _methods),
    ("cost", "Cost", _cost),
    ("definitions", "Definitions", _definitions),
    ("repeat", "How to repeat it", repeat),
)
