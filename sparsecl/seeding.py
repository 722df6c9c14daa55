"""Named random streams: every random decision has a name, and the name alone decides its bits.

A stream depends on (seed, names) and on nothing else: not on the rank, the tensor-parallel size,
the order in which layers are built, or Python's hash seed.
"""

import hashlib
import json

import numpy as np


def stream_key(seed: int, *names: str | int) -> int:
    """A 128-bit key for the stream `names` under `seed`."""
    text = json.dumps([seed, *names])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """The generator of the stream `names`, for example `stream(0, "mask", "layers.3.mlp.up")`.

    Philox is counter-based: streams with different keys never overlap.
    """
    return np.random.Generator(np.random.Philox(key=stream_key(seed, *names)))
