"""Bounds of numbers in the types of a config, `every: Annotated[int, Ge(1)]`; and names of runs."""

import operator
import re
from dataclasses import fields
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

_KINDS = (
    (Ge, "ge", ">=", operator.ge),
    (Gt, "gt", ">", operator.gt),
    (Le, "le", "<=", operator.le),
    (Lt, "lt", "<", operator.lt),
)


def check_bounds(instance: Any) -> None:
    """Raise ValueError, beginning with the field's name, where a number of a dataclass is outside
    the bounds of its type; None is inside, NaN is not."""
    hints = get_type_hints(type(instance), include_extras=True)
    for field in fields(instance):
        value = getattr(instance, field.name)
        bounds = _bounds(hints[field.name]) if value is not None else []
        if not all(test(value, bound) for _, bound, test in bounds):
            raise ValueError(f"{field.name} must be {bounds_text(hints[field.name])}, got {value}")


def check_name(name: str) -> None:
    """Raise ValueError for what cannot be the name of a run, which is in its folder's name."""
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
        raise ValueError(f"name must be made of letters, digits, '.', '_' and '-', got {name!r}")


def bounds_text(tp: Any) -> str:
    """For example ">= 0 and < 1"; empty for a type without bounds."""
    return " and ".join(
        f"{sign} {bound if isinstance(bound, int) else format(bound, 'g')}"
        for sign, bound, _ in _bounds(tp)
    )


def _bounds(tp: Any) -> list[tuple[str, Any, Any]]:
    if get_origin(tp) is not Annotated:
        return []
    return [
        (sign, getattr(mark, attribute), test)
        for mark in get_args(tp)[1:]
        for kind, attribute, sign, test in _KINDS
        if isinstance(mark, kind)
    ]
