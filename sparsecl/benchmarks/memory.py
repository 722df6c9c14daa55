"""Bytes of model state and of one pass, measured, beside the formulas of sparsecl/model/memory.py.

Measured: the storages of the tensors that are really there, each counted once. The parameters of
the module are the weights; what the optimizer steps is the master, unless it is the weights; the
gradients are taken right before the optimizer's step, as the bytes that tensors cover, because they
may lie in a buffer of DeepSpeed's that is larger. Activations are the peak of one forward and
backward pass of the model without DeepSpeed, with gradients in place.
"""

import argparse
import gc
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from sparsecl.benchmarks import process
from sparsecl.benchmarks.arms import BASELINE
from sparsecl.engine.run_config import RunConfig

if TYPE_CHECKING:
    from torch import Tensor

    from sparsecl.engine.build import Built
    from sparsecl.engine.run import Prepared
    from sparsecl.engine.schedule import Schedule
    from sparsecl.model.gpt import GPT

STATE = ("weights", "gradients", "master", "moments", "indices", "kept")
PASS = ("activations", "transient")


def measure(
    options: argparse.Namespace, groups: Mapping[float, Mapping[str, RunConfig]]
) -> dict[str, Any]:
    """Build and measure one arm after the other; the baseline once."""
    from sparsecl import dist

    machine, prepared = process.start(options, groups)
    dist.init()
    rows: list[dict[str, Any]] = []
    for density, runs in prepared.items():
        for name, run in runs.items():
            if name != BASELINE or not rows:
                rows.append({"density": 1.0 if name == BASELINE else density, "arm": name})
                rows[-1].update(measure_arm(run, options.vocab, options.length))
                gc.collect()
    dist.shutdown()
    for row in rows:
        row["matrices_to_dense"] = {
            key: row["matrices"][key] / rows[0]["matrices"][key] for key in row["matrices"]
        }
    return {"environment": process.finish(machine), "rows": rows}


def measure_arm(prepared: "Prepared", vocab_size: int, length: int | None) -> dict[str, Any]:
    """Build one model, measure a pass, give it to DeepSpeed, measure its state, and drop it.

    Args:
        length: tokens of a sequence; None = the context.
    """
    from sparsecl.engine.build import attach
    from sparsecl.model.build import build_gpt

    config, schedule = prepared.config, prepared.schedule
    backends, _ = process.backends_of(prepared)
    model = build_gpt(
        config.model,
        config.topology,
        vocab_size=vocab_size,
        seed=config.seed,
        topologies=prepared.topologies,
        backends=backends,
        loss_chunk=config.speed.loss_chunk,
    )
    length = length or schedule.shape.context
    peak = pass_bytes(model, config, vocab_size, (schedule.micro, length))
    built = attach(model, config, prepared.deepspeed.config)
    measured = {**state_bytes(built, schedule, vocab_size, length), "pass": peak}
    process.drop(built.engine)
    formula = ledger(prepared, vocab_size, length=length, backends=backends)
    return {
        "measured": measured,
        "formula": formula,
        "ratio": {key: measured[key] / formula[key] for key in ("state", "pass")},
        "matrices": {
            "measured": measured["state"] - formula["others"],
            "formula": formula["state"] - formula["others"],
        },
    }


def ledger(
    prepared: "Prepared", vocab_size: int, *, length: int, backends: Mapping[str, Any]
) -> dict[str, int]:
    """The formulas: every part, `state`, `pass`, and `others` = the state of all but the matrices
    of the blocks (embedding, positions, norms), which is equal in all arms."""
    from sparsecl import dist
    from sparsecl.engine.schedule import rank_layout
    from sparsecl.model.config import padded_vocabulary
    from sparsecl.model.flops import count_parameters
    from sparsecl.model.memory import memory_per_rank

    config, schedule, topologies = prepared.config, prepared.schedule, prepared.topologies
    gpu = dist.device().type == "cuda"
    layout = rank_layout(config, schedule, prepared.deepspeed, vocab_size, gpu=gpu)
    layout = replace(layout, length=length)
    found = memory_per_rank(
        schedule.shape, vocab_size, topologies, config.topology, layout, backends=backends
    )
    dense = memory_per_rank(schedule.shape, vocab_size, {}, config.topology, layout)
    counts = count_parameters(schedule.shape, padded_vocabulary(vocab_size, 1), {})
    others = counts.embedding + counts.head + counts.other
    return {
        **asdict(found),
        "state": found.state,
        "pass": found.activations + found.transient,
        "others": dense.state * others // counts.total,
    }


