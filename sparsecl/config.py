"""Run configs: frozen dataclasses <-> YAML, with errors that name the file, the line and the key.

The YAML is composed to nodes, never to Python objects; `key=value` overrides are laid over the
nodes, and the dataclass is built from its annotations. So every value still knows its line.
Differs from `yaml.safe_load`: 3e-4 is a number; `off` stays text where text is asked for; 010
(octal in YAML 1.1) and 1:30 (base 60) are refused, as are aliases, tags and repeated keys.

Understood annotations: int, float, bool, str, Path, Literal, X | Y, X | None, tuple[X, ...],
tuple[X, Y], dict[str, X] and other dataclasses; and Node, for what is to be read later.
"""

import ast
import dataclasses
import difflib
import inspect
import json
import math
import re
import textwrap
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from sparsecl.bounds import bounds_text
from sparsecl.config_kinds import other_kind
from sparsecl.config_nodes import (
    TAG,
    compose,
    empty_mapping,
    fail,
    from_override,
    is_null,
    join,
    one_line,
    override,
    place_of,
    read_text,
    shown,
    suggest,
)
from sparsecl.errors import UserError
from sparsecl.files import sha256_text

T = TypeVar("T")

_YOUNGER = "younger"  # in the metadata of a field
_INT = re.compile(r"[-+]?(0|[1-9][0-9_]{0,30})")
_FLOAT = re.compile(r"[-+]?(?=\.?[0-9])[0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.?(inf|nan|infinity)", re.IGNORECASE)
_PERCENT = re.compile(r"([0-9]{1,30}(?:\.[0-9]+)?)\s*%")


def load(cls: type[T], path: Path | Sequence[Path] | None, overrides: Sequence[str] = ()) -> T:
    """Build `cls` from YAML files and overrides.

    Args:
        cls: a dataclass, usually frozen; its __post_init__ may raise ValueError with a message
            that starts with the name of the field at fault.
        path: YAML file, or several, each laid over those before it: a key that a later one does
            not name keeps its value. None = the defaults of `cls` alone.
        overrides: "a.b=value" texts, value in YAML; a list item is "a.0.b=value". A later one
            wins. A mapping as value replaces what the file says under that key.

    Raises:
        UserError: one line, naming `file:line` or `--set key=value`, and the dotted key.
        MissingInputError: the file cannot be opened.
        DataError: the file is not UTF-8.
    """
    paths = [path] if isinstance(path, Path) else list(path or ())
    roots = [read_nodes(one, cls) for one in paths] or [empty_mapping("defaults")]
    for text in overrides:
        override(roots[-1], text)
    config = _dataclass(roots[0], cls, "", None)
    for root in roots[1:]:
        config = overlay(config, root, "")
    return config


def read_nodes(path: Path, cls: type | None = None) -> MappingNode:
    """The keys and values of a YAML file, as nodes. Errors as `load`.

    Args:
        cls: a file that is plainly not of its kind is refused, with the program that takes it.
    """
    root = compose(read_text(path), str(path))
    if root is None:
        raise UserError(one_line(f"{path}: is empty; write at least one key, or {{}}"))
    if not isinstance(root, MappingNode):
        fail(root, "", f"expected keys and values, got {shown(root)}")
    if cls is not None:
        names = [field.name for field in _fields(cls)]
        if kind := other_kind([key.value for key, _ in root.value], names):
            raise UserError(one_line(f"{path}: is {kind}"))
    return root


def overlay(base: T, node: Node, key: str) -> T:
    """The dataclass `base` with the values of a YAML mapping laid over it.

    Args:
        key: dotted place of `node` in its file, for errors.

    Raises:
        UserError: as `load`.
    """
    return _build(node, type(base), key, base)


