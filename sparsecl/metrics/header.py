"""The record of kind "run", the first of a run: what it states of the whole run, checked.

scored        domain -> text -> documents, windows and predicted tokens behind a score; the texts
              are "ends" (rows of the matrix), "inside" (inside a phase), and "all" that there is
train_tokens  domain -> tokens of its training text
planned       for each phase: domain -> tokens that are planned to be read, replayed ones included
flops         planned for all new tokens, by live weights: "training" (forward and backward, with
              the weights that live at each step), "dense_gradients" (of absent weights) and
              "scores" (of the graph), which methods ask for; "executed": all, as the backends do it
methods       name -> letters of its flags (methods/facts.py), and the elements of all parameters
              that it adds to the model; left out where the run has no method
"""

from typing import Any

TEXTS = ("ends", "inside", "all")
COUNTS = ("documents", "windows", "tokens")


def domains_and_order(record: dict[str, Any]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names of the domains, and which of them each phase trains.

    Raises:
        ValueError: they are not that.
    """
    domains, order = record.get("domains"), record.get("order")
    if not isinstance(domains, list) or not all(isinstance(name, str) for name in domains):
        raise ValueError(f"domains must be a list of names, got {domains!r}")
    if not all(name.isprintable() for name in domains):  # they are shown in terminals
        raise ValueError(f"domains must be names that can be printed, got {shown(domains)}")
    if not domains or len(set(domains)) < len(domains):
        raise ValueError(f"domains must be distinct names, at least one, got {domains}")
    if not isinstance(order, list) or not all(
        type(index) is int and -1 <= index < len(domains) for index in order
    ):
        raise ValueError(f"order must list indices of the {len(domains)} domains, got {order!r}")
    return tuple(domains), tuple(order)


# What the header says beside domains and order: key -> type of its values.
_HEADER: dict[str, tuple[type, ...]] = {
    "density": (int, float, type(None)),
    "parameters": (int,),
    "flops": (int, float),
    "digests": (str, type(None)),
    "versions": (str,),
    "entropy_rate": (int, float),
    "overlap": (int, float, type(None)),
    "train_tokens": (int,),
}


def check_header(record: dict[str, Any]) -> None:
    """Check what stands in it beside domains and order; keys may be missing, as in older runs.

    Raises:
        ValueError: a value is of another kind.
    """
    for key, kinds in _HEADER.items():
        found = record.get(key, {})
        # bool is a kind of int, and no number of ours.
        good = isinstance(found, dict) and all(type(value) in kinds for value in found.values())
        if not good or not all(_is_plain(value) for value in found.values()):
            raise ValueError(f"{key} has values that are none, got {shown(found)}")
    _check_scored(record)
    _check_planned(record)
    _check_methods(record)
    if not isinstance(record.get("config", {}), dict):
        raise ValueError(f"config must be an object, got {shown(record['config'])}")
    if not _is_plain(record.get("name") or ""):
        raise ValueError(f"name must be a name that can be printed, got {shown(record['name'])}")


def _check_scored(record: dict[str, Any]) -> None:
    found = record.get("scored", {})
    domains = found.values() if isinstance(found, dict) else [None]
    good = all(
        isinstance(texts, dict) and set(texts) == set(TEXTS) and all(map(_is_size, texts.values()))
        for texts in domains
    )
    if not good:
        raise ValueError(f"scored must give {', '.join(COUNTS)} of each text, got {shown(found)}")


def _is_size(sizes: Any) -> bool:
    return (
        isinstance(sizes, dict) and set(sizes) == set(COUNTS) and all(map(is_count, sizes.values()))
    )


def is_count(value: Any) -> bool:
    """An integer >= 0 of a usual size."""
    return type(value) is int and 0 <= value < 2**63


def _check_methods(record: dict[str, Any]) -> None:
    found = record.get("methods", {})
    good = isinstance(found, dict) and all(
        name.isprintable()
        and isinstance(method, dict)
        and isinstance(method.get("flags"), str)
        and method["flags"].isprintable()
        and is_count(method.get("extra_parameters"))
        for name, method in found.items()
    )
    if not good:
        raise ValueError(
            f"methods must give flags and extra_parameters of each, got {shown(found)}"
        )


def _check_planned(record: dict[str, Any]) -> None:
    found = record.get("planned", [])
    good = isinstance(found, list) and all(
        isinstance(phase, dict) and all(map(is_count, phase.values())) for phase in found
    )
    if not good or ("planned" in record and len(found) != len(record["order"])):
        raise ValueError(f"planned must give tokens by domain of each phase, got {shown(found)}")


def _is_plain(value: Any) -> bool:
    """Text of one line without control characters, or a number of a usual size."""
    if isinstance(value, str):
        return value.isprintable()
    return not isinstance(value, int) or abs(value) < 2**63


def shown(value: Any) -> str:
    """A value for a message: one line, and not longer than that."""
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."
