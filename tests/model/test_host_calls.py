"""What the host does for a block, forward and backward: calls of Python and of C, counted.

A GPU waits for it where batches are small. Times differ from machine to machine; these numbers
only with the release of torch. Kernels of Triton are stood in for, so that the way to them is
counted and Triton's own launch is not.
"""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sparsecl.model.build import build_gpt
from sparsecl.model.config import ModelConfig
from sparsecl.sparse import kernels
from sparsecl.topology.config import TopologyConfig

# Of one block of six linears: found with torch 2.13, and a tenth more.
MOST: dict[str, tuple[dict[str, Any], int]] = {
    "dense": ({"kind": "dense"}, 195),  # 177
    "masked": ({"density": 0.25}, 406),  # 369
    "packed": ({"density": 0.25, "storage": "packed"}, 1579),  # 1435
    "packed, few": ({"density": 0.01, "storage": "packed"}, 1414),  # 1285
    "packed, kept": ({"density": 0.25, "storage": "packed", "keep_expansion": True}, 1090),  # 991
}


class Program:
    """Stands in for a kernel of Triton, with any grid."""

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *arguments, **constants: None


def calls(function: Callable[[], None]) -> int:
    number = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal number
        number += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return number


@pytest.mark.parametrize("storage", MOST)
def test_calls_of_the_host_for_a_block(monkeypatch, storage):
    monkeypatch.setattr(kernels, "available", lambda device: True)
    monkeypatch.setattr(kernels, "_program", lambda name: Program())
    topology, most = MOST[storage]

    def one_pass(layers: int) -> int:
        model = build_gpt(
            ModelConfig(preset=None, layers=layers, width=64, heads=4, context=16),
            TopologyConfig(**topology), vocab_size=100, seed=5,
        )  # fmt: skip
        tokens = torch.zeros(2, 17, dtype=torch.int64)

        def run() -> None:
            model(tokens[:, :-1], tokens[:, 1:])[0].mean().backward()

        run()  # what is made once is not counted
        return calls(run)

    found = (one_pass(3) - one_pass(1)) / 2
    assert found <= most, f"{storage}: {found:g} calls for a block"
