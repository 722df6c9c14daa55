"""A trained model out of a checkpoint, and held-out text to look at it with.

What the run was split over does not matter: a checkpoint is in global coordinates. Weights are the
fp32 masters whatever the run's precision, products are dense whatever its backend; both differ from
what the run computed by rounding alone. The masks are those of the checkpoint, where a method may
have moved them.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsecl import dist
from sparsecl.checkpoint.find import is_checkpoint, run_above
from sparsecl.checkpoint.manifest import read_manifest, verify
from sparsecl.checkpoint.publish import newest_valid
from sparsecl.checkpoint.reader import Reader, TrainedWeights, weight_reader
from sparsecl.data.batches import whole_windows
from sparsecl.data.config import DataConfig, TokenizerConfig
from sparsecl.data.prepare import PreparedData, prepare
from sparsecl.errors import DataError, MissingInputError
from sparsecl.model.build import build_gpt
from sparsecl.model.config import ModelConfig, ModelShape
from sparsecl.model.gpt import GPT
from sparsecl.model.shapes import is_vocabulary, layer_shapes
from sparsecl.sparse.registry import sparse_parameters
from sparsecl.topology.build import build_topologies
from sparsecl.topology.config import TopologyConfig
from sparsecl.topology.layer import LayerTopology

MASTER = "master"


@dataclass(frozen=True)
class Located:
    """A checkpoint and the run that it is of."""

    run: Path
    checkpoint: Path
    """A whole checkpoint: its digests were checked."""

    newest: bool
    """It was found as the newest of its run, not named."""


def locate(path: Path) -> Located:
    """The newest valid checkpoint of a run folder, or the checkpoint folder that was named.

    Raises:
        MissingInputError: there is no such folder, or no checkpoint in it.
        DataError: the named checkpoint, or every one of the run, is damaged.
    """
    if not path.is_dir():
        raise MissingInputError(f"{path}: no such run folder or checkpoint folder")
    if is_checkpoint(path):
        verify(path)
        return Located(run_above(path) or _run_of(path.resolve()), path, newest=False)
    run = _run_of(path / "checkpoints" / "any")
    newest, notes = newest_valid(run / "checkpoints")
    if newest is None and notes:
        raise DataError(f"{run}: no checkpoint is valid, {notes[0]}")
    if newest is None:
        raise MissingInputError(f"{run}: has no checkpoint; train it first")
    return Located(run, newest, newest=True)


def load_model(
    checkpoint: Path,
    model: ModelConfig,
    topology: TopologyConfig,
    *,
    vocab_size: int,
    seed: int,
    device: torch.device | None = None,
    shape: ModelShape | None = None,
) -> GPT:
    """The model of a whole checkpoint, in fp32; this tp rank's share of it. Local.

    Args:
        checkpoint: a folder that `locate` has accepted.
        topology: its storage is kept; the backend is dense.
        seed: of the run; decides the masks only where the checkpoint holds none (role update).
        device: None = a GPU where there is one.
        shape: that of the config, with the columns of the run, of which the one that was trained
            last is open; None = with one.

    Raises:
        DataError: if the checkpoint is of another model or topology.
    """
    reader = Reader(checkpoint)
    options = dataclasses.replace(topology, backend="dense", keep_expansion=False)
    built = build_gpt(
        model,
        options,
        vocab_size=vocab_size,
        seed=seed,
        topologies=_topologies(reader, shape or model.resolved(), options, seed),
        shape=shape,
    )
    _fill(built, reader)
    if built.columns is not None:
        built.columns.open = _trained_last(reader.manifest.state)
    return built.to(device or dist.device())


def topologies_of(model: GPT) -> dict[str, LayerTopology]:
    """The live sets of a model by layer name; empty for a dense one."""
    return {
        name.removesuffix(".weight"): entry.topology
        for name, entry in sparse_parameters(model).items()
    }


def prepare_domains(
    checkpoint: Path,
    data: DataConfig,
    tokenizer: TokenizerConfig,
    *,
    context: int,
    seed: int,
    show_progress: bool = False,
) -> PreparedData:
    """The domains of the run that made a checkpoint, from the cache if they are there.

    Raises:
        DataError: if text or tokenizer are not those of the checkpoint.
        UserError: for what cannot be prepared.
    """
    found = prepare(data, tokenizer, context=context, seed=seed, show_progress=show_progress)
    saved = read_manifest(checkpoint).state
    for key, value in (("tokenizer", found.tokenizer.digest), ("data", found.fingerprint)):
        if saved.get(key, value) != value:
            raise DataError(
                f"{checkpoint}: the {key} changed since the checkpoint (digest {saved[key][:12]}, "
                f"now {value[:12]}). Restore it."
            )
    return found


def held_out_rows(
    data: PreparedData, *, context: int, sequences: int
) -> dict[str, NDArray[np.int64]]:
    """Validation text of each domain as token ids [S, context + 1], by domain.

    Windows are spread evenly over the text, so that a few of them see more than its first document.
    S = `sequences`, or less if a domain has fewer whole windows.
    """
    return {
        domain.name: whole_windows(domain.validation, context=context, count=sequences)
        for domain in data.domains
    }


def _run_of(checkpoint: Path) -> Path:
    """The run folder above RUN/checkpoints/step_N."""
    run = checkpoint.parent.parent
    if not (run / "config.yaml").is_file():
        raise MissingInputError(f"{run}: not a run folder, it has no config.yaml")
    return run


def _topologies(
    reader: Reader, shape: ModelShape, topology: TopologyConfig, seed: int
) -> Mapping[str, LayerTopology]:
    """The live sets, by layer name."""
    if topology.kind == "dense":
        return {}
    shapes = layer_shapes(shape)
    if topology.role == "update":
        return build_topologies(
            topology,
            shapes,
            seed=seed,
            read_checkpoint=weight_reader(),
            open_run=TrainedWeights,
        )
    found = {name.removesuffix(".weight"): live for name, live in reader.topologies.items()}
    for layer in shapes:
        live = found.get(layer.name)
        if live is None or (live.out_features, live.in_features) != (
            layer.out_features,
            layer.in_features,
        ):
            raise DataError(f"{reader.folder}: holds no topology of {layer.name} for this config")
    return found


def _trained_last(state: Mapping[str, Any]) -> int:
    """The phase whose steps are in a checkpoint; 0 if none are."""
    position = state.get("position", {})
    phase, phase_step = position.get("phase", 0), position.get("phase_step", 0)
    return max(phase - (phase_step == 0), 0)


@torch.no_grad()
def _fill(model: GPT, reader: Reader) -> None:
    """Set every parameter from the masters, which are global, as this tp rank holds it."""
    linears = {name: entry.layer for name, entry in sparse_parameters(model).items()}
    params = dict(model.named_parameters())
    if params.keys() != reader.manifest.parameters.keys():
        other = sorted(params.keys() ^ reader.manifest.parameters.keys())[0]
        raise DataError(f"{reader.folder}: its parameters are not those of this config: {other}")
    for name, param in params.items():
        value = reader.read(MASTER, name)
        if is_vocabulary(name):
            value = _real_rows(value, model)
        value = _local(value, param)
        wanted = linears[name].local_shape if name in linears else param.shape
        if value.shape != wanted:
            raise DataError(
                f"{reader.folder}: {name} is {list(value.shape)}, this config has {list(wanted)}"
            )
        if name in linears:
            linears[name].fill(value)
        else:
            param.copy_(value)


def _real_rows(matrix: Tensor, model: GPT) -> Tensor:
    """Embedding or head with the padding of this layout: how many rows are padded depends on tp."""
    num_rows = model.embedding.weight.shape[0] * dist.tp_size()
    padded = torch.zeros(num_rows, matrix.shape[1])
    real = matrix[: model.vocab_size]
    padded[: real.shape[0]] = real
    return padded


def _local(value: Tensor, param: Tensor) -> Tensor:
    """This tp rank's slice of a global tensor."""
    dim = int(getattr(param, "partition_dim", -1))
    whole = dim < 0 or dist.tp_size() == 1
    return value if whole else value.chunk(dist.tp_size(), dim=dim)[dist.tp_rank()]
