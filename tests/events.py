"""How tests wait: for an event, never for a time that a machine must keep."""

import secrets
import socket
import time
from collections.abc import Callable
from typing import TypeVar

HANG = 400.0
"""Seconds. It only ends what would never end; a busy machine takes a minute for a start."""

Found = TypeVar("Found")


def wait_for(
    look: Callable[[], Found], what: str, *, alive: Callable[[], bool] = lambda: True
) -> Found:
    """The first true value of `look`; fails if that which should bring it about ends before."""
    end = time.monotonic() + HANG
    while not (found := look()):
        if not alive():
            found = look()  # it may have come with the end
            assert found, f"ended before {what}"
            return found
        assert time.monotonic() < end, f"waited {HANG:g} s for {what}"
        time.sleep(0.005)
    return found


def free_port() -> int:
    """A port that nobody listens on now.

    It lies below those that the kernel gives to connections (from 32768 on), so that none of the
    many that ranks make can take it before its listener comes.
    """
    for _ in range(100):
        port = 15_000 + secrets.randbelow(17_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")
