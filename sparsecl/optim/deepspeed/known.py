"""Reading an attribute of DeepSpeed that its interface does not promise."""

import importlib.metadata
from typing import Any

from sparsecl.errors import UserError

VERSION = "0.19.8"
"""The version whose names are known here."""


def take(owner: Any, name: str) -> Any:
    """`owner.name`.

    Raises:
        UserError: there is no such attribute: another version of DeepSpeed.
    """
    try:
        return getattr(owner, name)
    except AttributeError:
        raise unknown(f"its {type(owner).__name__} has no {name}") from None


def unknown(what: str) -> UserError:
    """The error for a DeepSpeed that is not as it is known here."""
    found = importlib.metadata.version("deepspeed")
    return UserError(
        f"DeepSpeed {found}: {what}, so weights cannot be found for sure. This version of sparsecl "
        f"knows DeepSpeed {VERSION}: pip install deepspeed=={VERSION}"
    )
