"""Who am I among the ranks: the tensor-parallel (tp) and data-parallel (dp) place of this process.

World ranks are laid out tp first: rank = dp_rank * tp_size + tp_rank, as in Megatron-core. All
functions work in a single process without a process group (tp and dp are then of size 1).
"""

import datetime
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as torch_dist
from megatron.core import parallel_state
from torch.distributed import distributed_c10d

from sparsecl import place
from sparsecl.config import differences
from sparsecl.config_nodes import one_line
from sparsecl.errors import PeerLostError, UserError, shortage
from sparsecl.files import out_of_reach

COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=30)  # data preparation of a rank may take long
POLL_SECONDS = 0.5  # between two questions of ranks that wait: for each other, for rank 0's work
SHOWN = 3  # differences of a rank that are named
TELL_SECONDS = 10.0  # that ranks have to read why they end
_STARTED_AS, _OTHERWISE, _TOLD = (f"sparsecl/{x}" for x in ("started_as", "otherwise", "told"))
SILENT_LOOKS = 60  # of rank 0, without a sign of a rank that waits as well


def rank() -> int:
    """World rank, also before `init` (from the launcher's environment)."""
    return torch_dist.get_rank() if is_initialized() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes of the run."""
    return torch_dist.get_world_size() if is_initialized() else int(os.environ.get("WORLD_SIZE", 1))


def is_initialized() -> bool:
    """True after `init` and before `shutdown`."""
    return torch_dist.is_available() and torch_dist.is_initialized()


def device() -> torch.device:
    """The device of this rank: its own GPU where CUDA is present, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", place.local_rank())
    return torch.device("cpu")


def check_sizes(tensor: int) -> None:
    """Raise UserError unless the world divides into tensor-parallel groups of size `tensor`."""
    if world_size() % tensor:
        raise UserError(
            f"parallel.tensor={tensor} does not divide the number of processes, {world_size()}. "
            f"Start a multiple of {tensor} processes, or lower parallel.tensor."
        )


def init(
    tensor: int = 1, *, join_seconds: float = 600.0, started_as: Mapping[str, Any] | None = None
) -> None:
    """Join the process group and form the tp and dp groups. Collective over the world.

    The place comes from RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as every launcher sets them;
    without them the process is alone.

    Args:
        join_seconds: how long to wait for the other ranks.
        started_as: what this rank was asked to do, as JSON can hold it; it must be the same on all.

    Raises:
        PeerLostError: naming the ranks that did not come.
        UserError: on all ranks, if one is asked to do something else than rank 0.
    """
    check_sizes(tensor)
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if world_size() == 1:
        # Nobody has to find this process, and the launcher's default port may be another job's.
        os.environ["MASTER_PORT"] = str(_free_port())
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(device())
    elif "OMP_NUM_THREADS" not in os.environ:
        # Ranks that share a machine share its cores; more threads than cores wait for each other.
        local = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or "1"
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(local)))
    if not torch_dist.is_initialized():
        global _num_waits
        _num_waits = 0
        # gloo beside nccl: small agreements and CPU tensors need no GPU.
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        torch_dist.init_process_group(
            backend,
            store=_meet(join_seconds, json.dumps(started_as or {})),
            rank=rank(),
            world_size=world_size(),
            timeout=COLLECTIVE_TIMEOUT,
        )
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor, create_gloo_process_groups=False
    )


def shutdown() -> None:
    """Leave the groups, so that a process can `init` again with other sizes."""
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    if is_initialized():
        torch_dist.destroy_process_group()


def _meet(seconds: float, started_as: str) -> Any:
    """The store that the ranks find each other by, once all of them are there. Collective.

    A rank that was started with another config would train along, with its own learning rate on its
    own text: a file that differs on its machine, or a rank of another job with the same port. So
    before anything else each rank compares its JSON `started_as` with that of rank 0.

    Ranks wait in Python, not in torch, so that they hear signals, and end soon without a rank that
    is lost: one of this machine that was seen and is gone, one that has come and then falls silent
    (found by rank 0), rank 0 itself once it has been there. Any other is waited for to the end.
    """
    where = f"{os.environ['MASTER_ADDR']}:{os.environ.get('MASTER_PORT')}"
    end = time.monotonic() + seconds
    try:
        if rank() > 0:
            _wait_for_port(end)
        store = _store(max(10.0, seconds), serve=True) if rank() == 0 else _connect(end)
        missing = _gather(store, end, started_as)
        otherwise = "" if missing else _otherwise(store)
    except (OSError, torch_dist.DistError) as error:
        text = str(error).splitlines()[0]
        if limit := shortage(error):
            raise limit from None
        if rank() > 0:
            raise PeerLostError(f"rank {rank()} cannot reach rank 0 at {where} ({text})") from None
        raise UserError(
            f"the ranks cannot meet at {where} ({text}). "
            "If another job uses the port, give this one its own: deepspeed --master_port PORT."
        ) from None
    if missing:
        raise PeerLostError(
            f"{world_size()} ranks are to meet at {where}; rank {', '.join(missing)} did not come "
            f"within {seconds:g} s. Look at what those ranks (or their nodes) say."
        )
    if otherwise:
        raise UserError(otherwise)
    return distributed_c10d.PrefixStore("sparsecl/group", store)


