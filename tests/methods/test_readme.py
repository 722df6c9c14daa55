"""The table of sparsecl/methods/README.md is what the options say."""

from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from sparsecl.methods.config import MethodsConfig

README = Path(__file__).resolve().parents[2] / "sparsecl" / "methods" / "README.md"
LETTERS = "IBDPFXC"


def options() -> dict[str, type]:
    """Name of each method's block -> the class of its options."""
    hints = get_type_hints(MethodsConfig)
    found = {}
    for field in fields(MethodsConfig):
        kinds = [kind for kind in get_args(hints[field.name]) if kind is not type(None)]
        found[field.name] = kinds[0]
    return found


@pytest.mark.parametrize("name", options())
def test_flags_are_those_of_the_table(name):
    (row,) = [x for x in README.read_text().splitlines() if x.startswith(f"| `{name}` |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")[1:]]
    said = {letter: cell for letter, cell in zip(LETTERS, cells, strict=True) if cell}
    assert said == dict(options()[name].flags)


def test_every_row_is_a_method_and_has_a_page():
    text = README.read_text()
    rows = [x.split("`")[1] for x in text.splitlines() if x.startswith("| `")]
    assert sorted(rows) == sorted(options())
    assert all(f"**`{name}`**" in text for name in rows)