def to_dict(value: Any) -> Any:
    """Plain dicts, lists and scalars: what JSON and YAML can write."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_dict(getattr(value, f.name)) for f in _fields(type(value))}
    if isinstance(value, Mapping):
        return {str(key): to_dict(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_dict(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def dump(instance: Any) -> str:
    """YAML text with every field, from which `load` builds an equal instance."""
    return yaml.safe_dump(to_dict(instance), sort_keys=False, width=100)


def younger(default: T) -> T:
    """A field that `digest` leaves out at its default: runs that do not use it keep the digest, and
    so the folder, that they had before the field was there."""
    return dataclasses.field(default=default, metadata={_YOUNGER: True})


def digest(instance: Any) -> str:
    """Hex sha256 of the canonical JSON. Equal instances have equal digests: 1 is 1.0 there."""
    text = json.dumps(_canonical(_digested(instance)), sort_keys=True, allow_nan=False)
    return sha256_text(text)


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Lines "key: old -> new" for each leaf in which two `to_dict` results differ. A block in the
    place of null, or null in its place, is told by the leaves of the block alone."""
    old, new = dict(_leaves(a, "")), dict(_leaves(b, ""))
    lines = []
    for key in [*old, *(key for key in new if key not in old)]:
        left, right = (json.dumps(d[key]) if key in d else "(absent)" for d in (old, new))
        differs = key not in old or key not in new or old[key] != new[key]
        if differs and not (_is_block(key, old, new) or _is_block(key, new, old)):
            lines.append(f"{key}: {left} -> {right}")
    return lines


