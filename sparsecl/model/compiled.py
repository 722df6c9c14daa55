"""Blocks through torch.compile: fewer launches, elementwise work joined into one kernel.

Passes that will go backward are compiled, all others (evaluation, probes) are not: they come in
other shapes, each of which would have to be compiled, and hooks look into them. A block is one
graph: the products of a dense or masked linear are compiled, those of packed ones, of native and of
tiles on a GPU are operators in it (sparse/operators.py). Other backends, and the exchange over
tensor-parallel ranks, stay outside and cut it into several. All blocks share these graphs, so a
deep model compiles no longer than a flat one.
"""

import functools
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparsecl import dist
from sparsecl.errors import UserError
from sparsecl.model.columns import Heard, Lateral
from sparsecl.model.gpt import GPT, Block, Norm, sum_of_parts
from sparsecl.sparse import kernels, operators
from sparsecl.sparse.linear import SparseLinear, live_product
from sparsecl.sparse.low_rank import LowRank
from sparsecl.sparse.parallel import (
    enter_tensor_parallel,
    leave_tensor_parallel,
    summed_gradient,
)
from sparsecl.sparse.product import Backend, arrange


def compile_blocks(model: GPT, *, backend: str = "inductor") -> None:
    """Compile every block, in place; names of parameters stay. Nothing is compiled before a call.

    Args:
        backend: torch.compile's; "inductor" makes kernels, "aot_eager" traces only.

    Raises:
        UserError: if there is no compiler where one is needed.
    """
    if backend == "inductor":
        _check_compiler()
    blocks = [part for part in model.modules() if isinstance(part, Block)]
    # A graph holds the shapes of parameters: where layers differ in the number of live weights, all
    # are left out, or every block would have a graph of its own.
    alike = len({tuple(p.shape for p in block.parameters()) for block in blocks}) == 1
    for block in blocks:
        _leave_out(block, alike)
        _replace_forward(block, backend)


def _replace_forward(block: Block, backend: str) -> None:
    eager = block.forward
    # Shapes are constants of the graph. With sizes as variables the kernels would depend on which
    # shapes came before, and a resumed run would round differently.
    compiled: Any = torch.compile(eager, dynamic=False, backend=backend)

    def forward(
        x: Tensor, spread: bool = False, angles: Tensor | None = None, heard: Heard = ()
    ) -> Tensor:
        # A hook inside the block would not be called from the graph, a tap is not in it.
        fit = torch.is_grad_enabled() and not _is_watched(block)
        return compiled(x, spread, angles, heard) if fit else eager(x, spread, angles, heard)

    own: Any = block
    own.forward = forward


def _is_watched(block: Block) -> bool:
    return any(
        part._forward_hooks
        or part._forward_pre_hooks
        or (isinstance(part, SparseLinear) and part.tap is not None)
        for part in block.modules()
    )


def _leave_out(block: Block, alike: bool) -> None:
    """Keep what cannot be traced out of the graph: sparse kernels, collectives, and parts beside
    the feed-forward part, which may count what they do."""
    block.mlp.beside = _outside(sum_of_parts)
    alone = dist.tp_size() == 1  # then nothing is exchanged, and groups are not even looked for
    for part in (block.attention, block.mlp):
        part.enter = _same if alone else _outside(enter_tensor_parallel)
    for part in block.modules():
        if isinstance(part, SparseLinear):
            backend = part.backend
            if alone and alike and backend is not None and backend.is_row_major(dist.device()):
                operators.number(part)
                part.product, part.rearrange = operators.product_in_graph, _as_it_is
            else:
                part.product, part.rearrange = _outside(live_product), _outside(arrange)
            part.exchange = _same if alone else _outside(leave_tensor_parallel)
        if isinstance(part, Lateral):
            part.enter = _same if alone else _outside(enter_tensor_parallel)
            part.exchange = _same if alone else _outside(leave_tensor_parallel)
        if isinstance(part, SparseLinear | Norm | LowRank):
            part.share = _outside(summed_gradient)


@functools.cache
def _outside(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, called from the graph and not in it: one object, or blocks would differ."""
    return torch.compiler.disable(function)


def _as_it_is(x: Tensor, backend: Backend) -> Tensor:
    return x


def _same(x: Tensor, spread: bool = False) -> Tensor:
    return x


def _check_compiler() -> None:
    if torch.cuda.is_available():
        reason = kernels.lacking()
        if reason is not None:
            raise UserError(f"speed.compile=true: {reason}; or leave it out.")
    elif not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        raise UserError(
            "speed.compile=true needs a C++ compiler (g++ or clang++) on a CPU: install one, or "
            "leave it out."
        )
