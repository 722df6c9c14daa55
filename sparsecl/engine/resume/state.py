"""What a checkpoint holds of a run, and putting it back.

Tensors go through slices and are named in global coordinates: fp32 masters, the optimizer's
elementwise state, and the slice tensors of methods; of a matrix on a topology the live weights
only, in the same form for both storages, so that each loads what the other wrote. Low-precision
weights are not saved: they are the masters, rounded. Numbers go into the manifest's `state`.
"""

import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sparsecl import dist
from sparsecl.checkpoint.background import Saver
from sparsecl.checkpoint.manifest import ParameterEntry, Piece
from sparsecl.checkpoint.reader import Reader
from sparsecl.engine.build import Built
from sparsecl.engine.observe.observer import Remembered
from sparsecl.errors import DataError
from sparsecl.methods.several import Methods
from sparsecl.optim.deepspeed.numbers import counters, scale_state, set_counters, set_scale_state
from sparsecl.optim.deepspeed.parameters import local_shape
from sparsecl.optim.moving import write_weight
from sparsecl.optim.slice import Slice
from sparsecl.optim.slices import Slices, is_counted
from sparsecl.sparse.registry import SparseParameter, forget_expansions, sparse_parameters
from sparsecl.topology.layer import LayerTopology

MASTER = "master"


def save(
    saver: Saver,
    built: Built,
    methods: Methods,
    state: Mapping[str, Any],
    arrays: Mapping[str, torch.Tensor],
    *,
    step: int,
) -> None:
    """Save a checkpoint of the run. Collective over the world.

    Args:
        state: position and whatever else the engine wants back, JSON-safe.
        arrays: of observers, by OBSERVER.ARRAY; rank 0's count.

    Raises:
        StorageError, CannotCreateError: see Saver.save.
    """
    tensors, pieces = {}, []
    sparse = sparse_parameters(built.engine.module)
    method_tensors, method_values = methods.state_dict()
    for item in built.slices:
        if not _writes(built.slices, item):
            continue
        states = {MASTER: item.master, **built.slices.moments(item)}
        found = method_tensors.items()
        states |= {key: value[item.name] for key, value in found if item.name in value}
        start, keep_live = _live_range(sparse.get(item.name), item)
        for key, whole in states.items():
            value = whole if keep_live is None else whole[keep_live.to(whole.device)]
            piece = Piece(
                file=f"rank_{dist.rank()}.safetensors",
                state=key,
                name=item.name,
                tp_rank=dist.tp_rank() if _partition_dim(item.param) >= 0 else 0,
                start=start,
                numel=value.numel(),
            )
            tensors[piece.key] = value
            pieces.append(piece)
    saver.save(
        step,
        tensors,
        pieces,
        _parameters(built),
        {**state, "optimizer": _optimizer_state(built), "methods": method_values},
        {name: entry.topology for name, entry in sparse.items() if _is_live(entry)},
        {**methods.arrays(), **arrays} if dist.rank() == 0 else {},
    )


