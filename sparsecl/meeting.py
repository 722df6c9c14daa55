"""How the ranks of a run find each other, and a store that they share afterwards.

Torch's own waiting is replaced: ranks wait in Python, so that they hear signals, and end soon
without a rank that is lost.
"""

import datetime
import json
import os
import socket
import threading
import time
from typing import Any

import torch.distributed as torch_dist
from torch.distributed import distributed_c10d

from sparsecl import place
from sparsecl.config import differences
from sparsecl.config_nodes import one_line
from sparsecl.errors import PeerLostError, UserError, shortage

POLL_SECONDS = 0.5  # between two questions of ranks that wait: for each other, for rank 0's work
SHOWN = 3  # differences of a rank that are named
TELL_SECONDS = 10.0  # that ranks have to read why they end
_STARTED_AS, _OTHERWISE, _TOLD = (f"sparsecl/{x}" for x in ("started_as", "otherwise", "told"))
SILENT_LOOKS = 60  # of rank 0, without a sign of a rank that waits as well


def meet(seconds: float, started_as: str) -> Any:
    """The store that the ranks find each other by, once all of them are there. Collective.

    A rank that was started with another config would train along, with its own learning rate on its
    own text: a file that differs on its machine, or a rank of another job with the same port. So
    before anything else each rank compares its JSON `started_as` with that of rank 0.

    A rank is lost if it is one of this machine that was seen and is gone, if it has come and then
    falls silent (found by rank 0), and rank 0 itself once it has been there. Any other is waited
    for to the end.

    Raises:
        PeerLostError: naming the ranks that did not come, or are lost.
        UserError: on all ranks, if one was started as something else.
    """
    where = f"{os.environ['MASTER_ADDR']}:{os.environ.get('MASTER_PORT')}"
    end = time.monotonic() + seconds
    try:
        if place.rank() > 0:
            _wait_for_port(end)
        store = open_store(max(10.0, seconds), serve=True) if place.rank() == 0 else _connect(end)
        missing = _gather(store, end, started_as)
        otherwise = "" if missing else _otherwise(store)
    except (OSError, torch_dist.DistError) as error:
        text = str(error).splitlines()[0]
        if limit := shortage(error):
            raise limit from None
        if place.rank() > 0:
            raise PeerLostError(
                f"rank {place.rank()} cannot reach rank 0 at {where} ({text})"
            ) from None
        raise UserError(
            f"the ranks cannot meet at {where} ({text}). "
            "If another job uses the port, give this one its own: deepspeed --master_port PORT."
        ) from None
    if missing:
        raise PeerLostError(
            f"{place.world_size()} ranks are to meet at {where}; rank {', '.join(missing)} did not "
            f"come within {seconds:g} s. Look at what those ranks (or their nodes) say."
        )
    if otherwise:
        raise UserError(otherwise)
    return distributed_c10d.PrefixStore("sparsecl/group", store)


def _connect(end: float) -> Any:
    """The store of rank 0. torch would wait for ever for a listener that says nothing."""
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(open_store(max(10.0, end - time.monotonic()), serve=False))
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while thread.is_alive():
        _check_siblings()
        if time.monotonic() > end:
            raise TimeoutError("who listens there does not answer, and is no rank 0")
        thread.join(POLL_SECONDS)
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def _wait_for_port(end: float) -> None:
    """Until somebody listens at the meeting place. Raises OSError at the time `end`."""
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    while True:
        try:
            with socket.create_connection(address, timeout=10.0):
                return
        except OSError:
            _check_siblings()
            if time.monotonic() > end:
                raise
        time.sleep(POLL_SECONDS)


def _gather(store: Any, end: float, started_as: str) -> list[str]:
    """Wait until all ranks have come and compared. Returns those that have not come at `end`."""
    keys = [f"sparsecl/here/{other}" for other in range(place.world_size())]
    compared = [f"sparsecl/compared/{other}" for other in range(place.world_size())]
    if place.rank() == 0:
        store.set(_STARTED_AS, started_as)
    beats: dict[str, bytes] = {}
    silent: dict[str, int] = dict.fromkeys(keys, 0)
    num_looks = 0
    while True:
        num_looks += 1
        store.set(keys[place.rank()], str(num_looks))
        if store.check([_STARTED_AS]) and not store.check([compared[place.rank()]]):
            _compare(store, started_as)
            store.set(compared[place.rank()], "yes")
        if store.check([*keys, *compared]):
            return []
        _check_siblings()
        if place.rank() == 0:
            # Looks are counted, not seconds: a machine that was suspended has lost nobody.
            for key in (key for key in keys if store.check([key])):
                beat = store.get(key)
                silent[key] = silent[key] + 1 if beats.get(key) == beat else 0
                beats[key] = beat
            _check_lost([keys.index(key) for key in keys if silent[key] > SILENT_LOOKS])
        if time.monotonic() > end:
            return [str(other) for other, key in enumerate(keys) if not store.check([key])]
        time.sleep(POLL_SECONDS)


def _compare(store: Any, mine: str) -> None:
    """Leave a line for all ranks if rank 0 was started as something else."""
    first = store.get(_STARTED_AS).decode()
    lines = differences(json.loads(first), json.loads(mine))
    if lines:
        more = f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
        text = f"rank {place.rank()} was not started as rank 0: {'; '.join(lines[:SHOWN])}{more}. "
        text += "Give all ranks one config, DeepSpeed JSON and command line. If they are the same, "
        text += "another job uses the port: deepspeed --master_port PORT gives this one its own."
        store.set(_OTHERWISE, one_line(text))


def _otherwise(store: Any) -> str:
    """That line, if one was left. Rank 0, with whom the store ends, is the last to know it."""
    if not store.check([_OTHERWISE]):
        return ""
    found: str = store.get(_OTHERWISE).decode()
    store.add(_TOLD, 1)
    end = time.monotonic() + TELL_SECONDS
    while place.rank() == 0 and store.add(_TOLD, 0) < place.world_size() and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
    return found


def _check_siblings() -> None:
    _check_lost(place.lost_siblings())


def _check_lost(lost: list[int]) -> None:
    if lost:
        raise PeerLostError(
            f"rank {', '.join(map(str, lost))} has ended, or does not run, before all ranks had "
            "met. What ended it stands in its own output."
        )


def open_store(seconds: float, *, serve: bool) -> Any:
    """A connection to the store at MASTER_ADDR:MASTER_PORT, or the store itself."""
    # torchrun keeps the store in its agent; its workers are all guests.
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return torch_dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        place.world_size(),
        is_master=serve and not agent,
        timeout=datetime.timedelta(seconds=seconds),
        wait_for_workers=False,
        multi_tenant=True,
    )


class StoreNoticeBoard:
    """A line of every rank, for the watchdogs; see watchdog.NoticeBoard.

    It has a connection of its own: the group's may be in use by a thread that hangs.
    """

    def __init__(self) -> None:
        self._connection = open_store(10.0, serve=False)

    def post(self, line: str) -> None:
        self._connection.set(f"sparsecl/line/{place.rank()}", line)

    def lines(self) -> dict[int, str]:
        keys = {other: f"sparsecl/line/{other}" for other in range(place.world_size())}
        there = {other: key for other, key in keys.items() if self._connection.check([key])}
        return {other: self._connection.get(key).decode() for other, key in there.items()}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
