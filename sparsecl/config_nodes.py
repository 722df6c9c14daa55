"""YAML text to nodes that know their place, and `key=value` overrides laid over them.

Nodes, not Python objects: nothing in a config can be executed, and each value keeps its file and
line for the error that may name it. Refused, with line and column: aliases, tags, repeated keys,
deep nesting, a byte order mark, tabs.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from yaml.composer import ComposerError
from yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import ReaderError

from sparsecl.errors import DataError, MissingInputError, UserError
from sparsecl.opening import plain_input

TAG = "tag:yaml.org,2002:"
MAX_BYTES = 1 << 20  # a config is written by hand; more is a wrong file
_MAX_DEPTH = 40  # nesting of lists and mappings; bounds every recursion over the nodes
_PLAIN_TAGS = {
    TAG + name
    for name in ("null", "bool", "int", "float", "str", "seq", "map", "timestamp", "merge", "value")
}


def read_text(path: Path) -> str:
    """Text of a small UTF-8 file that a user wrote, or an error that says what is wrong with it."""
    try:
        with open(path, "rb", opener=plain_input) as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise MissingInputError(one_line(f"{path}: no such file")) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise MissingInputError(one_line(f"{path}: cannot be read ({reason})")) from None
    if len(data) > MAX_BYTES:
        raise UserError(one_line(f"{path}: larger than {MAX_BYTES} bytes; is this a config?"))
    if data.startswith(b"\xef\xbb\xbf"):
        problem = "starts with a byte order mark (BOM); save it as UTF-8 without one"
        raise UserError(one_line(f"{path}:1:1: {problem}"))
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        problem = f"byte {error.start} (0x{data[error.start]:02x}) is not UTF-8"
        raise DataError(one_line(f"{path}: {problem}; save it as UTF-8")) from None


def suggest(name: str, known: Sequence[str]) -> str:
    """The way out of a misspelt name: the nearest known one, else all of them."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"known here: {', '.join(known) or 'nothing'}"


class _Composer(yaml.SafeLoader):
    """Composes nodes and refuses what a config never needs: aliases, tags, repeated keys."""

    depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            # Aliases of aliases grow without bound; a run config has no need of them.
            raise ComposerError(None, None, "aliases (*name) are not supported here", mark)
        if self.depth >= _MAX_DEPTH:
            raise ComposerError(None, None, f"nested deeper than {_MAX_DEPTH} levels", mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if node is not None and node.tag not in _PLAIN_TAGS:
            tag = node.tag.replace(TAG, "!!")
            raise ComposerError(None, None, f"the tag {tag} is not allowed", mark)
        if isinstance(node, MappingNode):
            self._check_keys(node)
        return node

    @staticmethod
    def _check_keys(node: MappingNode) -> None:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise ComposerError(None, None, "a key must be plain text", key.start_mark)
            if key.value in lines:
                problem = f"duplicate key {key.value} (first in line {lines[key.value]})"
                raise ComposerError(None, None, problem, key.start_mark)
            lines[key.value] = key.start_mark.line + 1


def compose(text: str, source: str) -> Node | None:
    """Nodes of a one-document YAML text; `source` is what errors call it. None = empty."""
    try:
        composer = _Composer(text)
        composer.name = source
        return composer.get_single_node()
    except ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, error.position - before.rfind("\n")
        problem = f"the character {text[error.position]!r} is not allowed in YAML"
        raise UserError(one_line(f"{source}:{line}:{column}: {problem}")) from None
    except yaml.MarkedYAMLError as error:
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        if "'\\t'" in problem:
            problem += " (a tab; YAML indents with spaces)"
        mark = error.problem_mark
        place = source
        if mark is not None and not source.startswith("--set "):
            place = f"{source}:{mark.line + 1}:{mark.column + 1}"
        raise UserError(one_line(f"{place}: {problem}")) from None


def empty_mapping(source: str) -> MappingNode:
    """A mapping without keys that errors place at `source`."""
    mark = yaml.Mark(source, 0, 0, 0, None, 0)
    return MappingNode(TAG + "map", [], mark, mark)


def override(root: MappingNode, text: str) -> None:
    """Lay one "a.b=value" over the nodes; missing mappings on the way are made."""
    source = f"--set {text}"
    dotted, equals, written = text.partition("=")
    names = [name.strip() for name in dotted.split(".")]
    if not equals or not all(names):
        raise UserError(one_line(f"{source}: write it as key=value, for example --set seed=1"))
    value = compose(written, source)
    if value is None:
        problem = 'has no value; write null for none, "" for empty text'
        raise UserError(one_line(f"{source}: {dotted} {problem}"))
    node: Node = root
    for depth, name in enumerate(names):
        last = depth == len(names) - 1
        node = _step(node, name, value if last else None, source, ".".join(names[:depth]))


def _step(node: Node, name: str, value: Node | None, source: str, key: str) -> Node:
    """Set entry `name` of `node` to `value`; with None go into it, making it when absent."""
    if not isinstance(node, CollectionNode):
        raise UserError(one_line(f"{source}: {key} is {shown(node)}, it has no keys"))
    if isinstance(node, SequenceNode):
        if not name.isdecimal() or int(name) >= len(node.value):
            problem = f"{key} has {len(node.value)} entries, counted from 0; there is no {name}"
            raise UserError(one_line(f"{source}: {problem}"))
        if value is not None:
            node.value[int(name)] = value
        return node.value[int(name)]
    found = [child for key_node, child in node.value if key_node.value == name]
    if value is None and found and not is_null(found[0]):
        return found[0]
    entry = value if value is not None else empty_mapping(source)
    mark = yaml.Mark(source, 0, 0, 0, None, 0)
    key_node = ScalarNode(TAG + "str", name, mark, mark)
    node.value = [pair for pair in node.value if pair[0].value != name] + [(key_node, entry)]
    return entry


def is_null(node: Node) -> bool:
    """Whether the user wrote null, ~ or nothing."""
    return isinstance(node, ScalarNode) and node.tag == TAG + "null"


def shown(node: Node | None) -> str:
    """A node as the user wrote it, cut to a readable length."""
    if not isinstance(node, ScalarNode):
        return "keys and values" if isinstance(node, MappingNode) else "a list"
    if is_null(node):
        return "nothing" if not node.value else node.value
    text = node.value if len(node.value) <= 60 else node.value[:57] + "..."
    return f"{node.style}{text}{node.style}" if node.style in ("'", '"') else text


def from_override(node: Node) -> bool:
    """Whether the node comes from `--set` and not from the file."""
    return str(node.start_mark.name).startswith("--set ")


def place_of(node: Node) -> str:
    """`file:line`, `--set key=value` or `defaults`: how an error message starts."""
    name, line = node.start_mark.name, node.start_mark.line + 1
    return name if from_override(node) or name == "defaults" else f"{name}:{line}"


def fail(node: Node, key: str, problem: str) -> NoReturn:
    """Raise the UserError of `key` at the place of `node`."""
    key = f"{key}: " if key else ""
    raise UserError(one_line(f"{place_of(node)}: {key}{problem}"))


def one_line(text: str) -> str:
    """Escape what would break a line or a terminal: paths and values may hold anything."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def join(key: str, name: str | int) -> str:
    """Dotted key of entry `name` below `key`; the root is ""."""
    return f"{key}.{name}" if key else str(name)