def restore(
    folder: Path, built: Built, methods: Methods, *, weights_only: bool = False
) -> dict[str, Any]:
    """Load a verified checkpoint into the run, from any layout. Collective over the world.

    Args:
        weights_only: masters and nothing else; the optimizer begins as before its first step, and
            methods begin anew. A checkpoint may then be denser than the run: what is absent here is
            left out.

    Returns:
        The manifest's `state`.

    Raises:
        DataError: if the checkpoint is of another model or topology, or if it lacks a part of the
            optimizer's state.
    """
    reader = Reader(folder)
    own, there = _parameters(built), reader.manifest.parameters
    # What a method adds to a base begins as it was made.
    added = {name for name in own.keys() - there.keys() if weights_only and ".parts." in name}
    if weights_only:  # a dense matrix has all that one on a topology needs
        there = {
            name: replace(entry, live=own[name].live) if name in own and not entry.live else entry
            for name, entry in there.items()
        }
    if there != {name: entry for name, entry in own.items() if name not in added}:
        raise DataError(f"{folder}: its parameters are not those of this model config")
    _restore_topologies(folder, reader, built, methods, weights_only=weights_only)
    if not weights_only:
        _check_whole(folder, reader)
    slices = {item.name: item for item in built.slices}
    sparse = sparse_parameters(built.engine.module)
    found = [] if weights_only else reader.states()
    states = [key for key in found if key != MASTER and "." not in key]
    numbers = {} if weights_only else reader.manifest.state["optimizer"]
    _make_optimizer_state(built.slices, states, numbers)
    method_tensors = {key: {} for key in found if "." in key}
    for name, param in built.engine.module.named_parameters():
        if name in added:
            continue
        read = functools.partial(_local, reader, name=name, entry=sparse.get(name))
        local = read(MASTER)
        write_weight(param, local, slices.get(name))
        if name not in slices:
            continue
        item = slices[name]
        moments = built.slices.moments(item)
        item.master.copy_(item.part(local))
        for key in states:
            moments[key].copy_(item.part(read(key)))
        for key, tensors in method_tensors.items():
            if reader.has(key, name):
                value = item.part(read(key))
                tensors[name] = value.clone().to(item.master.device)
    forget_expansions(built.engine.module)
    if not weights_only:
        methods.load_state_dict(method_tensors, reader.manifest.state["methods"])
        methods.load_arrays(reader.arrays())
        _restore_numbers(built, numbers)
    return reader.manifest.state


def remembered(folder: Path) -> Remembered:
    """What observers had seen at a verified checkpoint. Local."""
    reader = Reader(folder)
    return Remembered(reader.manifest.state["observers"], reader.arrays())


def _check_whole(folder: Path, reader: Reader) -> None:
    """Raise unless the optimizer's state is there for every parameter."""
    way_out = "Give --weights_only to go on from its weights with a new optimizer."
    numbers = reader.manifest.state.get("optimizer")
    if numbers is None:
        raise DataError(f"{folder}: it holds weights only, no state of an optimizer. {way_out}")
    kept = set(reader.states())
    for key in dict.fromkeys([*numbers["moments"], *kept]):
        if key == MASTER or "." in key:
            continue
        missing = [name for name in reader.manifest.parameters if not reader.has(key, name)]
        if missing:
            raise DataError(
                f"{folder}: the optimizer's {key} of {missing[0]} is missing. {way_out}"
            )


def reset_moments(slices: Slices) -> None:
    """Forget the optimizer's state, as before the first step. Local."""
    for item in slices:
        for moment in slices.moments(item).values():
            moment.zero_()
    for state in slices.optimizer.state.values():
        if "step" in state:
            state["step"] = state["step"] * 0
    for group in slices.optimizer.param_groups:
        if "step" in group:
            group["step"] = 0


def _writes(slices: Slices, item: Slice) -> bool:
    """One rank writes each piece: replicas over dp (stage 0) and tp are written once."""
    return is_counted(item.param) and (slices.partitioned or dist.dp_rank() == 0)


def _partition_dim(param: torch.nn.Parameter) -> int:
    return int(getattr(param, "partition_dim", -1))


def _parameters(built: Built) -> dict[str, ParameterEntry]:
    sparse = sparse_parameters(built.engine.module)
    entries = {}
    for name, param in built.engine.module.named_parameters():
        shape = list(getattr(param, "dense_shape", local_shape(param)))
        dim = _partition_dim(param)
        if dim >= 0:
            shape[dim] *= dist.tp_size()
        live = name in sparse and _is_live(sparse[name])
        entries[name] = ParameterEntry(tuple(shape), dim, live)
    return entries


def _is_live(entry: SparseParameter) -> bool:
    """Absent weights need not be saved: they are zero, and so is all state of theirs."""
    return entry.role == "topology"


def _live_range(entry: SparseParameter | None, item: Slice) -> tuple[int, torch.Tensor | None]:
    """Where a slice begins among what is saved of its tp slice, and which of it is (None = all)."""
    if entry is None or entry.dead is None or not _is_live(entry):
        return item.start, None
    live = ~entry.dead.view(-1)
    return int(live[: item.start].sum()), item.part(live)


