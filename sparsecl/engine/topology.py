"""The topologies of a run, and how their layers multiply."""

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sparsecl import dist
from sparsecl.checkpoint.reader import TrainedWeights, weight_reader
from sparsecl.engine.run_config import RunConfig
from sparsecl.engine.schedule import Schedule
from sparsecl.errors import UserError
from sparsecl.files import write_json
from sparsecl.methods.facts import error_text
from sparsecl.model.build import linear_options
from sparsecl.model.gpt import make_linear
from sparsecl.model.shapes import layer_shapes
from sparsecl.opening import read_plain
from sparsecl.sparse.auto import Choice, candidates, choose
from sparsecl.sparse.backends import BackendName, LinearOptions
from sparsecl.topology.build import build_topologies
from sparsecl.topology.layer import LayerShape, LayerTopology

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def draw_topologies(config: RunConfig) -> dict[str, LayerTopology]:
    """The topology of every layer, by layer name; empty for a dense model. Local.

    Raises:
        UserError: if a layer, or with packed storage a tensor-parallel slice of it, would be empty,
            if a slice would cut tiles, if a file of the topology is not what it must be, or if a
            layer is too small for a method. The same on every rank, whichever slice it holds.
    """
    shapes = layer_shapes(config.shape)
    found = build_topologies(
        config.topology,
        shapes,
        seed=config.seed,
        read_checkpoint=weight_reader(),
        open_run=TrainedWeights,
    )
    for shape in shapes if found else ():
        _check_slices(config, shape, found[shape.name])
    _check_live(config, found)
    return found


def _check_live(config: RunConfig, topologies: Mapping[str, LayerTopology]) -> None:
    """Let every method refuse layers that are too small for it."""
    shapes = layer_shapes(config.shape)
    live = {
        shape.name: topologies[shape.name].num_live if topologies else shape.num_cells
        for shape in shapes
    }
    for name, block in config.methods.used().items():
        try:
            block.check_layers(live, config.num_phases, shapes)
        except ValueError as error:
            raise UserError(error_text(name, block, error)) from None


def _check_slices(config: RunConfig, shape: LayerShape, topology: LayerTopology) -> None:
    dim, tensor = shape.split_dim, config.parallel.tensor
    local = (shape.out_features, shape.in_features)[dim] // tensor
    if config.topology.storage == "packed":
        degrees = topology.row_degrees() if dim == 0 else topology.column_degrees()
        counts = degrees.reshape(tensor, -1).sum(1)
        if (counts == 0).any():
            raise UserError(
                f"topology.storage=packed: {shape.name} has no live weight on tensor-parallel rank "
                f"{int(counts.argmin())} of {tensor}. Raise topology.density, lower "
                "parallel.tensor, or use storage masked."
            )
    block = config.topology.block
    if config.topology.backend in ("block", "auto") and block and local % block.size:
        raise UserError(
            f"topology.block.size={block.size} does not divide the {local} features of "
            f"{shape.name} on each of parallel.tensor={tensor} ranks. Use a size that does, or "
            "backend dense."
        )


def choose_backends(
    config: RunConfig,
    schedule: Schedule,
    topologies: Mapping[str, LayerTopology],
    saved: Mapping[str, BackendName] | None,
) -> tuple[dict[str, BackendName], list[str]]:
    """What `topology.backend: auto` stands for, by layer name. Collective over the world.

    Rank 0 measures, or finds in the cache what it has measured before under equal conditions, and
    all ranks do as it says.

    Args:
        saved: the choice of the checkpoint that the run goes on from. It is kept: another backend
            rounds differently, and a resumed run must not.

    Returns:
        Backend by layer name, and a line for each distinct shape.
    """
    if config.topology.backend != "auto" or not topologies:
        return {}, []
    if saved:
        return dict(saved), ["backends as in the checkpoint"]
    return dist.agree(lambda: _measure(config, schedule, topologies), only_first=True)


def _measure(
    config: RunConfig, schedule: Schedule, topologies: Mapping[str, LayerTopology]
) -> tuple[dict[str, BackendName], list[str]]:
    cache = Path(config.data.cache_dir) / "backends.json"
    known: dict[str, Any] = _read_cache(cache)
    shapes = {shape.name: shape for shape in layer_shapes(schedule.shape)}
    found: dict[str, Choice] = {}
    names: dict[str, BackendName] = {}
    lines: list[str] = []
    for name, topology in topologies.items():
        options = linear_options(config.topology, name, {name: "dense"})
        key = _key(config, schedule, shapes[name], topology, options)
        if key not in found:
            remembered = key in known
            found[key] = (
                Choice(**known[key])
                if remembered
                else _time(config, schedule, shapes[name], topology)
            )
            lines.append(_line(shapes[name], topology, found[key], remembered))
        names[name] = found[key].backend
    fresh = {k: {"backend": c.backend, "seconds": dict(c.seconds)} for k, c in found.items()}
    if fresh.keys() - known.keys():
        try:
            write_json(cache, {**known, **fresh})
        except UserError as error:  # it only saves the next run a minute
            lines.append(f"warning: {error}; the next run measures again")
    return names, lines


def _time(
    config: RunConfig, schedule: Schedule, shape: LayerShape, topology: LayerTopology
) -> Choice:
    return choose(
        lambda options: make_linear(
            shape, topology, options, tp_rank=dist.tp_rank(), tp_size=dist.tp_size()
        ),
        linear_options(config.topology, shape.name, {shape.name: "dense"}),
        batch=(schedule.micro, schedule.shape.context),
        dtype=DTYPES[config.precision],
        device=dist.device(),
    )


def _key(
    config: RunConfig,
    schedule: Schedule,
    shape: LayerShape,
    topology: LayerTopology,
    options: LinearOptions,
) -> str:
    """All that the choice depends on. Live counts within 5 % cost the same."""
    facts = {
        "shape": [shape.out_features, shape.in_features, shape.split_dim, dist.tp_size()],
        "density": float(f"{topology.density:.1e}"),
        "tokens": [schedule.micro, schedule.shape.context],
        "precision": config.precision,
        "storage": [options.storage, options.keep_expansion, options.block_size],
        "machine": [platform.machine(), os.cpu_count(), torch.backends.cpu.get_cpu_capability()]
        if dist.device().type == "cpu"
        else torch.cuda.get_device_name(),
        "backends": candidates(options, dist.device()),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    return json.dumps(facts, sort_keys=True)


def _line(shape: LayerShape, topology: LayerTopology, choice: Choice, remembered: bool) -> str:
    times = ", ".join(f"{name} {1e3 * s:.2f}" for name, s in choice.seconds.items())
    return (
        f"{shape.in_features} -> {shape.out_features} at density {topology.density:.3g}: "
        f"{choice.backend}" + (f" (ms: {times}{'; cached' if remembered else ''})" if times else "")
    )


def _read_cache(path: Path) -> dict[str, Any]:
    """What was measured before; a file that cannot be read is measured again."""
    try:
        found = json.loads(read_plain(path))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}
