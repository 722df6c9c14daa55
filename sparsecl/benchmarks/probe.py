"""Bytes that exist at once, as the operations of torch make and drop them."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakBytes(TorchDispatchMode):
    """While it is on: the largest sum of storages that were not there before.

    Looked at after each operation, on the thread that entered it; on a CPU the backward pass runs
    there too. What an operation allocates and frees within itself is not seen.
    """

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        """Leave out the storages of `known`: parameters, buffers, the batch."""
        super().__init__()
        self.peak = 0
        # Held, so that no new storage gets the address of one of these.
        self._held = [tensor.untyped_storage() for tensor in known]
        self._known = {storage._cdata for storage in self._held}
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, and look."""
        result = func(*args, **(kwargs or {}))
        self._live = {k: found for k, found in self._live.items() if not found[0].expired()}
        for tensor in tree_leaves((args, kwargs, result)):
            if isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided:
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known and storage._cdata not in self._live:
                    self._live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return result


def peak_bytes(known: Iterable[torch.Tensor], run: Callable[[], None]) -> int:
    """The most that `run` has allocated at once, beside `known`.

    On a GPU it is the allocator's own count, in which sizes are rounded up to 512 bytes.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with PeakBytes(known) as probe:
        run()
    return probe.peak
