"""The sections of the page of a study of streams."""

from markupsafe import Markup

from sparsecl.experiments.findings.collect import Study
from sparsecl.experiments.findings.compare import Comparison
from sparsecl.experiments.report import results, setting, tables
from sparsecl.experiments.report.page import Section, bullets, paragraph
from sparsecl.experiments.report.sections import (
    INTERVALS,
    Material,
    Sections,
    answer_in_short,
    built,
    question,
    repeat,
    tests,
)
from sparsecl.experiments.report.table import Cell, Column, Table
from sparsecl.experiments.report.tables import ARM, PLANNED, SEEDS, ends, level_text


def stream_sections(material: Material) -> list[Section]:
    """All of them, in the order of reading."""
    return built(SECTIONS, material)


def arms_table(study: Study) -> Table:
    """What each arm is, before anything was measured."""
    columns = (
        ARM,
        Column(key="label", heading="label"),
        Column(key="of", heading="control of"),
        Column(key="kind", heading="topology"),
        Column(key="density", heading="density"),
        Column(key="live_parameters", heading="live parameters"),
        Column(key="samples", heading="samples"),
        Column(key="done", heading="networks done"),
        Column(key="planned", heading="of"),
    )
    rows = tuple(
        (
            *(arm.name, arm.label, arm.of, arm.kind, arm.density, arm.live, arm.tokens),
            len(study.seeds_done(arm.name)),
            len(study.of(arm.name)),
        )
        for arm in study.plan.arms
    )
    caption = (
        "The arms. Density: live share of the matrices of hidden layers, for the first seed; "
        "parameters: weights and biases of a network; samples: that a network trains on."
    )
    return Table(name="arms", caption=caption, columns=columns, rows=rows)


def figures_table(study: Study, comparison: Comparison) -> Table:
    """Every measure of every arm: mean over seeds and its interval."""
    columns: list[Column] = [ARM, SEEDS, PLANNED]
    for name in study.measures:
        columns += [
            Column(key=name, heading=name),
            Column(key=f"{name}_low", heading="interval", pair=True),
            Column(key=f"{name}_high", heading=""),
        ]
    rows = []
    for arm in study.plan.arms:
        row: list[Cell] = [arm.name, len(study.seeds_done(arm.name)), len(study.of(arm.name))]
        for name in study.measures:
            one = comparison.figures[arm.name, name].estimate
            row += [None, None, None] if one is None else [one.mean, *ends(one.t)]
        rows.append(tuple(row))
    caption = f"Means over seeds; the definitions say what is measured. {level_text(study)}"
    return Table(name="figures", caption=caption, columns=tuple(columns), rows=tuple(rows))


def _setting(m: Material) -> Markup:
    pairing = paragraph(
        "Networks of one seed start from the same weights, up to their graphs and widths, and see "
        "the same tasks: so arms are compared seed by seed."
    )
    differences = setting.differences(m.study)
    return setting.plan_facts(m.study) + differences + pairing + setting.base_config(m.study)


def _runs(m: Material) -> Markup:
    made = (arms_table, tables.status_table, tables.failures_table)
    return Markup().join(m.table(make(m.study)) for make in made)


def _figures(m: Material) -> Markup:
    if not m.study.counts()["done"]:
        return paragraph("No run is finished.")
    found = m.plot("arms") + m.table(figures_table(m.study, m.comparison))
    return found + m.table(tables.seeds_table(m.study), folded=True)


def _tasks(m: Material) -> Markup:
    return m.plot("tasks")


def _controls(m: Material) -> Markup:
    return m.table(results.contrasts_table(m.study, m.comparison, "exploratory"))


def _definitions(m: Material) -> Markup:
    known = any(f.estimate is not None and f.estimate.t for f in m.comparison.figures.values())
    return m.table(tables.definitions_table(m.study)) + bullets([*DEFINITIONS, *INTERVALS[:known]])


DEFINITIONS = (
    "Accuracy is online: of each task's samples before they were trained; in image_pairs it is "
    "that on held-out images at the end of a task.",
    "best_window: the ten tasks in a row in which the mean over the arm's networks is highest; "
    "each network counts with its own accuracy there. The highest of many windows is a little too "
    "high, so lost is a little too large, in every arm.",
    "Figures after the last task are taken on the first samples of a further task that is never "
    "trained; means over hidden layers. erank: exp of the entropy of the singular values of a "
    "layer's activations; stable rank: their squared Frobenius norm over the square of the largest "
    "singular value; srank 99 %: singular values that make 99 % of their sum. Which way of weight "
    "size and ranks is better is a convention: lost plasticity goes the other way in the papers.",
    "equal_parameters: the reference, dense and narrower, with as many weights and biases as the "
    "arm has live ones, within 2 %; of all widths that fit, those most in its proportions.",
)

SECTIONS: Sections = (
    ("question", "Question and hypothesis", question),
    ("answer", "Answer in short", answer_in_short),
    ("setting", "Setting", _setting),
    ("runs", "Arms and runs", _runs),
    ("figures", "Results of the arms", _figures),
    ("tasks", "Task by task", _tasks),
    ("tests", "Planned tests", tests),
    ("controls", "Controls", _controls),
    ("definitions", "Definitions", _definitions),
    ("repeat", "How to repeat it", repeat),
)