def _connect(end: float) -> Any:
    """The store of rank 0. torch would wait for ever for a listener that says nothing."""
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(_store(max(10.0, end - time.monotonic()), serve=False))
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
    keys = [f"sparsecl/here/{other}" for other in range(world_size())]
    compared = [f"sparsecl/compared/{other}" for other in range(world_size())]
    if rank() == 0:
        store.set(_STARTED_AS, started_as)
    beats: dict[str, bytes] = {}
    silent: dict[str, int] = dict.fromkeys(keys, 0)
    num_looks = 0
    while True:
        num_looks += 1
        store.set(keys[rank()], str(num_looks))
        if store.check([_STARTED_AS]) and not store.check([compared[rank()]]):
            _compare(store, started_as)
            store.set(compared[rank()], "yes")
        if store.check([*keys, *compared]):
            return []
        _check_siblings()
        if rank() == 0:
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
        text = f"rank {rank()} was not started as rank 0: {'; '.join(lines[:SHOWN])}{more}. Give "
        text += "all ranks one config, DeepSpeed JSON and command line. If they are the same, "
        text += "another job uses the port: deepspeed --master_port PORT gives this one its own."
        store.set(_OTHERWISE, one_line(text))


def _otherwise(store: Any) -> str:
    """That line, if one was left. Rank 0, with whom the store ends, is the last to know it."""
    if not store.check([_OTHERWISE]):
        return ""
    found: str = store.get(_OTHERWISE).decode()
    store.add(_TOLD, 1)
    end = time.monotonic() + TELL_SECONDS
    while rank() == 0 and store.add(_TOLD, 0) < world_size() and time.monotonic() < end:
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


def _store(seconds: float, *, serve: bool) -> Any:
    """A connection to the store at MASTER_ADDR:MASTER_PORT, or the store itself."""
    # torchrun keeps the store in its agent; its workers are all guests.
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return torch_dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        world_size(),
        is_master=serve and not agent,
        timeout=datetime.timedelta(seconds=seconds),
        wait_for_workers=False,
        multi_tenant=True,
    )


class StoreBoard:
    """A line of every rank, for the watchdogs; see watchdog.NoticeBoard.

    It has a connection of its own: the group's may be in use by a thread that hangs.
    """

    def __init__(self) -> None:
        self._connection = _store(10.0, serve=False)

    def post(self, line: str) -> None:
        self._connection.set(f"sparsecl/line/{rank()}", line)

    def lines(self) -> dict[int, str]:
        keys = {other: f"sparsecl/line/{other}" for other in range(world_size())}
        there = {other: key for other, key in keys.items() if self._connection.check([key])}
        return {other: self._connection.get(key).decode() for other, key in there.items()}


def is_lost_peer(error: BaseException) -> bool:
    """True if a collective failed because another rank is gone. torch says it in words only."""
    if isinstance(error, torch_dist.DistError):
        return True
    words = ("closed by peer", "reset by peer", "Broken pipe", "Socket closed", "Timed out waiting")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _grouped() -> bool:
    return is_initialized() and parallel_state.model_parallel_is_initialized()


def tp_size() -> int:
    """Number of ranks that share one copy of the model."""
    return parallel_state.get_tensor_model_parallel_world_size() if _grouped() else 1


def tp_rank() -> int:
    """Which slice of each split weight this rank holds."""
    return parallel_state.get_tensor_model_parallel_rank() if _grouped() else 0


def dp_size() -> int:
    """Number of copies of the model."""
    return parallel_state.get_data_parallel_world_size() if _grouped() else 1


def dp_rank() -> int:
    """Which copy of the model this rank belongs to."""
    return parallel_state.get_data_parallel_rank() if _grouped() else 0


def tp_group() -> torch_dist.ProcessGroup | None:
    """The ranks that share my copy of the model; None in a lone process."""
    found: Any = parallel_state.get_tensor_model_parallel_group() if _grouped() else None
    return found


def dp_group() -> torch_dist.ProcessGroup | None:
    """The ranks that hold the same slice of the model as I; None in a lone process."""
    found: Any = parallel_state.get_data_parallel_group() if _grouped() else None
    return found