def _restore_topologies(
    folder: Path, reader: Reader, built: Built, methods: Methods, *, weights_only: bool
) -> None:
    """Take over the live sets of the checkpoint where a method moves them, else compare."""
    for name, entry in sparse_parameters(built.engine.module).items():
        if not _is_live(entry):
            continue
        found = reader.topologies.get(name)
        if found is None or found.digest == entry.topology.digest:
            continue
        if weights_only and found.contains(entry.topology):
            continue
        moves = methods.rewires and (not weights_only or found.num_live == entry.topology.num_live)
        if not moves:
            denser = ", and has not all weights that live in it" if weights_only else ""
            raise DataError(
                f"{folder}: topology digest of {name} is {found.digest[:12]}, this config gives "
                f"{entry.topology.digest[:12]}{denser}"
            )
        _check_room(folder, entry, found)
        entry.layer.set_topology(found)
        built.topologies[name.removesuffix(".weight")] = found
    built.guard.refresh()


def _check_room(folder: Path, entry: SparseParameter, found: LayerTopology) -> None:
    """Raise unless the layer can take the live set: a packed slice has its number of weights."""
    layer = entry.layer
    if not layer.packed:
        return
    shard = found.shard(layer.partition_dim, layer.tp_rank, layer.tp_size)
    if int(shard.sum()) != layer.storage_shape.numel():
        raise DataError(
            f"{folder}: {entry.name} has {int(shard.sum())} live weights on tensor-parallel rank "
            f"{layer.tp_rank} of {layer.tp_size}, and packed storage has room for "
            f"{layer.storage_shape.numel()}. Use topology.storage=masked."
        )


def _local(reader: Reader, state: str, *, name: str, entry: SparseParameter | None) -> torch.Tensor:
    """What this tp rank keeps of one state of a parameter, in the form of the parameter."""
    matrix = reader.read_local(state, name, tp_rank=dist.tp_rank(), tp_size=dist.tp_size())
    if entry is None or not _is_live(entry):
        return matrix
    if entry.layer.packed:
        return entry.layer.local_values(matrix)
    return matrix if entry.dead is None else matrix.masked_fill_(entry.dead.to(matrix.device), 0.0)


def _optimizer_state(built: Built) -> dict[str, Any]:
    """The numbers beside the tensors. Every group has taken the same number of steps."""
    optimizer = built.slices.optimizer
    scalars = {}
    for state in optimizer.state.values():
        for key, value in state.items():
            if not torch.is_tensor(value):
                scalars[key] = {"value": value, "tensor": False}
            elif value.dim() == 0:
                scalars[key] = {"value": value.item(), "tensor": True}
        break
    return {
        "moments": built.slices.moment_names(),
        "scalars": scalars,
        "group_step": next((g["step"] for g in optimizer.param_groups if "step" in g), None),
        "scaler": scale_state(built.slices.wrapper.scaler),
        "counters": counters(built.engine),
    }


def _make_optimizer_state(slices: Slices, states: list[str], numbers: Mapping[str, Any]) -> None:
    """Create what the optimizer would create at its first step, to be filled."""
    slices.optimizer.state.clear()
    if not states:
        return
    for stepped in {id(item.stepped): item.stepped for item in slices}.values():
        made: dict[str, Any] = {key: torch.zeros_like(stepped) for key in states}
        for key, scalar in numbers["scalars"].items():
            value = scalar["value"]
            made[key] = (
                torch.tensor(value, dtype=torch.float32, device=stepped.device)
                if scalar["tensor"]
                else value
            )
        slices.optimizer.state[stepped] = made


def _restore_numbers(built: Built, numbers: Mapping[str, Any]) -> None:
    if numbers["group_step"] is not None:
        for group in built.slices.optimizer.param_groups:
            group["step"] = numbers["group_step"]
    set_scale_state(built.slices.wrapper.scaler, numbers["scaler"])
    set_counters(built.engine, numbers["counters"])
