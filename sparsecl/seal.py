"""Files of JSON lines that only grow: how far one goes, and lines that vouch for those before them.

A sealed line ends in `, "sealed": "HEX"}`, where HEX is the sha256 of everything in the file before
that comma. So whoever has only the file sees whether something before its last sealed line, or in
it, is not as it was written.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_SEAL = re.compile(rb', "sealed": "([0-9a-f]{64})"\}\n?\Z')


@dataclass(frozen=True)
class Extent:
    """The beginning of a file: its size, and its content."""

    num_bytes: int
    sha256: str
    """Hex digest of them."""

    @staticmethod
    def of(content: bytes) -> "Extent":
        """All of `content`."""
        return Extent(len(content), hashlib.sha256(content).hexdigest())


def readable_lines(content: bytes) -> Iterator[dict[str, Any]]:
    """Those lines that are JSON objects: after a power cut some are not."""
    for line in content.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(found := json.loads(line), dict):
                yield found


EMPTY = Extent.of(b"")


def seal(line: bytes, before: "hashlib._Hash") -> bytes:
    """The same line, sealed.

    Args:
        line: a JSON object that is not empty, with its newline.
        before: the sha256 of all lines before it; unchanged.
    """
    body = line.removesuffix(b"}\n")
    digest = before.copy()
    digest.update(body)
    return body + b', "sealed": "' + digest.hexdigest().encode() + b'"}\n'


def sealed_lines(content: bytes) -> Iterator[tuple[bytes, bool]]:
    """Yield each line with its newline, and whether it is sealed.

    Raises:
        ValueError: at a sealed line, if it or something before it has changed.
    """
    digest = hashlib.sha256()
    for line in content.splitlines(keepends=True):
        found = _SEAL.search(line)
        if found:
            until = digest.copy()
            until.update(line[: found.start()])
            if until.hexdigest().encode() != found[1]:
                raise ValueError(
                    "this line or one before it is not as it was written (sha256 differs)"
                )
        digest.update(line)
        yield line, found is not None
