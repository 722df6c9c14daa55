"""The small part of a report that a repository keeps, so that a number can be checked years later:

README.md       question, answer, command, commit, versions
plan.json       arms, seeds, analysis; the curves of the tuning
tables/*.csv    every table of the report, seeds.csv (each run) and trials.csv among them
figures/*.png   the figures named in FIGURES

No runs and no checkpoints: the command makes them again.
"""

import json
from pathlib import Path

from sparsecl import config as configs
from sparsecl.errors import UserError
from sparsecl.experiments.findings.collect import Study
from sparsecl.experiments.findings.compare import compare
from sparsecl.experiments.findings.frontier import frontier_text
from sparsecl.experiments.findings.trends import Trends, trends
from sparsecl.experiments.plots.style import save_png
from sparsecl.experiments.report import answer, results
from sparsecl.experiments.report.contents import figures_of, sections_of
from sparsecl.experiments.report.sections import Material
from sparsecl.experiments.report.setting import origins
from sparsecl.experiments.report.table import Cell, as_csv
from sparsecl.experiments.report.write import check_place, replace_folder
from sparsecl.experiments.study.study_plan import PLAN
from sparsecl.files import temporary_folder, writing

MARK = "tables/seeds.csv"
"""What tells such a folder from others, from that of a study above all."""

FIGURES = ("tuning", "frontier", "arms", "density", "tickets", "crossover", "core", "movement")
FIGURES += ("pareto", "onset", "tasks")


def publish(study: Study, folder: Path) -> Path:
    """Write the folder, in the place of an older one.

    Returns:
        The README inside it.

    Raises:
        UserError: runs are still to come, so there is nothing to keep yet.
        CannotCreateError, StorageError: it cannot be written, or holds something else.
    """
    counts = study.counts()
    if counts["begun"] or counts["missing"]:
        raise UserError(
            f"--publish: {counts['begun'] + counts['missing']} of {len(study.results)} runs are "
            "still to come; finish the study first"
        )
    check_place(folder, MARK, "kept result")
    with temporary_folder(folder) as temporary, writing(folder):
        made = temporary / "new"
        made.mkdir()
        _fill(study, made)
        replace_folder(made, folder, aside=temporary / "old")
    return folder / "README.md"


def _fill(study: Study, folder: Path) -> None:
    comparison, found = compare(study), trends(study)
    plan = json.dumps(configs.to_dict(study.plan), indent=1)
    (folder / PLAN).write_text(plan + "\n", encoding="utf-8")
    (folder / "figures").mkdir()
    # Below six seeds no arm is tested for one, and a line for each says nothing.
    tested = any(item.result and not item.result.why for item in found.crossovers)
    names = set(FIGURES) - (set() if tested else {"crossover", "core"})
    shown = [one for one in figures_of(study, comparison, found) if one.name in names]
    for one in shown:
        save_png(one.figure, folder / "figures" / f"{one.name}.png")
    material = Material(study, comparison, found, {})
    sections_of(material)
    (folder / "tables").mkdir()
    for table in material.tables.values():
        (folder / "tables" / f"{table.name}.csv").write_text(as_csv(table), encoding="utf-8")
    lines = [
        f"# {study.plan.name}, {study.plan.scale}",
        study.plan.question,
        f"**{answer.headline(study, comparison)}**",
        _bullets(answer.sentences(study, comparison)),
        *_section("Learning rates taken out (not planned):", frontier_text(found.family_contrasts)),
        *_section("Crossover with the reference:", _crossovers(study, found) if tested else []),
        *_section("What to hold against it:", answer.cautions(study, comparison, found)),
        *(f"![{one.caption}](figures/{one.name}.png)" for one in shown),
        "Every number is in `tables/`: `seeds.csv` has each run. It was made by",
        f"```bash\n{study.plan.command}\n```",
        _bullets([f"{name}: {value}" for name, value in origins(study)]),
    ]
    text = "\n\n".join(line for line in lines if line)
    (folder / "README.md").write_text(text + "\n", encoding="utf-8")


def _crossovers(study: Study, found: Trends) -> list[str]:
    """Arms of which the same is said share a line."""
    said: dict[tuple[Cell, Cell], list[str]] = {}
    for row in results.crossover_table(study, found).rows:
        said.setdefault((row[1], row[-1]), []).append(str(row[0]))
    return [f"{', '.join(arms)}, {curve}: {text}" for (curve, text), arms in said.items()]


def _section(head: str, lines: list[str]) -> list[str]:
    return [head, _bullets(lines)] if lines else []


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
