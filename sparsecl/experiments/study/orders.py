"""Orders of domains in a study file: names, or a word that fits any data.

given         as data.domains has them
reversed      the last one first
interleaved   every second one, then the others: b, d, a, c, e
"""

from collections.abc import Sequence
from typing import Literal

from sparsecl.errors import UserError

Order = Literal["given", "reversed", "interleaved"] | tuple[str, ...]


def named(order: Order, domains: Sequence[str], key: str) -> tuple[str, ...]:
    """Domain of each phase.

    Args:
        domains: names in data.domains.
        key: of the study file, for the error.

    Raises:
        UserError: the order names a domain that is not there.
    """
    if order == "given":
        return tuple(domains)
    if order == "reversed":
        return tuple(reversed(domains))
    if order == "interleaved":
        return (*domains[1::2], *domains[::2])
    for name in order:
        if name not in domains:
            raise UserError(f"{key}: there is no domain {name}; there are {', '.join(domains)}")
    return tuple(order)