def _is_block(key: str, leaves: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    """Is a leaf null, and a block among the others?"""
    return leaves.get(key, 0) is None and any(one.startswith(f"{key}.") for one in others)


class FieldHelp(NamedTuple):
    """One line of help: a leaf key, what it takes, its default as JSON, the text under it."""

    key: str
    type: str
    default: str
    text: str


def describe(cls: type) -> list[FieldHelp]:
    """Help for every leaf key. A list item is written N (data.domains.N.name)."""
    return list(_describe(cls, "", None))


def help_text(cls: type) -> str:
    """Every leaf key with its type, default and meaning, for a terminal."""
    lines = []
    for field in describe(cls):
        lines.append(f"{field.key}: {field.type} = {field.default}")
        if field.text:
            lines.append(textwrap.indent(textwrap.fill(field.text, 96), "    "))
    return "\n".join(lines)


# ---- nodes -> values -----------------------------------------------------------------------


class _Mismatch(Exception):
    """This scalar is not of the type tried; another member of the union may fit."""


def _build(node: Node, tp: Any, key: str, base: Any) -> Any:
    """The value of `node` as type `tp`. `base` is the default that a partial mapping completes."""
    for member in _members(tp):
        if member is Node:
            return node
        try:
            if isinstance(node, ScalarNode):
                return _scalar(node, member, key)
            if isinstance(node, SequenceNode) and get_origin(member) is tuple:
                return _tuple(node, member, key)
            if isinstance(node, MappingNode):
                return _mapping(node, member, key, base)
        except _Mismatch:
            continue
    fail(node, key, f"expected {_type_text(tp)}, got {shown(node)}{_hint(node, tp)}")


def _scalar(node: ScalarNode, member: Any, key: str) -> Any:
    if member in _SCALARS:
        return _SCALARS[member](node, key)
    if get_origin(member) is Literal:
        for choice in get_args(member):
            try:
                if _SCALARS[type(choice)](node, key) == choice:
                    return choice
            except _Mismatch:
                continue
    raise _Mismatch


def _mapping(node: MappingNode, member: Any, key: str, base: Any) -> Any:
    if dataclasses.is_dataclass(member) and isinstance(member, type):
        return _dataclass(node, member, key, base)
    if get_origin(member) is dict:
        item = get_args(member)[1]
        return {k.value: _build(v, item, join(key, k.value), None) for k, v in node.value}
    # `--set data.domains.0.name=x` where only the defaults have domains.
    if get_origin(member) is tuple and from_override(node) and isinstance(base, tuple):
        return _indexed(node, member, key, base)
    raise _Mismatch


def _tuple(node: SequenceNode, member: Any, key: str) -> tuple[Any, ...]:
    items = get_args(member)
    if len(items) == 2 and items[1] is Ellipsis:
        items = (items[0],) * len(node.value)
    if len(items) != len(node.value):
        fail(node, key, f"expected {len(items)} entries, got {len(node.value)}")
    pairs = enumerate(zip(node.value, items, strict=True))
    return tuple(_build(child, item, join(key, i), None) for i, (child, item) in pairs)


def _indexed(node: MappingNode, member: Any, key: str, base: tuple[Any, ...]) -> tuple[Any, ...]:
    result = list(base)
    items = get_args(member)
    for key_node, child in node.value:
        name = key_node.value
        if not name.isdecimal() or int(name) >= len(base):
            problem = f"has {len(base)} entries, counted from 0; there is no {name}"
            fail(key_node, key, problem)
        item = items[0] if items[-1] is Ellipsis else items[int(name)]
        result[int(name)] = _build(child, item, join(key, name), base[int(name)])
    return tuple(result)


def _dataclass(node: MappingNode, cls: type[T], key: str, base: Any) -> T:
    hints = get_type_hints(cls)
    fields = {field.name: field for field in _fields(cls)}
    given: dict[str, tuple[Node, Node]] = {}
    for key_node, child in node.value:
        if key_node.value not in fields:
            way_out = _unknown(cls, key_node.value, key)
            fail(key_node, join(key, key_node.value), f"unknown key; {way_out}")
        given[key_node.value] = (key_node, child)
    values = {}
    for name, field in fields.items():
        default = _default(field, base if type(base) is cls else None)
        if name in given:
            values[name] = _build(given[name][1], hints[name], join(key, name), default)
        elif default is dataclasses.MISSING:
            fail(node, join(key, name), "is required")
        else:
            values[name] = default
    try:
        return cls(**values)
    except ValueError as error:
        name = re.split(r"\W", str(error), maxsplit=1)[0]
        place = place_of(given[name][1] if name in given else node)
        prefix = join(key, "") if name in fields or not key else f"{key}: "
        raise UserError(one_line(f"{place}: {prefix}{error}")) from None


def _unknown(cls: type, name: str, key: str) -> str:
    """Nearest key here, else a key of that name further down (density -> topology.density)."""
    names = [field.name for field in _fields(cls)]
    if not difflib.get_close_matches(name, names, n=1):
        for row in describe(cls):
            if row.key.rpartition(".")[2] == name:
                return f"did you mean {join(key, row.key)}?"
    return suggest(name, names)


# ---- scalars -------------------------------------------------------------------------------


def _none(node: ScalarNode, key: str) -> None:
    if not is_null(node):
        raise _Mismatch


def _bool(node: ScalarNode, key: str) -> bool:
    value = yaml.SafeLoader.bool_values.get(node.value.lower())
    if node.tag != TAG + "bool" or value is None:
        raise _Mismatch
    return value


def _int(node: ScalarNode, key: str) -> int:
    if node.tag != TAG + "int" or not _INT.fullmatch(node.value):
        raise _Mismatch
    return int(node.value.replace("_", ""))


def _float(node: ScalarNode, key: str) -> float:
    # YAML 1.1 asks for a dot, so it tags 3e-4 as text: only the quotes tell it from "3e-4".
    if node.style is None and _NOT_FINITE.fullmatch(node.value):
        fail(node, key, f"must be a finite number, got {node.value}")
    text = node.value.replace("_", "")
    if node.style is not None or not _FLOAT.fullmatch(text):
        raise _Mismatch
    if re.match(r"[-+]?0[0-9]", text) and "." not in text:
        raise _Mismatch
    value = float(text)
    if not math.isfinite(value):
        fail(node, key, f"must be a finite number, got {shown(node)}")
    return value


def _str(node: ScalarNode, key: str) -> str:
    if is_null(node):
        raise _Mismatch
    return node.value


_SCALARS: dict[Any, Any] = {
    types.NoneType: _none,
    bool: _bool,
    int: _int,
    float: _float,
    Path: lambda node, key: Path(_str(node, key)),
    str: _str,
}


# ---- annotations and messages --------------------------------------------------------------


def _fields(cls: Any) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(cls) if field.init]


