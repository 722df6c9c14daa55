"""What was passed over while a domain was read, and what looks like a mistake."""

from dataclasses import dataclass, field
from typing import Any

from sparsecl.config_nodes import one_line


@dataclass
class Remarks:
    """Filled while the texts of a source are read; what it says is true once they all were.

    Attributes:
        separator: the domain's; empty: it has none.
        separators: how often it was found.
        bad_rows, empty_files: how many were left out.
    """

    separator: str = ""
    separators: int = 0
    bad_rows: int = 0
    empty_files: int = 0
    _first: dict[str, str] = field(default_factory=dict)

    def bad_row(self, why: str) -> None:
        """Count a row that was left out."""
        self.bad_rows += 1
        self._first.setdefault("row", why)

    def empty_file(self, name: str) -> None:
        """Count a file without text, one of many."""
        self.empty_files += 1
        self._first.setdefault("file", name)

    def summary(self) -> dict[str, Any]:
        """JSON for the manifest."""
        counts = {"bad_rows": self.bad_rows, "empty_files": self.empty_files}
        return {**counts, "warnings": self.warnings()}

    def warnings(self) -> list[str]:
        """One line for each kind of remark."""
        lines = []
        if self.bad_rows:
            lines.append(f"bad rows left out: {self.bad_rows}, the first: {self._first['row']}")
        if self.empty_files:
            name = self._first["file"]
            lines.append(f"files without text passed over: {self.empty_files}, the first: {name}")
        if self.separator and not self.separators:
            lines.append(f"separator: {self.separator!r} never occurs in its plain text files")
        return [one_line(line) for line in lines]
