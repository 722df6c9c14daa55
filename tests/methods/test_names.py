"""No method's name outside methods/: whoever needs to know one asks the method."""

import ast
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from sparsecl.methods.config import MethodsConfig
from sparsecl.methods.facts import FLAGS
from sparsecl.methods.table import METHODS

PACKAGE = Path(__file__).resolve().parents[2] / "sparsecl"
FAMILIES = [path.name for path in (PACKAGE / "methods").iterdir() if path.is_dir()]


# Words of their own outside methods/, where bytes and a part of tokenizers have these names; as a
# block they are still found.
WORDS = {"memory", "dropout"}


def mentions(text: str) -> Iterator[str]:
    """Lines that import a family, read a method's block or class, or hold a name as a string."""
    classes = {method.__name__ for method in METHODS.values()}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            names = [alias.name for alias in node.names]
            if parts[:2] == ["sparsecl", "methods"] and set([*parts[2:], *names]) & set(FAMILIES):
                yield f"{node.lineno}: imports {node.module}"
        elif isinstance(node, ast.Attribute) and node.attr in METHODS:
            if isinstance(node.value, ast.Attribute | ast.Name) and (
                ast.unparse(node.value).split(".")[-1] == "methods"
            ):
                yield f"{node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.Name) and node.id in classes:
            yield f"{node.lineno}: {node.id}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            name, dot, _ = node.value.partition(".")
            if name in METHODS and (" " not in node.value if dot else name not in WORDS):
                yield f"{node.lineno}: {node.value!r}"


def test_no_file_outside_knows_a_method():
    found = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] != "methods"
        for line in mentions(path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "from sparsecl.methods.cl.ewc import Ewc",
        "x = config.methods.memory.keys",
        "x = 'memory.keys'",
        "from sparsecl.methods import cl",
        "x = config.methods.replay.share",
        "x = 'ewc.precision'",
        "if name == 'replay': pass",
    ],
)
def test_each_way_to_know_one_is_found(text):
    assert list(mentions(text))


def test_every_method_is_in_the_config_with_its_flags():
    assert {field.name for field in fields(MethodsConfig)} == set(METHODS)
    hints = get_type_hints(MethodsConfig)
    for name, method in METHODS.items():
        assert method.name == name
        (config,) = [option for option in get_args(hints[name]) if option is not type(None)]
        assert set(config.flags) <= set(FLAGS), name
