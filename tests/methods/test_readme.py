"""The table of methods, on their page and on the first one, is what the options say."""

from dataclasses import fields
from typing import get_args, get_type_hints

import pytest

from sparsecl.methods.config import MethodsConfig
from tests.readme.pages import PAGES, section, table

METHODS = "sparsecl/methods"
TABLES = {METHODS: PAGES[METHODS], ".": section(".", "Methods")}
LETTERS = "IBDPFXC"


def options() -> dict[str, type]:
    """Name of each method's block -> the class of its options."""
    hints = get_type_hints(MethodsConfig)
    found = {}
    for field in fields(MethodsConfig):
        kinds = [kind for kind in get_args(hints[field.name]) if kind is not type(None)]
        found[field.name] = kinds[0]
    return found


def rows(page: str) -> dict[str, dict[str, str]]:
    """Method -> letter -> what the table says of it."""
    found = {}
    for name, *cells in table(TABLES[page], "block"):
        said = zip(LETTERS, cells, strict=True)
        found[name.strip("`")] = {letter: cell for letter, cell in said if cell}
    return found


@pytest.mark.parametrize("page", TABLES)
@pytest.mark.parametrize("name", options())
def test_flags_are_those_of_the_table(name, page):
    assert rows(page)[name] == dict(options()[name].flags)


@pytest.mark.parametrize("page", TABLES)
def test_every_row_is_a_method_and_has_a_paragraph(page):
    assert len(table(TABLES[page], "block")) == len(rows(page))
    assert sorted(rows(page)) == sorted(options())
    assert all(f"**`{name}`**" in PAGES[METHODS] for name in rows(page))
