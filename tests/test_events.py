"""Waiting for events, and that no test bounds by hand how long a machine may take."""

import ast
import socket
from pathlib import Path

import pytest

from tests import events
from tests.events import free_port, wait_for

TESTS = Path(__file__).resolve().parent


def bounds(text: str) -> list[int]:
    """Lines with a call that gives up after a number of seconds that stands there."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            method = isinstance(node.func, ast.Attribute) and node.func.attr in ("join", "wait")
            given = [word.value for word in node.keywords if word.arg == "timeout"]
            given += node.args[:1] if method else []
            if any(isinstance(g, ast.Constant) and isinstance(g.value, int | float) for g in given):
                found.append(node.lineno)
    return found


def test_what_is_a_bound():
    text = (
        'run(a, timeout=60)\np.join(5)\np.wait(HANG)\nrun(timeout=HANG)\n",".join("ab")\np.wait()\n'
    )
    assert bounds(text) == [1, 2]


def test_no_test_sets_a_time_that_a_machine_must_keep():
    files = sorted(TESTS.rglob("*.py"))
    found = [f"{path}:{line}" for path in files for line in bounds(path.read_text("utf-8"))]
    assert not found, "wait with tests.events.HANG, which only ends a hang"


def test_wait_for_returns_what_it_found():
    looks = iter([0, "", "found"])
    assert wait_for(lambda: next(looks), "a word") == "found"


def test_what_comes_with_the_end_has_come():
    looks = iter(["", "found"])
    assert wait_for(lambda: next(looks), "a word", alive=lambda: False) == "found"
    with pytest.raises(AssertionError, match="ended before a word"):
        wait_for(lambda: "", "a word", alive=lambda: False)


def test_a_hang_ends(monkeypatch):
    monkeypatch.setattr(events, "HANG", 0.0)
    with pytest.raises(AssertionError, match="waited 0 s for a word"):
        wait_for(lambda: "", "a word")


def test_a_free_port_is_not_one_of_those_that_connections_get():
    port = free_port()
    with socket.socket() as listener, socket.socket() as caller:
        listener.bind(("127.0.0.1", port))
        listener.listen()
        caller.connect(("127.0.0.1", port))
        assert caller.getsockname()[1] > 32_000 > port
