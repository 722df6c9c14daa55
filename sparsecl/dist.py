"""Who am I among the ranks: the tensor-parallel (tp) and data-parallel (dp) place of this process.

World ranks are laid out tp first: rank = dp_rank * tp_size + tp_rank, as in Megatron-core. All
functions work in a single process without a process group (tp and dp are then of size 1), and in a
process group that is not of `init` (all of it is then dp). Several processes have Megatron-core's
groups; a lone one does not import it, which saves seconds at every start.
"""

import datetime
import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as torch_dist

from sparsecl import meeting, place
from sparsecl.errors import PeerLostError, UserError, shortage
from sparsecl.files import out_of_reach

COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=30)  # data preparation of a rank may take long


def rank() -> int:
    """World rank, also before `init` (from the launcher's environment)."""
    return torch_dist.get_rank() if is_initialized() else place.rank()


def world_size() -> int:
    """Number of processes of the run."""
    return torch_dist.get_world_size() if is_initialized() else place.world_size()


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
        os.environ["MASTER_PORT"] = str(meeting.free_port())
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
            store=meeting.meet(join_seconds, json.dumps(started_as or {})),
            rank=rank(),
            world_size=world_size(),
            timeout=COLLECTIVE_TIMEOUT,
        )
    if world_size() > 1:
        from megatron.core import parallel_state

        global _groups
        _groups = parallel_state
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=tensor, create_gloo_process_groups=False
        )


def shutdown() -> None:
    """Leave the groups, so that a process can `init` again with other sizes."""
    if _grouped():
        _groups.destroy_model_parallel()
    if is_initialized():
        torch_dist.destroy_process_group()


def is_lost_peer(error: BaseException) -> bool:
    """True if a collective failed because another rank is gone. torch says it in words only."""
    if isinstance(error, torch_dist.DistError):
        return True
    words = ("closed by peer", "reset by peer", "Broken pipe", "Socket closed", "Timed out waiting")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


_groups: Any = None
"""Megatron-core's parallel_state, once `init` has formed groups there."""


def _grouped() -> bool:
    return is_initialized() and _groups is not None and _groups.model_parallel_is_initialized()


def tp_size() -> int:
    """Number of ranks that share one copy of the model."""
    return _groups.get_tensor_model_parallel_world_size() if _grouped() else 1


def tp_rank() -> int:
    """Which slice of each split weight this rank holds."""
    return _groups.get_tensor_model_parallel_rank() if _grouped() else 0


def dp_size() -> int:
    """Number of copies of the model."""
    if not _grouped():  # somebody else's process group: all of it is data parallel
        return torch_dist.get_world_size() if is_initialized() else 1
    return _groups.get_data_parallel_world_size()


def dp_rank() -> int:
    """Which copy of the model this rank belongs to."""
    if not _grouped():
        return torch_dist.get_rank() if is_initialized() else 0
    return _groups.get_data_parallel_rank()


def tp_group() -> torch_dist.ProcessGroup | None:
    """The ranks that share my copy of the model; None without a process group of `init`."""
    if _grouped():
        return _groups.get_tensor_model_parallel_group()
    return torch_dist.group.WORLD if world_size() == 1 else None


def dp_group() -> torch_dist.ProcessGroup | None:
    """The ranks that hold the same slice of the model as I; None without a process group."""
    return _groups.get_data_parallel_group() if _grouped() else torch_dist.group.WORLD


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
    connection = meeting.open_store(10.0, serve=False)
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
            time.sleep(meeting.POLL_SECONDS)
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
