"""fp16 on the CPU, which DeepSpeed refuses but can do: a loss scale needs no GPU to be tested."""

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def allowed() -> Iterator[None]:
    """DeepSpeed believes that this machine has fp16."""
    from deepspeed.accelerator import get_accelerator

    kind: Any = type(get_accelerator())
    kept = kind.is_fp16_supported
    kind.is_fp16_supported = lambda self: True
    try:
        yield
    finally:
        kind.is_fp16_supported = kept


def scaling(power: int) -> dict[str, Any]:
    """The block of a DeepSpeed JSON for a dynamic scale from 2**power down to 1."""
    return {
        "fp16": {
            "enabled": True,
            "initial_scale_power": power,
            "hysteresis": 1,
            "min_loss_scale": 1,
        }
    }
