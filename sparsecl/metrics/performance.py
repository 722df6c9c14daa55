"""What a run cost, as its last record says: read with care, and put into a few lines of text."""

from typing import Any

# Names of figures by kind. None = it was not measured; MFU needs a known peak, communication
# two ranks.
SHARES = (
    "mfu",
    "loader_wait_share",
    "communication_share",
    "exposed_communication_share",
    "goodput",
    "goodput_of_attempts",
)
REALS = ("tokens_per_second", *SHARES, "wall_seconds")
SHOWN = {
    "mfu": "MFU",
    "loader_wait_share": "waiting for data",
    "communication_share": "communication",
}
COUNTS = ("ranks", "peak_memory_bytes", "attempts")
BLOCKS = {
    "step_seconds": ("min", "median", "max"),
    "parts": (
        "startup",
        "training",
        "evaluation",
        "checkpoint",
        "lost",
        "other",
        "between_attempts",
    ),
}


def read_performance(value: Any) -> dict[str, Any]:
    """The block `performance` of a record of kind "end", with every known name and no other.

    Raises:
        ValueError: if it holds anything but numbers where numbers belong.
    """
    found = _object(value, "performance")
    blocks = {name: _object(found.get(name) or {}, name) for name in BLOCKS}
    return {
        **{name: _number(found.get(name), name) for name in REALS},
        **{name: _count(found.get(name), name) for name in COUNTS},
        **{
            block: {name: _number(blocks[block].get(name), name) for name in names}
            for block, names in BLOCKS.items()
        },
    }


def performance_lines(performance: dict[str, Any] | None) -> list[str]:
    """At most three lines for a terminal; what is not known is left out."""
    if performance is None:
        return []
    time, memory = performance["wall_seconds"], performance["peak_memory_bytes"]
    attempts, goodput = performance["attempts"], performance["goodput"]
    lines = [", ".join(_speed(performance))]
    if time is not None and goodput is not None:
        within = performance["goodput_of_attempts"]
        more = f" ({within:.1%} without the time between)" if attempts != 1 and within else ""
        starts = f"{attempts} attempt{'s' if attempts != 1 else ''}"
        lines.append(f"wall time: {time:,.0f} s in {starts}, goodput {goodput:.1%}{more}")
    if memory is not None:
        lines.append(f"memory: {memory / 2**30:.2f} GiB at most in one process")
    return [line for line in lines if line]


def _speed(performance: dict[str, Any]) -> list[str]:
    speed, step = performance["tokens_per_second"], performance["step_seconds"]
    parts = [f"speed: {speed:,.0f} tokens/s"] if speed is not None else []
    if step["median"] is not None:
        parts.append(f"step {step['median'] * 1e3:,.1f} ms")
    for key, name in SHOWN.items():
        if performance[key] is not None:
            parts.append(f"{name} {performance[key]:.1%}")
    return parts


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object, got {ascii(value)[:80]}")
    return value


def _number(value: Any, name: str) -> float | None:
    """A number of a usual size, or nothing."""
    if value is None:
        return None
    # bool is a kind of int, and no number of ours; NaN fails the comparison.
    if isinstance(value, bool) or not isinstance(value, float | int) or not abs(value) < 2**63:
        raise ValueError(f"{name} must be a number, got {ascii(value)[:80]}")
    return float(value)


def _count(value: Any, name: str) -> int | None:
    if value is not None and (type(value) is not int or not 0 <= value < 2**63):
        raise ValueError(f"{name} must be a count, got {ascii(value)[:80]}")
    return value
