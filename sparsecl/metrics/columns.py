"""Tables on a terminal: the first column begins at the left, the others end at the right."""

from collections.abc import Sequence

Rows = Sequence[Sequence[str]]


def column_widths(rows: Rows) -> list[int]:
    """The longest cell of each column."""
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def align(rows: Rows, *, widths: Sequence[int] | None = None, gap: str = "  ") -> list[str]:
    """One line for each row, without spaces at its end.

    Args:
        widths: of the columns, in characters; None = as wide as their longest cell.
        gap: between two columns.

    Raises:
        ValueError: a row has other columns than the first.
    """
    sizes = column_widths(rows) if widths is None else widths
    return [
        gap.join(
            cell.rjust(size) if at else cell.ljust(size)
            for at, (cell, size) in enumerate(zip(row, sizes, strict=True))
        ).rstrip()
        for row in rows
    ]
