"""The C allocator's habits on a CPU: freed blocks are kept, not given back to the system.

glibc serves a block of 32 MB or more by mmap and unmaps it when it is freed. The next one of that
size is then fresh memory again, every page of it a fault and a page of zeros from the kernel: for
the activations and gradients of a training step, which come back in the same sizes every time,
that costs more than some of the products. Measured on a sparse product with a result of 50 MB: 58
ms with fresh memory, 13 ms with memory that is reused.
"""

import ctypes

# Parameters of mallopt(3), from malloc.h.
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_MAX = -4

NEVER_TRIM = 2**31 - 1  # bytes free at the top of the heap before it shrinks: the largest int
PAD_BYTES = 256 * 2**20  # the heap grows in steps of this much


def keep_freed_memory() -> bool:
    """Make this process reuse large blocks. Call it before the first of them is allocated.

    The price is that the process never shrinks: its size stays that of its largest moment. And the
    first ten or so blocks of a size may each take new memory: what alignment cuts off a block stays
    in the thread's cache and keeps the freed blocks apart, until that cache is full.

    Returns:
        True if the allocator is set up so. False where it is not glibc's, or where a GPU does the
        work: nothing has been changed then.
    """
    import torch

    if torch.cuda.is_available():
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: NEVER_TRIM, M_TOP_PAD: PAD_BYTES}
    return all(library.mallopt(name, value) == 1 for name, value in settings.items())