def all_reduce(
    tensor: torch.Tensor, *, group: torch_dist.ProcessGroup | None = None, op: str = "sum"
) -> torch.Tensor:
    """Reduce `tensor` in place over `group` (default: the world) and return it. Collective.

    Args:
        op: "sum", "max" or "min".
    """
    if is_initialized() and torch_dist.get_world_size(group) > 1:
        ops = {
            "sum": torch_dist.ReduceOp.SUM,
            "max": torch_dist.ReduceOp.MAX,
            "min": torch_dist.ReduceOp.MIN,
        }
        torch_dist.all_reduce(tensor, op=ops[op], group=group)
    return tensor


def side_group() -> torch_dist.ProcessGroup | None:
    """A gloo group of all ranks for a thread beside the training loop; None in a lone process.

    Collective over the world. Two threads must not share a group: their collectives would meet in
    another order on every rank.
    """
    if not is_initialized() or world_size() == 1:
        return None
    found: Any = torch_dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)
    return found


def gather_objects(value: Any, *, group: torch_dist.ProcessGroup | None = None) -> list[Any]:
    """The `value` of every rank, in rank order, on all ranks. Collective over `group` (the world).

    For small facts of our own processes (pickled by torch), never for anything read from a file.
    """
    if not is_initialized() or torch_dist.get_world_size(group) == 1:
        return [value]
    values: list[Any] = [None] * torch_dist.get_world_size(group)
    torch_dist.all_gather_object(values, value, group=group)
    return values


def agree(
    action: Callable[[], Any],
    *,
    only_first: bool = False,
    group: torch_dist.ProcessGroup | None = None,
) -> Any:
    """Run `action` on all ranks, or on rank 0 alone, and fail on all ranks if it fails on one.

    Collective over the world, by way of `group` if one is given (see `side_group`). Without it,
    ranks that succeeded would wait for ever in their next collective.

    Returns:
        This rank's result; with `only_first`, rank 0's result, on all ranks.

    Raises:
        The exception of the first rank that failed: the same on all ranks if it is a UserError.
    """
    result, problem = None, None
    if not only_first or rank() == 0:
        try:
            result = action()
        except Exception as error:  # whatever it is, every rank must hear of it
            known = error if isinstance(error, UserError) else shortage(error)
            problem = known or out_of_reach(error) or error
    told = problem if problem is None or isinstance(problem, UserError) else repr(problem)
    reports = gather_objects((told, result if only_first else None), group=group)
    for other, (found, _) in enumerate(reports):
        if isinstance(found, UserError):
            found.agreed = True
            raise found
        if found is not None:
            raise RuntimeError(f"rank {other}: {found}") from problem
    return reports[0][1] if only_first else result


def agree_at_length(action: Callable[[], Any]) -> Any:
    """`agree` with `only_first`, for work of rank 0 that may outlast COLLECTIVE_TIMEOUT.

    The others ask the store until rank 0 says that it is done, for hours if need be. Rank 0's
    process holds the store (under torchrun the agent, which ends all ranks if one dies), and
    answers for it even while Python is busy: if rank 0 is gone, so is the store, and they hear it.

    Collective over the world. Returns and raises as `agree`; and PeerLostError on the others.
    """
    global _num_waits
    if not is_initialized() or world_size() == 1:
        return agree(action, only_first=True)
    _num_waits += 1
    key = f"sparsecl/done/{_num_waits}"
    connection = _store(10.0, serve=False)
    if rank() > 0:
        _wait_for(connection, key)

    def told() -> Any:
        try:
            return action()
        finally:
            connection.set(key, "yes")

    return agree(told, only_first=True)


_num_waits = 0
"""Calls of agree_at_length since `init`: the same on all ranks, so it names the occasion."""


def _wait_for(connection: Any, key: str) -> None:
    try:
        while not connection.check([key]):
            time.sleep(POLL_SECONDS)
    except torch_dist.DistError as error:
        text = str(error).splitlines()[0]
        raise PeerLostError(f"rank {rank()} waited for rank 0, which is gone ({text})") from None


def barrier() -> None:
    """Wait until all ranks are here. Collective over the world."""
    all_reduce(torch.zeros(1))


class DeepSpeedMpu:
    """The groups under the names that DeepSpeed's `mpu=` argument asks for.

    Megatron-core dropped the `model_parallel` names; here model parallel is tensor parallel.
    """

    get_model_parallel_rank = staticmethod(tp_rank)
    get_model_parallel_world_size = staticmethod(tp_size)
    get_model_parallel_group = staticmethod(tp_group)
    get_tensor_model_parallel_rank = staticmethod(tp_rank)
    get_tensor_model_parallel_world_size = staticmethod(tp_size)
    get_tensor_model_parallel_group = staticmethod(tp_group)
    get_data_parallel_rank = staticmethod(dp_rank)
    get_data_parallel_world_size = staticmethod(dp_size)
    get_data_parallel_group = staticmethod(dp_group)

    @staticmethod
    def get_tensor_model_parallel_src_rank() -> int:
        """World rank of the first rank of my tp group."""
        return dp_rank() * tp_size()
