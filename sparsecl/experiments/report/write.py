"""A report folder, whole or absent:

report.html          everything, in one file
figures/NAME.pdf     and .png
tables/NAME.csv      full precision; and .tex, for booktabs
"""

import os
from pathlib import Path

from markupsafe import Markup

from sparsecl.errors import CannotCreateError
from sparsecl.experiments.findings.collect import Study
from sparsecl.experiments.findings.compare import compare
from sparsecl.experiments.findings.trends import trends
from sparsecl.experiments.plots.study import StudyFigure
from sparsecl.experiments.plots.style import save_pdf, save_png, svg
from sparsecl.experiments.report.contents import figures_of, sections_of
from sparsecl.experiments.report.page import page, plot
from sparsecl.experiments.report.sections import Material
from sparsecl.experiments.report.setting import banner
from sparsecl.experiments.report.table import Table, as_csv, as_latex
from sparsecl.files import temporary_folder, writing
from sparsecl.opening import is_folder

PAGE = "report.html"


def write_report(study: Study, folder: Path) -> Path:
    """Make the report of a study, finished or not, and put it in the place of an older one.

    Returns:
        The page inside `folder`.

    Raises:
        CannotCreateError, StorageError: if the folder cannot be written, or holds something that is
            no report.
    """
    check_place(folder, PAGE, "report")
    with temporary_folder(folder) as temporary, writing(folder):
        made = temporary / "new"
        made.mkdir()
        _fill(study, made)
        replace_folder(made, folder, aside=temporary / "old")
    return folder / PAGE


def check_place(folder: Path, mark: str, what: str) -> None:
    """A folder that is not of our kind is not ours to replace.

    Args:
        mark: a file that every folder of the kind has, and no other.
    """
    if os.path.lexists(folder) and not (is_folder(folder) and (folder / mark).is_file()):
        if not is_folder(folder) or any(folder.iterdir()):
            raise CannotCreateError(
                f"{folder}: is there already and is not a {what}; name another folder"
            )


def _fill(study: Study, folder: Path) -> None:
    comparison, found = compare(study), trends(study)
    figures = figures_of(study, comparison, found)
    plots = {item.name: _figure(item, folder / "figures") for item in figures}
    material = Material(study, comparison, found, plots)
    parts = sections_of(material)
    counts = study.counts()
    lead = (
        f"{len(study.plan.arms)} arms, {len(study.plan.seeds)} seeds, "
        f"{counts['done']} of {len(study.results)} runs done"
    )
    text = page(f"Study {study.plan.name}", lead, banner(study), parts)
    (folder / PAGE).write_text(text, encoding="utf-8")
    for table in material.tables.values():
        _table(table, folder / "tables")


def _figure(item: StudyFigure, folder: Path) -> Markup:
    """Write PDF and PNG; return the figure for the page."""
    save_png(item.figure, folder / f"{item.name}.png")
    save_pdf(item.figure, folder / f"{item.name}.pdf")
    return plot(item.name, item.caption, svg(item.figure, item.name))


def _table(table: Table, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{table.name}.csv").write_text(as_csv(table), encoding="utf-8")
    (folder / f"{table.name}.tex").write_text(as_latex(table), encoding="utf-8")


def replace_folder(made: Path, folder: Path, *, aside: Path) -> None:
    """Rename `made` to `folder`. An older one is moved aside first, and back if that fails."""
    if not folder.exists():
        os.replace(made, folder)
        return
    os.replace(folder, aside)
    try:
        os.replace(made, folder)
    except OSError:
        os.replace(aside, folder)
        raise
