"""Worker processes that are started once and run many multi-rank cases.

A session forks four workers from the server of tests/launch/starter.py, which has imported torch
and DeepSpeed, and every case uses the first `world_size` of them as its ranks, with a process group
of its own.
"""

import gc
import importlib
import multiprocessing
import os
import queue
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.events import HANG, free_port


class Pool:
    """Workers on this machine, as ranks of gloo process groups."""

    def __init__(self, size: int) -> None:
        self.size = size
        context = multiprocessing.get_context("forkserver")
        self.results: Any = context.Queue()
        self.requests: list[Any] = [context.Queue() for _ in range(self.size)]
        self.workers = [
            context.Process(target=_serve, args=(rank, request, self.results), daemon=True)
            for rank, request in enumerate(self.requests)
        ]
        for worker in self.workers:
            worker.start()

    def run(self, function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
        """Call a module-level `function(*args)` on ranks 0..world_size-1; their results by rank.

        Raises:
            AssertionError: with the traceback of the first rank that raised, or on a hang.
        """
        assert not self.broken, "the pool is broken by an earlier hang"
        port = free_port()
        for rank in range(world_size):
            env = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            self.requests[rank].put((function.__module__, function.__qualname__, args, env))
        answers: dict[int, Any] = {}
        problems: list[str] = []
        try:
            for _ in range(world_size):
                rank, value, problem = self.results.get(timeout=HANG)
                answers[rank] = value
                if problem:
                    problems.append(f"rank {rank}:\n{problem}")
        except queue.Empty:
            self.close()
            problems.append(f"no answer from ranks {set(range(world_size)) - set(answers)}")
        assert not problems, problems[0]
        return [answers[rank] for rank in range(world_size)]

    @property
    def broken(self) -> bool:
        return not all(worker.is_alive() for worker in self.workers)

    def close(self) -> None:
        """End the workers."""
        for worker in self.workers:
            worker.kill()
            worker.join()


def _serve(rank: int, requests: Any, results: Any) -> None:
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    caches = _freeze_modules()
    while True:
        module, name, args, env = requests.get()
        os.environ.update(env)
        value, problem = None, None
        try:
            value = getattr(importlib.import_module(module), name)(*args)
        except BaseException:
            problem = traceback.format_exc()
        finally:
            _forget_groups(caches)
        results.put((rank, value, problem))


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _freeze_modules() -> list[Any]:
    """Import what cases need, and take it out of the garbage collector's sight: a million objects
    that it would look at after every case. Returns the caches of DeepSpeed's functions."""
    import deepspeed.runtime.zero.stage3  # noqa: F401

    import sparsecl.engine.run  # noqa: F401

    gc.collect()
    wrappers = (o for o in gc.get_objects() if type(o).__name__ == "_lru_cache_wrapper")
    caches = [o for o in wrappers if str(o.__module__).startswith("deepspeed")]
    gc.freeze()
    return caches


def _leave_groups() -> None:
    """Leave all process groups at the same time: each waits 10 ms for its thread, and a run has
    eighteen."""
    from torch.distributed import distributed_c10d

    from sparsecl import dist

    groups = list(distributed_c10d._world.pg_map)
    dist.shutdown()

    def drop(_: int) -> None:
        groups.pop()  # the last that holds it

    with ThreadPoolExecutor(len(groups) or 1) as threads:
        list(threads.map(drop, range(len(groups))))


def _forget_groups(caches: list[Any]) -> None:
    """Bring torch.distributed, Megatron and DeepSpeed back to where a fresh process is."""
    import sys

    # Engines hold process groups, and every group has threads that wake up all the time: after
    # hundreds of cases they would take all cores.
    for thing in gc.get_objects():
        if type(thing).__name__ == "DeepSpeedEngine" and "optimizer" in thing.__dict__:
            thing.destroy()
            optimizer = thing.optimizer
            thing.__dict__.clear()
            optimizer.__dict__.clear()  # ZeRO-3's is held by hooks on the module's class
    offload = sys.modules.get("deepspeed.runtime.zero.parameter_offload")
    if offload is not None:
        # A global list and the caches of methods keep every model that ZeRO-3 has trained.
        offload.FWD_MODULE_STACK.clear()
    for cache in caches:
        cache.cache_clear()
    gc.collect()
    _leave_groups()
    if "deepspeed.comm.comm" in sys.modules:
        sys.modules["deepspeed.comm.comm"].cdb = None
        importlib.reload(sys.modules["deepspeed.utils.groups"])
    if offload is not None:
        # ZeRO-3 numbers modules and parameters per process and compares the numbers over ranks;
        # workers have run different cases before.
        offload.DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__[0][0] = 0
        sys.modules["deepspeed.runtime.zero.partition_parameters"].Init.param_id = 0
