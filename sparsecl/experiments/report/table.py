"""One table, three ways to write it: HTML for the page, CSV for machines, LaTeX for a paper."""

import csv
import io
import re
from dataclasses import dataclass

from markupsafe import Markup

from sparsecl.experiments.report.page import grid
from sparsecl.metrics.table import number

Cell = str | int | float | None
"""None = there is no value."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column; `digits` after the point for floats."""

    key: str
    """In the header of the CSV."""
    heading: str
    digits: int = 4
    significant: bool = False
    """`digits` count from the first that is not 0: for sizes that differ by powers of ten."""
    pair: bool = False
    """Shown together with the next column, as [low, high]; in the CSV they are two."""
    csv_only: bool = False
    """More than a page can show: in the CSV alone. Of a pair, both."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of raw values: rounding is left to those who write them."""

    name: str
    """Of its files: letters, digits, "_", "-", "."."""
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            assert len(row) == len(self.columns), f"{self.name}: {row}"


def shown(cell: Cell, column: Column) -> str:
    """A cell for people: "-" for no value, thousands apart, "< 0.0001" if it rounds to 0."""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, float) and column.significant and cell == cell:
        return f"{cell:.{column.digits}g}"
    if isinstance(cell, float):
        text = number(cell, column.digits)
        small = cell > 0 and float(text) == 0  # a p of 0 does not exist
        return f"< {10**-column.digits:.{column.digits}f}" if small else text
    return "-" if cell is None or cell == "" else cell


def face(table: Table) -> tuple[list[Column], list[list[str]], list[bool]]:
    """What people see: columns, rows of texts, and which columns hold numbers.

    A column without a value in any row is left out: the page does not speak of what there is not.
    """
    columns, rows, numeric = [], [[] for _ in table.rows], []
    skip = False
    for k, column in enumerate(table.columns):
        if skip or column.csv_only:
            skip = column.csv_only and column.pair and not skip
            continue
        cells = [row[k] for row in table.rows]
        texts = [shown(cell, column) for cell in cells]
        if column.pair:
            ends = [shown(row[k + 1], column) for row in table.rows]
            both = zip(texts, ends, strict=True)
            texts = ["-" if low == high == "-" else f"[{low}, {high}]" for low, high in both]
        skip = column.pair
        if all(text == "-" for text in texts):
            continue
        columns.append(column)
        numeric.append(column.pair or not any(isinstance(cell, str) for cell in cells))
        for row, text in zip(rows, texts, strict=True):
            row.append(text)
    return columns, rows, numeric


def as_html(table: Table, *, folded: bool = False) -> Markup:
    """The table on the page; see page.grid."""
    columns, rows, numeric = face(table)
    headings = [column.heading for column in columns]
    return grid(table.name, table.caption, headings, rows, numeric=numeric, bad=BAD, folded=folded)


BAD = ("failed", "begun", "missing")
"""Cells of the table of runs that must be seen."""


def file_name(text: str) -> str:
    """A name that is safe in a path and in a link."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", text)


def as_csv(table: Table) -> str:
    """Full precision; an empty field is no value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([column.key for column in table.columns])
    writer.writerows([["" if cell is None else cell for cell in row] for row in table.rows])
    return text.getvalue()


def as_latex(table: Table) -> str:
    """A tabular for \\usepackage{booktabs}, rounded as in the page; to be \\input into a table."""
    columns, texts, numeric = face(table)
    layout = "".join("r" if is_number else "l" for is_number in numeric)
    head = " & ".join(latex_escape(column.heading) for column in columns)
    lines = [" & ".join(map(latex_escape, row)) + r" \\" for row in texts]
    return "\n".join(
        [
            f"% {latex_escape(table.caption)}",
            rf"\begin{{tabular}}{{{layout}}}",
            r"\toprule",
            head + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def latex_escape(text: str) -> str:
    """Text that LaTeX sets as it stands; line ends become spaces."""
    return "".join(LATEX.get(letter, letter) for letter in " ".join(text.split()))