def _default(field: dataclasses.Field[Any], base: Any) -> Any:
    if base is not None:
        return getattr(base, field.name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _members(tp: Any) -> list[Any]:
    """The types of a union in the order in which a value is tried: text last."""
    members = list(get_args(tp)) if get_origin(tp) in (Union, types.UnionType) else [tp]
    order = list(_SCALARS)
    return sorted(members, key=lambda m: order.index(m) if m in order else -1)


def _type_text(tp: Any) -> str:
    names = {types.NoneType: "null", bool: "true or false", int: "a whole number"}
    names |= {float: "a number", str: "text", Path: "a path", Node: "keys and values"}
    texts = []
    for member in _members(tp):
        origin, args = get_origin(member), get_args(member)
        if member in names:
            texts.append(names[member])
        elif origin is Literal:
            texts.append(f"one of {', '.join(map(str, args))}")
        elif origin is tuple and args[-1] is Ellipsis:
            texts.append(f"a list of {_type_text(args[0])}")
        elif origin is tuple:
            texts.append(f"a list of {len(args)}: {', '.join(map(_type_text, args))}")
        elif origin is dict:
            texts.append(f"keys with {_type_text(args[1])} each")
        elif dataclasses.is_dataclass(member):
            texts.append(f"keys ({', '.join(field.name for field in _fields(member))})")
        else:
            raise TypeError(f"annotation {member!r} is not supported in a config")
    return " or ".join(sorted(texts, key=lambda text: text == "null"))


def _hint(node: Node, tp: Any) -> str:
    """What the user may have meant, for the mistakes that are often made."""
    if not isinstance(node, ScalarNode):
        return ""
    members, text = _members(tp), node.value.strip()
    percent = _PERCENT.fullmatch(text)
    if percent and float in members:
        return f" ({text} is written {float(percent[1]) / 100:g})"
    if node.style in ("'", '"') and {int, float} & set(members) and _FLOAT.fullmatch(text):
        return " (remove the quotes)"
    if {int, float} & set(members) and re.fullmatch(r"[-+]?0[0-9]{1,30}", text):
        return f" (a leading zero means octal in YAML; write {int(text)})"
    if int in members and _FLOAT.fullmatch(text):
        value = float(text.replace("_", ""))
        return f" (write {int(value)})" if abs(value) < 2**63 and value.is_integer() else ""
    for member in members:
        close = difflib.get_close_matches(text, [str(arg) for arg in get_args(member)], n=1)
        if get_origin(member) is Literal and close:
            return f"; did you mean {close[0]}?"
    return ""


def _digested(value: Any) -> Any:
    """As `to_dict`, without younger fields at their defaults."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = ((field, getattr(value, field.name)) for field in _fields(type(value)))
        return {
            field.name: _digested(item)
            for field, item in found
            if not (_YOUNGER in field.metadata and item == field.default)
        }
    if isinstance(value, Mapping):
        return {str(key): _digested(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_digested(item) for item in value]
    return to_dict(value)


def _canonical(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf; an empty list or mapping is a leaf."""
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
    for name, item in pairs:
        if isinstance(item, Mapping | list) and item:
            yield from _leaves(item, join(key, name))
        else:
            yield join(key, name), item


def _describe(cls: type, key: str, base: Any) -> Iterator[FieldHelp]:
    hints, texts = get_type_hints(cls), _field_texts(cls)
    bounded = get_type_hints(cls, include_extras=True)
    for field in _fields(cls):
        name, tp = join(key, field.name), hints[field.name]
        default = _default(field, base)
        inner = False
        for member in _members(tp):
            suffix = {tuple: ".N", dict: ".NAME"}.get(get_origin(member), "")
            item = get_args(member)[-1 if suffix == ".NAME" else 0] if suffix else member
            if dataclasses.is_dataclass(item) and isinstance(item, type):
                inner = True
                same = default if type(default) is item else None
                yield from _describe(item, name + suffix, same)
        if not inner:
            required = default is dataclasses.MISSING
            shown = "required" if required else json.dumps(to_dict(default))
            bounds = bounds_text(bounded[field.name])
            number, null, _ = _type_text(tp).partition(" or null")
            text = f"{number} {bounds}{null}" if bounds else _type_text(tp)
            yield FieldHelp(name, text, shown, texts.get(field.name, ""))


def _field_texts(cls: type) -> dict[str, str]:
    """Field -> the string under it in the class body, base classes included."""
    texts: dict[str, str] = {}
    for parent in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(parent):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(parent)))
        except (OSError, TypeError, SyntaxError):  # made at run time: there is no source to read
            continue
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for field, after in zip(body, body[1:], strict=False):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                texts[field.target.id] = " ".join(str(after.value.value).split())
    return texts
