"""Strict JSON with positions: a file's values, and the line on which each key stands.

Stricter than `json.load` and than the HJSON that DeepSpeed reads: a repeated key, NaN, a number
that overflows, a comment and a root that is no object are errors, each with its place.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from sparsecl.config_nodes import one_line, read_text
from sparsecl.errors import UserError

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],]')


@dataclass(frozen=True)
class JsonFile:
    """The object in a JSON file and where its keys stand."""

    path: Path
    values: dict[str, Any]
    lines: dict[str, int]
    """Dotted key -> line, counted from 1."""

    def fail(self, key: str, problem: str) -> NoReturn:
        """Raise the UserError of `key`: `file.json:line: key: problem`."""
        line = f":{self.lines[key]}" if key in self.lines else ""
        raise UserError(one_line(f"{self.path}{line}: {key}: {problem}"))


def read_json(path: Path) -> JsonFile:
    """Read a JSON object.

    Raises:
        UserError: one line, with line and column where the syntax is at fault.
        MissingInputError, DataError: the file cannot be opened, is not UTF-8.
    """
    text = read_text(path)
    if not text.strip():
        raise UserError(one_line(f"{path}: is empty; write at least {{}}"))
    values = _parse(path, text)
    lines: dict[str, int] = {}
    for key, offset in _keys(text):
        if key in lines:
            problem = f"duplicate key {key} (first in line {lines[key]})"
            raise UserError(one_line(f"{path}:{_place(text, offset)}: {problem}"))
        lines[key] = text.count("\n", 0, offset) + 1
    if not isinstance(values, dict):
        raise UserError(one_line(f"{path}: expected a JSON object {{...}} at the top"))
    return JsonFile(path, values, lines)


def _parse(path: Path, text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_not_finite, parse_float=_finite)
    except json.JSONDecodeError as error:
        hint = ""
        if text[error.pos : error.pos + 1] in ("/", "#"):
            hint = " (JSON has no comments)"
        elif text[error.pos : error.pos + 1] in ("}", "]") or error.msg.startswith("Illegal"):
            hint = " (a comma after the last entry?)"
        problem = f"{error.lineno}:{error.colno}: {error.msg}{hint}"
        raise UserError(one_line(f"{path}:{problem}")) from None
    except RecursionError:
        raise UserError(one_line(f"{path}: nested too deeply")) from None
    except ValueError as error:  # _finite, _not_finite, or an integer of thousands of digits
        raise UserError(one_line(f"{path}: {error}")) from None


def _not_finite(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text} is too large")
    return value


def _keys(text: str) -> Iterator[tuple[str, int]]:
    """(dotted key, offset) of every key of a text that is valid JSON, repeated ones included."""
    # One frame per open bracket: the current key of an object (None = a key comes next), or the
    # current index of a list.
    frames: list[str | int | None] = []
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token in "{[":
            frames.append(None if token == "{" else 0)
        elif token in "}]":
            frames.pop()
        elif token == ",":
            top = frames[-1]
            frames[-1] = top + 1 if isinstance(top, int) else None
        elif frames and frames[-1] is None:
            frames[-1] = json.loads(token, strict=False)
            yield ".".join(map(str, frames)), match.start()


def _place(text: str, offset: int) -> str:
    return f"{text.count(chr(10), 0, offset) + 1}:{offset - text.rfind(chr(10), 0, offset)}"
