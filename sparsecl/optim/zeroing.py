"""Zero where a weight is absent, to the bit, and nothing elsewhere."""

from collections.abc import Iterable

import torch

# Integers as wide as a floating-point element, by its size in bytes.
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


PIECE = 1 << 20  # elements; fewer are no faster


def zero_absent(tensors: Iterable[torch.Tensor], dead: torch.Tensor) -> None:
    """Set absent entries to +0.0 in place; live entries keep every bit, NaN included.

    Args:
        tensors: floating point, of the shape and on the device of `dead`.
        dead: bool, True = absent.
    """
    if dead.device.type != "cpu":
        for tensor in tensors:
            tensor.masked_fill_(dead, 0.0)
        return
    # torch's masked_fill_ branches at every element on the CPU. An `and` with all ones or all
    # zeros is the same selection in vector instructions: 4 times faster at density 0.1, 10 times
    # at 0.5, where branches cannot be predicted (three tensors of 2.4M elements, Zen 3).
    # Piece by piece: a ZeRO group would need integers for all of its weights.
    flat = [tensor.view(-1) for tensor in tensors]
    for begin in range(0, dead.numel(), PIECE):
        here = slice(begin, begin + PIECE)
        absent = dead.view(-1)[here]
        keep: dict[torch.dtype, torch.Tensor] = {}
        for tensor in flat:
            bits = BITS[tensor.element_size()]
            if bits not in keep:
                keep[bits] = absent.to(bits).sub_(1)  # absent: 1 - 1 = no bit; live: 0 - 1 = all
            tensor[here].view(bits).bitwise_and_(keep[bits])
