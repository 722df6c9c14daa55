"""One rank makes a collective less than the other, or one of another size."""

import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.events import HANG, free_port
from tests.launch.starter import RANK_VARIABLES


def take_part(rank: int, port: int, fault: str, folder: str) -> None:
    """In a forked process: three sums; on rank 1 one of them is wrong."""
    handle = os.open(f"{folder}/err_{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(handle, 2)
    place = (rank, rank, 2, "127.0.0.1", port)
    os.environ.update(zip(RANK_VARIABLES, map(str, place), strict=True))
    import torch

    from sparsecl import dist, meeting, watchdog

    dist.init(join_seconds=HANG)
    dist.barrier()
    # The rank whose sum meets nobody is the one that its watchdog ends.
    patience = HANG if fault == "skipped" and rank == 1 else 0.5
    dog = watchdog.Watchdog(patience, rank=rank, board=meeting.StoreNoticeBoard(), poll=0.1)
    dog.start()
    try:
        for number in range(3):
            watchdog.beat(f"sum {number}")
            if fault == "skipped" and rank == 1 and number == 1:
                continue
            size = 100_000 if fault == "size" and rank == 1 and number == 1 else 10
            dist.all_reduce(torch.ones(size))
        while True:  # rank 1 is through and does something else; it is not the one that hangs
            watchdog.beat("other work")
            time.sleep(0.05)
    except RuntimeError as error:
        print(f"noticed: {error}", file=sys.stderr, flush=True)
        os._exit(76 if dist.is_lost_peer(error) else 70)


@pytest.mark.fault("P13")
@pytest.mark.dist
@pytest.mark.parametrize("fault", [pytest.param("skipped", marks=pytest.mark.slow), "size"])
def test_ranks_that_are_out_of_step_end(server, tmp_path, fault):
    context: Any = multiprocessing.get_context("forkserver")
    port = free_port()
    ranks = [
        context.Process(target=take_part, args=(rank, port, fault, str(tmp_path)))
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    ranks[0].join(HANG)
    if fault == "skipped":
        ranks[1].kill()
    ranks[1].join(HANG)
    codes = [process.exitcode for process in ranks]
    said = [(Path(tmp_path) / f"err_{rank}").read_text() for rank in range(2)]
    if fault == "skipped":
        # The last sum of rank 0 meets nobody, and its watchdog says where that is.
        assert codes == [76, -9], said
        assert "rank 0: nothing has happened" in said[0] and "since: sum 2" in said[0]
        assert "since: other work" in said[0]
    else:
        # gloo ends the rank that is sent more than it asked for, and says so; the other notices.
        assert sorted(codes) in ([-6, 76], [70, 76], [76, 76]), said
        assert any("enforce fail" in text or "since: sum" in text for text in said)