def pass_bytes(model: "GPT", config: RunConfig, vocab_size: int, shape: tuple[int, int]) -> int:
    """Peak of one forward and backward pass on [micro, length] tokens, gradients not counted.

    The model is left on its device in the run's precision, without gradients.
    """
    import torch

    from sparsecl import dist
    from sparsecl.benchmarks.probe import peak_bytes
    from sparsecl.engine.topology import DTYPES

    model.to(dist.device(), DTYPES[config.precision])
    tokens = torch.randint(vocab_size, (shape[0], shape[1] + 1), device=dist.device())

    def run() -> None:
        weight = torch.ones(shape[0], device=tokens.device)
        model(tokens[:, :-1], tokens[:, 1:], weight=weight)[2].backward()

    run()  # makes the gradients, and the matrices that are kept
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    known = [*model.parameters(), *model.buffers(), *gradients, *kept_matrices(model), tokens]
    peak = peak_bytes(known, run)
    model.zero_grad(set_to_none=True)
    return peak


def state_bytes(
    built: "Built", schedule: "Schedule", vocab_size: int, length: int
) -> dict[str, int]:
    """Train one step, go to the end of another's backward pass, and count what is there."""
    import torch

    from sparsecl import dist

    engine, slices = built.engine, built.slices
    for left in reversed(range(2 * schedule.accumulation)):
        shape = (schedule.micro, length + 1)
        tokens = torch.randint(vocab_size, shape, device=dist.device())
        weight = torch.ones(len(tokens), device=tokens.device)
        engine.backward(engine(tokens[:, :-1], tokens[:, 1:], weight=weight)[2])
        if left:  # else the gradients are complete, and still there
            engine.step()
    weights = [tensor for p in engine.module.parameters() for tensor in _weight_tensors(p)]
    own = {tensor.untyped_storage().data_ptr() for tensor in weights}
    master = [
        item.stepped for item in slices if item.stepped.untyped_storage().data_ptr() not in own
    ]
    moments = [
        value
        for state in slices.optimizer.state.values()
        for value in state.values()
        if torch.is_tensor(value) and value.dim()
    ]
    found = {
        "weights": storage_bytes(weights),
        "gradients": covered_bytes(_gradients(engine)),
        "master": storage_bytes(master),
        "moments": storage_bytes(moments),
        "indices": storage_bytes([*_indices(engine.module), *built.guard.masks]),
        "kept": storage_bytes(kept_matrices(engine.module)),
    }
    return {**found, "state": sum(found.values())}


def storage_bytes(tensors: "Iterable[Tensor]") -> int:
    """Bytes of all storages that the tensors lie in."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def covered_bytes(tensors: "Iterable[Tensor]") -> int:
    """Bytes that the (contiguous) tensors cover together; what lies in several counts once."""
    spans = sorted((t.data_ptr(), t.data_ptr() + t.numel() * t.element_size()) for t in tensors)
    total = end = 0
    for begin, stop in spans:
        total += max(0, stop - max(begin, end))
        end = max(end, stop)
    return total


def kept_matrices(model: Any) -> "list[Tensor]":
    """What keep_expansion holds."""
    from sparsecl.sparse.dense import DenseBackend

    backends = [module for module in model.modules() if isinstance(module, DenseBackend)]
    return [backend.kept for backend in backends if backend.kept is not None]


def _weight_tensors(parameter: Any) -> "Iterator[Tensor]":
    """The parameter, and under ZeRO-3 this rank's part of it."""
    from sparsecl.optim.deepspeed.parameters import is_cut, shard

    if parameter.data.numel():
        yield parameter.data
    if is_cut(parameter):
        yield shard(parameter)


def _indices(model: Any) -> "Iterator[Tensor]":
    from sparsecl.sparse.linear import SparseLinear

    for module in model.modules():
        if isinstance(module, SparseLinear):
            yield from module.buffers()


def _gradients(engine: Any) -> "Iterator[Tensor]":
    """Of the parameters, and those that a ZeRO wrapper holds for its optimizer."""
    from sparsecl.optim.deepspeed.wrappers import find_wrapper

    for parameter in engine.module.parameters():
        if parameter.grad is not None:
            yield parameter.grad
    yield from _tensors(find_wrapper(engine).sums)


def _tensors(value: Any) -> "Iterator[Tensor]":
    import torch

    if torch.is_tensor(value):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
