"""Docstrings and interactive sessions of installed packages, read from their source text.

The packages are parsed, never imported: no side effects, and no GPU library is started.
"""

import ast
import functools
import inspect
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from sparsecl.data.sources.reads import Reads, read_bytes

# Files that hand their documentation to C functions as plain strings.
_STRING_DOCS = re.compile(r"_(torch|tensor|storage|size)_docs\.py|_add_newdocs\.py")
_SKIPPED_FOLDERS = {"tests", "test", "testing", "externals"}

_MIN_CHARACTERS = 100  # shorter ones are labels ("See base class"), not text


@functools.lru_cache(maxsize=8)
def docstrings(root: Path) -> tuple[tuple[str, ...], Reads]:
    """All docstrings below a package folder, in the order of paths and lines, indentation removed;
    and the files that were read.

    Kept in memory (a few MB per package) because two domains read the same packages.
    """
    found: list[str] = []
    reads: Reads = {}
    for path in sorted(root.rglob("*.py")):
        if not any(map(_is_skipped, path.relative_to(root).parts[:-1])):
            found.extend(_docstrings_of(path, read_bytes(path, reads)))
    return tuple(found), reads


def _is_skipped(folder: str) -> bool:
    # Private folders hold internals (torch/_inductor), except the core of NumPy.
    return folder in _SKIPPED_FOLDERS or (folder.startswith("_") and folder != "_core")


def _docstrings_of(path: Path, source: bytes) -> Iterator[str]:
    if b'"""' not in source and b"'''" not in source:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in the files of others
            tree = ast.parse(source)
    except (SyntaxError, ValueError):  # templates that only look like Python
        return
    if _STRING_DOCS.fullmatch(path.name):
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield inspect.cleandoc(node.value)
        return
    # Only bodies of modules, classes and functions: a walk over all nodes takes twice the time.
    bodies: list[ast.AST] = [tree]
    while bodies:
        node = bodies.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text
        children = [*getattr(node, "body", []), *getattr(node, "orelse", [])]
        bodies.extend(child for child in reversed(children) if isinstance(child, ast.stmt))


def prose(docstring: str) -> str:
    """The docstring without its sessions; empty if less than a few lines remain."""
    lines = []
    in_session = False
    for line in docstring.splitlines():
        in_session = _is_input(line) or (in_session and bool(line.strip()))
        if not in_session:
            lines.append(line)
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
    return text + "\n" if len(text) >= _MIN_CHARACTERS else ""


def dialogue(docstring: str) -> str:
    """The sessions of a docstring as turns of a user and of Python; empty if there is none."""
    turns: list[str] = []
    in_session = False
    for line in docstring.splitlines():
        text = line.strip()
        if _is_input(line):
            turns.append("User: " + text[3:].strip())
            in_session = True
        elif not text:
            in_session = False
        elif in_session and text.startswith("...") and turns[-1].startswith("User: "):
            turns[-1] += "\n  " + text[3:].removeprefix(" ").rstrip()
        elif in_session and turns[-1].startswith("Python: "):
            turns[-1] += "\n  " + text
        elif in_session:
            turns.append("Python: " + text)
    joined = "\n".join(turns)
    return joined + "\n" if len(joined) >= _MIN_CHARACTERS else ""


def _is_input(line: str) -> bool:
    return line.lstrip().startswith(">>>")
