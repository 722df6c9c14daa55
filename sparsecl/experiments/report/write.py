"""A report folder, whole or absent:

report.html          everything, in one file
figures/NAME.pdf     and .png
tables/NAME.csv      full precision; and .tex, for booktabs
"""

import os
import shutil
import tempfile
from pathlib import Path

from sparsecl.errors import CannotCreateError
from sparsecl.experiments.collect import Study
from sparsecl.experiments.compare import compare
from sparsecl.experiments.plots.study import StudyFigure, study_figures
from sparsecl.experiments.plots.style import save_pdf, save_png, svg
from sparsecl.experiments.report.page import page, plot
from sparsecl.experiments.report.sections import Material, sections
from sparsecl.experiments.report.setting import banner
from sparsecl.experiments.report.table import Table, as_csv, as_latex
from sparsecl.experiments.trends import trends

PAGE = "report.html"


def write_report(study: Study, folder: Path) -> Path:
    """Make the report of a study, finished or not, and put it in the place of an older one.

    Returns:
        The page inside `folder`.

    Raises:
        CannotCreateError: if the folder cannot be written, or holds something that is no report.
    """
    _check_place(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    except OSError as error:
        raise CannotCreateError(f"{folder}: cannot be written ({error.strerror})") from None
    try:
        _fill(study, made)
        made.chmod(0o755)  # mkdtemp makes 0700; a report is meant to be read by others
        _put(made, folder)
    except OSError as error:
        raise CannotCreateError(f"{folder}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder / PAGE


def _check_place(folder: Path) -> None:
    """A folder that is no report is not ours to replace."""
    if folder.exists() and not (folder / PAGE).is_file():
        if not folder.is_dir() or any(folder.iterdir()):
            raise CannotCreateError(
                f"{folder}: is there already and is not a report; name another folder"
            )


def _fill(study: Study, folder: Path) -> None:
    comparison, found = compare(study), trends(study)
    figures = study_figures(study, comparison, found)
    plots = {item.name: _figure(item, folder / "figures") for item in figures}
    material = Material(study, comparison, found, plots)
    parts = sections(material)
    counts = study.counts()
    lead = (
        f"{len(study.plan.arms)} arms, {len(study.plan.seeds)} seeds, "
        f"{counts['done']} of {len(study.results)} runs done"
    )
    text = page(f"Study {study.plan.name}", lead, banner(study), parts)
    (folder / PAGE).write_text(text, encoding="utf-8")
    for table in material.tables.values():
        _table(table, folder / "tables")


def _figure(item: StudyFigure, folder: Path) -> str:
    """Write PDF and PNG; return the figure for the page."""
    save_png(item.figure, folder / f"{item.name}.png")
    save_pdf(item.figure, folder / f"{item.name}.pdf")
    return plot(item.name, item.caption, svg(item.figure, item.name))


def _table(table: Table, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{table.name}.csv").write_text(as_csv(table), encoding="utf-8")
    (folder / f"{table.name}.tex").write_text(as_latex(table), encoding="utf-8")


def _put(made: Path, folder: Path) -> None:
    """Rename `made` to `folder`. An older report is moved aside first, and back if that fails."""
    if not folder.exists():
        os.replace(made, folder)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".old", dir=folder.parent))
    try:
        os.replace(folder, aside / "report")
        try:
            os.replace(made, folder)
        except OSError:
            os.replace(aside / "report", folder)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
