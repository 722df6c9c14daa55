"""Ranks that look for each other at a place that is taken, or where nobody is."""

import socket

from tests.events import free_port
from tests.launch.starter import Done, Starter

JOIN = ("--set", "health.join_seconds=1.5")


def start(starter: Starter, rank: int, port: int) -> Done:
    """One of two ranks; the other is never started."""
    env = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    words = starter.arguments("--run_dir", str(starter.folder / "run"), *JOIN)
    return starter.start(words, env).wait()


def test_a_port_in_use_is_said_with_the_way_out(starter):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = start(starter, 0, port)
    assert done.code == 64, done.err
    line = done.err.splitlines()[-1]
    assert f"sparsecl: the ranks cannot meet at 127.0.0.1:{port}" in line
    assert "--master_port" in line
    assert not (starter.folder / "run").exists()


def test_an_address_where_nobody_is(starter):
    """As a requeued job has it that was given the MASTER_ADDR of its last attempt."""
    port = free_port()
    done = start(starter, 1, port)
    assert done.code == 76, done.err
    assert f"rank 1 cannot reach rank 0 at 127.0.0.1:{port}" in done.err.splitlines()[-1]
