"""What is compared: arms that differ in storage and backend, on one graph at one density."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparsecl.engine.run_config import BatchConfig, RunConfig
from sparsecl.engine.speed_config import SpeedConfig
from sparsecl.errors import UserError
from sparsecl.model.config import ModelConfig
from sparsecl.topology.config import BlockConfig, TopologyConfig

BASELINE = "dense"

# Settings of topology that make the arm; kind, density and tiles are those of the command line.
SPARSE_ARMS: dict[str, dict[str, Any]] = {
    "masked": {},
    "masked_native": {"backend": "native"},
    "masked_csr": {"backend": "csr"},
    "masked_block": {"backend": "block"},
    "masked_auto": {"backend": "auto"},
    "packed": {"storage": "packed"},
    "packed_keep": {"storage": "packed", "keep_expansion": True},
    "packed_native": {"storage": "packed", "backend": "native"},
    "packed_csr": {"storage": "packed", "backend": "csr"},
    "packed_block": {"storage": "packed", "backend": "block"},
    "packed_auto": {"storage": "packed", "backend": "auto"},
}
# The machinery of sparse layers with nothing absent: what it costs by itself.
FULL_ARMS: dict[str, dict[str, Any]] = {
    "all_live": {},
    "packed_all_live": {"storage": "packed"},
}
ARMS = (*SPARSE_ARMS, *FULL_ARMS)
DEFAULT_ARMS = ("masked", "packed", "all_live")

DEFAULT_SIZES = {"layers": 4, "width": 768, "heads": 12, "context": 512}


@dataclass(frozen=True, kw_only=True)
class BenchArm:
    """One of the things that are compared; arms differ in their topology only."""

    name: str
    topology: TopologyConfig


def make_arms(
    density: float, names: Sequence[str], *, kind: str = "er_fixed", block: int | None = None
) -> tuple[BenchArm, ...]:
    """The baseline and the named arms, in the order of ARMS.

    Args:
        kind: graph family of the sparse arms.
        block: side of tiles; None = single weights.

    Raises:
        ValueError: with the field that is wrong first.
    """
    tiles = BlockConfig(size=block) if block else None
    found = [BenchArm(name=BASELINE, topology=TopologyConfig(kind="dense"))]
    for name, settings in SPARSE_ARMS.items():
        graph: dict[str, Any] = {"kind": kind, "density": density, "block": tiles}
        if name in names:
            found.append(BenchArm(name=name, topology=TopologyConfig(**graph, **settings)))
    for name, settings in FULL_ARMS.items():
        if name in names:
            found.append(BenchArm(name=name, topology=TopologyConfig(density=1.0, **settings)))
    return tuple(found)


def model_config(options: argparse.Namespace, *, layers: int | None = None) -> ModelConfig:
    """The model of the command line: a preset or the default sizes, with what is given on top."""
    given: dict[str, Any] = {name: getattr(options, name) for name in DEFAULT_SIZES}
    if options.preset is None:
        given = {
            name: default if given[name] is None else given[name]
            for name, default in DEFAULT_SIZES.items()
        }
    if layers is not None:
        given["layers"] = layers
    return ModelConfig(
        preset=options.preset, activation_checkpointing=options.activation_checkpointing, **given
    )


def arm_configs(
    options: argparse.Namespace,
    density: float,
    *,
    layers: int | None = None,
    sequences: int | None = None,
) -> dict[str, RunConfig]:
    """The run config of every arm at one density, by its name, the baseline first.

    Args:
        layers: in place of those of the command line; so are `sequences`.

    Raises:
        UserError: if a size or the density is out of range.
    """
    try:
        model = model_config(options, layers=layers)
        batch = BatchConfig(sequences=sequences or options.sequences, micro=options.micro)
        arms = make_arms(density, options.arms, kind=options.kind, block=options.block)
    except ValueError as error:
        # Messages of the configs begin with the field, and the flags bear the fields' names.
        raise UserError(f"--{error}") from None
    return {
        arm.name: RunConfig(
            name=arm.name,
            model=model,
            batch=batch,
            topology=arm.topology,
            precision=options.precision,
            speed=SpeedConfig(compile=options.compile),
        )
        for arm in arms
    }
