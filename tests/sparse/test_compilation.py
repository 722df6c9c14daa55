"""All Triton kernels, compiled for two kinds of GPU: triton's wheel brings the assembler along, so
no GPU and no toolkit is needed. What runs on none is still checked for what it would need there.
"""

import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from triton.runtime import driver
from triton.runtime.autotuner import Autotuner

from sparsecl.sparse import block_kernels, packed_kernels
from sparsecl.sparse.kernels import GROUP

pytestmark = pytest.mark.slow

# Shared memory that a program may have, by compute capability (CUDA's programming guide).
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}
MOST_STACK_BYTES = 128
INTS = {"fp32": "i32", "bf16": "i16"}
SIXTEEN = [["tt.divisibility", 16]]  # what the launcher finds of pointers and row lengths


def compiled(kernel: Any, capability: int, types: dict[str, str], **options: Any) -> Any:
    """One kernel; `types` holds what is not a size in int32, `options` begin with constants."""
    function = kernel.fn if isinstance(kernel, Autotuner) else kernel
    names = function.arg_names
    constants = {name: options.pop(name) for name in names if name in options}
    signature = {name: types.get(name, "i32") for name in names}
    signature |= dict.fromkeys(constants, "constexpr")
    signature |= {name: "constexpr" for name in names if name.endswith("_feature")}
    constants |= {name: 1 for name in names if name.endswith("_feature")}  # rows are contiguous
    aligned = [
        (number,)
        for number, name in enumerate(names)
        if signature[name].startswith("*") or name.endswith("_token")
    ]
    source = ASTSource(function, signature, constants, dict.fromkeys(aligned, SIXTEEN))
    return compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def stack_bytes(kernel: Any, folder: Path) -> int:
    """What a thread keeps in memory because it has no registers left."""
    (folder / "kernel.cubin").write_bytes(kernel.asm["cubin"])
    words = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", folder / "kernel.cubin"]
    usage = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return max(int(number) for number in re.findall(r"STACK:(\d+)", usage))


def check(kernel: Any, capability: int) -> frozenset[tuple[str, str]]:
    """Returns its matrix instructions, and how many products each adds up."""
    assert kernel.metadata.shared <= SHARED_BYTES[capability]
    # Sums in any order would not be repeatable.
    assert not re.findall(
        r"^.*\b(?:atom|red)\.(?:global|shared|relaxed).*$", kernel.asm["ptx"], re.M
    )
    return frozenset(re.findall(r"\b(wgmma|mma)\.[\w.]*\.m\d+n\d+(k\d+)", kernel.asm["ptx"]))


def check_choices(kinds: set[frozenset[Any]], stacks: list[int], dtype: str) -> None:
    """Whatever the tuner takes, a sum has one order: one kind of instruction for a kernel (fp32 has
    none). And it has something to take whose numbers fit the registers."""
    assert [len(kind) for kind in kinds] == [dtype != "fp32"], kinds
    assert min(stacks) <= MOST_STACK_BYTES, stacks


@pytest.mark.fault("G11")
@pytest.mark.parametrize("capability", SHARED_BYTES)
@pytest.mark.parametrize("dtype", INTS)
@pytest.mark.parametrize("size", [16, 128])
def test_block_kernels(capability, dtype, size, tmp_path):
    indices = ("row_starts", "columns", "column_starts", "rows", "firsts", "widths", "tile_rows")
    types = dict.fromkeys(indices, "*i32")
    types |= dict.fromkeys(("x", "values", "y", "dy", "dx"), f"*{dtype}")
    step = block_kernels.STEP_FP32 if dtype == "fp32" else block_kernels.STEP
    for kernel in (block_kernels._forward, block_kernels._grad_input):
        # The configurations that need most: of registers, and of shared memory.
        kinds, stacks = set(), []
        for config in (kernel.configs[0], kernel.configs[-1]):
            made = compiled(
                kernel, capability, types, SIZE=size, DEPTH=min(size, step),
                num_warps=config.num_warps, num_stages=config.num_stages, **config.kwargs,
            )  # fmt: skip
            kinds.add(check(made, capability))
            stacks.append(stack_bytes(made, tmp_path))
        check_choices(kinds, stacks, dtype)
    kinds, stacks = set(), []
    few, many = (block_kernels._grad_values.configs[number] for number in (0, -1))
    # The gradient itself, or one of several parts.
    for out, config in ((dtype, few), (dtype, many), ("fp32", many)):
        made = compiled(
            block_kernels._grad_values, capability, types | {"out": f"*{out}"}, SIZE=size,
            STEP=step, num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip
        kinds.add(check(made, capability))
        stacks.append(stack_bytes(made, tmp_path))
    check_choices(kinds, stacks, dtype)


@pytest.mark.fault("G11")
@pytest.mark.parametrize("capability", SHARED_BYTES)
@pytest.mark.parametrize("dtype", INTS)
@pytest.mark.parametrize("name", ["expand_bitmap", "gather_bitmap", "expand_index", "gather_index"])
def test_packed_kernels(capability, dtype, name, tmp_path):
    moved = dict.fromkeys(("values", "dense", "out"), f"*{INTS[dtype]}")
    types = {**moved, "bits": "*u8", "starts": "*i32", "index": "*i32", "num_cells": "i64"}
    made = compiled(getattr(packed_kernels, name), capability, types, GROUP=GROUP)
    assert not check(made, capability) and not stack_bytes(made, tmp_path)


@pytest.mark.fault("G14")
def test_tuned_once_for_each_magnitude_of_tokens_and_kept(monkeypatch, tmp_path):
    """Without a GPU: what is timed and launched is counted in its place."""
    kernel, tried = block_kernels._forward, []
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    target = SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 90, 32))
    monkeypatch.setattr(driver, "_active", target)
    monkeypatch.setattr(kernel, "_bench", lambda *_, config, **__: tried.append(config) or 1.0)
    monkeypatch.setattr(kernel.fn, "run", lambda *_, **__: None)
    monkeypatch.setattr(kernel, "cache", {})
    starts, columns = torch.tensor([0, 1]), torch.tensor([0])

    def trials(num_tokens):
        x, tried[:] = torch.zeros(num_tokens, 16), ()
        out = torch.zeros(num_tokens, 16)
        block_kernels.forward_product(x, x[0], starts, columns, size=16, out=out)
        return len(tried)

    every = len(kernel.configs)
    found = [trials(number) for number in (256, 129, 128, 257, 1, 16)]
    assert found == [every, 0, every, every, every, 0]
    kernel.cache.clear()  # another process
    assert trials(200) == 0 and kernel.best_config in kernel.configs
