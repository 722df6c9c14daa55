"""What the manifest of a checkpoint may say of the run that saved it.

A digest says that a manifest is as it was written, not that it makes sense. So everything in its
`state` is checked before anything is taken from it: types, ranges and closed sets of keys, then
whether its parts agree with each other, with the config they were saved under and with the tensors
beside them. Loading (`check_lawful`) and `tools/convert.py verify` ask the same laws.

What no other part knows, such as seconds of training, cannot be judged here. The folder's list of
published checkpoints (checkpoint/published.py) holds it: a manifest written anew is not on it.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Gt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sparsecl.checkpoint.canonical import MASTER
from sparsecl.checkpoint.entries import entries
from sparsecl.checkpoint.laws import StateLaws, check_laws
from sparsecl.checkpoint.manifest import Manifest, ParameterEntry, read_manifest
from sparsecl.checkpoint.reader import Reader
from sparsecl.config_nodes import one_line
from sparsecl.engine.observe.clock import Times
from sparsecl.engine.observe.drift import References, array_problems
from sparsecl.engine.observe.early_end import Best
from sparsecl.engine.observe.health import Seen
from sparsecl.engine.observe.observer import arrays_of
from sparsecl.engine.observe.plasticity import PhaseSums
from sparsecl.engine.observe.turnover import Lives, births_problems
from sparsecl.engine.position import Count, Position
from sparsecl.engine.resume.changes import parsed
from sparsecl.engine.run_config import RunConfig
from sparsecl.engine.schedule import JOINT, Schedule, make_schedule
from sparsecl.errors import DataError
from sparsecl.methods.table import build_methods
from sparsecl.model.shapes import EMBEDDING, layer_shapes
from sparsecl.topology.config import BackendName

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Rows = list[list[float | None]]


class _Strict(BaseModel):
    """Every key is known, every type is meant, every number is finite."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Scalar(_Strict):
    """A number that the optimizer keeps for each parameter, the same for all."""

    value: float
    tensor: bool


class Scaler(_Strict):
    """Of a dynamic loss scale; what a scaler does not have is left out."""

    cur_scale: Annotated[float, Gt(0.0)] | None = None
    cur_iter: Count | None = None
    last_overflow_iter: Annotated[int, Field(ge=-1)] | None = None
    cur_hysteresis: Count | None = None


class Counters(_Strict):
    """DeepSpeed's, since its optimizer was new."""

    global_steps: Count
    global_samples: Count
    skipped_steps: Count


class OptimizerNumbers(_Strict):
    """The optimizer's state beside its tensors."""

    moments: list[str]
    scalars: dict[str, Scalar]
    group_step: Count | None
    scaler: Scaler
    counters: Counters


class Matrix(_Strict):
    """Result matrices, [finished phases + 1][domain]."""

    loss: Rows
    bits_per_byte: Rows
    accuracy: Rows
    perplexity: Rows


LATER = ("drift", "turnover")
"""Observers that earlier versions had not."""


class Observed(_Strict):
    """What those who watch the run had seen."""

    clock: Times
    health: Seen
    early_end: Best
    plasticity: PhaseSums
    drift: References | None = None
    turnover: Lives | None = None


class RunState(_Strict):
    """Of a checkpoint of a run."""

    config: dict[str, Any]
    data: Digest
    tokenizer: Digest
    topology: dict[str, Digest]
    backends: dict[str, BackendName]
    windows: Digest | None = None  # earlier versions have none
    init_from: Digest | None = None
    position: Position
    observers: Observed
    scalars_bytes: Count
    scalars_sha256: Digest
    audit_checks: Count
    matrix: Matrix | None
    optimizer: OptimizerNumbers
    methods: dict[str, dict[str, Any]]


class WeightsState(_Strict):
    """Of a checkpoint that holds weights only, made by a conversion."""

    config: dict[str, Any]
    topology: dict[str, Digest]
    tokenizer: Digest | None = None
    vocab_size: Annotated[int, Field(ge=1, le=2**40)]
    weights_only: bool


def check_lawful(folder: Path) -> None:
    """Check all of a checkpoint: digests, tensors, and what it says of its run. Local.

    Every tensor is read once more than for its digest: a pass over what the page cache then holds.

    Raises:
        NewerFormatError: a newer version wrote it.
        DataError: the first law that does not hold. A moment that is missing is left to the
            restore, which knows whether one is needed.
    """
    read_manifest(folder)
    verdict = check_laws(folder, state=STATE, moments=False)
    if verdict.problems:
        raise DataError(one_line(verdict.problems[0]))


def state_problems(manifest: Manifest) -> Iterator[str]:
    """What is wrong with the `state` of a manifest, a line each. What follows relies on what comes
    before, so only problems of one kind are told at a time."""
    state = manifest.state
    only_weights = state.get("weights_only") is True
    try:
        found = (WeightsState if only_weights else RunState).model_validate_json(json.dumps(state))
    except ValidationError as error:
        yield from _schema_problems(error)
        return
    if isinstance(found, RunState):
        later = {name for name in LATER if getattr(found.observers, name) is None}
        observers = found.observers.model_dump(exclude=later)
        missing = _missing(asdict(found.position), state["position"], "position") or _missing(
            observers, state["observers"], "observers"
        )
        if missing:
            yield f"state.{missing}: it is missing"
            return
    config = parsed(state["config"])
    if config is None:
        yield "state.config: it is no run config of this version"
        return
    # As many ranks as any layout has: phases do not depend on them.
    schedule = make_schedule(config, world_size=config.parallel.tensor)
    yield from _parameters(manifest, config, len(schedule.phases))
    if isinstance(found, RunState):
        yield from _place(found.position, manifest.step, config, schedule)
        yield from _observed(found.observers, found.position, moves=config.methods.rewires)
        yield from _references(found, schedule)
        yield from _results(found, schedule)
        yield from _numbers(found, manifest, config)
        yield from _methods(found, manifest, config)


def _schema_problems(error: ValidationError) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        key = ".".join(map(str, ("state", *problem["loc"])))
        given = repr(problem["input"])[:40] if problem["type"] != "missing" else "nothing"
        yield one_line(f"{key}: {problem['msg']}, got {given}")


def _missing(whole: Mapping[str, Any], given: Any, where: str) -> str:
    """The first key that was left to its default; "" if none was."""
    for key, value in whole.items():
        if key not in given:
            return f"{where}.{key}"
        below = isinstance(value, dict) and _missing(value, given[key], f"{where}.{key}")
        if below:
            return below
    return ""


def _parameters(manifest: Manifest, config: RunConfig, num_phases: int) -> Iterator[str]:
    """The tensors are those of the model in the config, and the digests those of its matrices."""
    held = manifest.parameters
    if EMBEDDING not in held:
        yield f"there is no parameter {EMBEDDING}"
        return
    live = frozenset(name for name, entry in held.items() if entry.live)
    shape = config.shape
    wanted = entries(shape, held[EMBEDDING].shape[0], live)
    added = config.methods.parameters(layer_shapes(shape), num_phases)
    wanted |= {name: ParameterEntry(p.shape, p.partition_dim) for name, p in added.items()}
    for name in [*wanted, *(name for name in held if name not in wanted)]:
        if held.get(name) != wanted.get(name):
            yield f"{name} is {held.get(name)}, the model of its config has {wanted.get(name)}"
            return
    names = set(manifest.state["topology"])
    for name in sorted(names ^ {name.removesuffix(".weight") for name in live}):
        if f"{name}.weight" not in held or f"{name}.weight" in live:
            yield f"state.topology: {name} is no matrix on a topology, or has no digest"
    for name in sorted(set(manifest.state.get("backends", {})) - names):
        yield f"state.backends: {name} is no matrix on a topology"


def _place(position: Position, step: int, config: RunConfig, schedule: Schedule) -> Iterator[str]:
    """The position is one that a run of these phases can be at, between two steps."""
    phases = schedule.phases
    if position.step != step:
        yield f"state.position.step: {position.step}, the manifest is of step {step}"
    if position.phase > len(phases):
        yield f"state.position.phase: {position.phase}, the run has {len(phases)} phases"
        return
    steps = phases[position.phase].num_steps if position.phase < len(phases) else 1
    if position.phase_step >= steps:
        yield f"state.position.phase_step: {position.phase_step}, the phase has {steps} steps"
    before = sum(phase.num_steps for phase in phases[: position.phase])
    may_end_early = config.phases.patience > 0 or config.phases.until_loss is not None
    least = position.phase if may_end_early else before
    if not least <= position.step - position.phase_step <= before:
        yield (
            f"state.position.step: {position.step}, but step {position.phase_step} of phase "
            f"{position.phase} is step {before + position.phase_step} of the run"
        )
    if not position.started:
        yield "state.position.started: false, and the run was saved after its first evaluation"


def _observed(found: Observed, position: Position, *, moves: bool) -> Iterator[str]:
    """Nobody has seen more than happened. `moves`: a method moves the graph."""
    lives = found.turnover or Lives()
    if not lives.gone <= lives.steps <= lives.gone * position.step or (lives.gone and not moves):
        yield f"state.observers.turnover: {lives.gone} lives of {lives.steps} steps"
    if found.health.bad_steps > position.step:
        yield f"state.observers.health.bad_steps: {found.health.bad_steps} of {position.step} steps"
    if found.early_end.num_bad > position.step:
        yield f"state.observers.early_end.num_bad: {found.early_end.num_bad}"
    sums = found.plasticity
    if sums.num_looks > position.step:
        yield f"state.observers.plasticity.num_looks: {sums.num_looks}"
    if not (sums.p_unclamped <= sums.p and 0.0 <= sums.p <= sums.num_looks):
        yield f"state.observers.plasticity.p: {sums.p} in {sums.num_looks} looks"
    if position.data_shift and not found.health.rollbacks:
        yield f"state.position.data_shift: {position.data_shift} without a rollback"


def _references(found: RunState, schedule: Schedule) -> Iterator[str]:
    """Models are compared with the ends of phases that are over, each the last of its domain."""
    kept = found.observers.drift or References()
    last = {phase.domain: phase.index for phase in schedule.phases[: found.position.phase]}
    lawful = [] if JOINT in last else sorted(last.values())
    # Not all need be there: it may have been off when one ended.
    if kept.phases != [phase for phase in lawful if phase in kept.phases]:
        yield f"state.observers.drift.phases: {kept.phases}, the last ones so far are {lawful}"


def _results(found: RunState, schedule: Schedule) -> Iterator[str]:
    """Matrices have the domains of the run as columns and phases that are over as rows."""
    if found.matrix is None:
        return
    for name, rows in found.matrix:
        if not 2 <= len(rows) <= found.position.phase + 1:
            yield f"state.matrix.{name}: {len(rows)} rows after {found.position.phase} phases"
        if any(len(row) != len(schedule.domains) for row in rows):
            yield f"state.matrix.{name}: a row is not of {len(schedule.domains)} domains"


def _numbers(found: RunState, manifest: Manifest, config: RunConfig) -> Iterator[str]:
    """The optimizer has taken the steps that DeepSpeed has counted, on the moments there are."""
    numbers, counters = found.optimizer, found.optimizer.counters
    applied = counters.global_steps - counters.skipped_steps
    # --weights_only begins with a new optimizer in the middle of a run.
    if not 0 <= applied <= counters.global_steps <= manifest.step:
        yield (
            f"state.optimizer.counters: {counters.global_steps} steps, {counters.skipped_steps} "
            f"of them skipped, at step {manifest.step}"
        )
    if counters.global_samples != counters.global_steps * config.batch.sequences:
        yield (
            f"state.optimizer.counters.global_samples: {counters.global_samples} in "
            f"{counters.global_steps} steps of {config.batch.sequences}"
        )
    resets = config.phases.optimizer_state == "reset"
    taken = {f"scalars.{name}.value": scalar.value for name, scalar in numbers.scalars.items()}
    if numbers.group_step is not None:
        taken["group_step"] = numbers.group_step
    for name, steps in taken.items():
        if not (0 <= steps <= applied if resets else steps == applied) or steps != int(steps):
            yield f"state.optimizer.{name}: {steps}, but {applied} steps were applied"
    held = {piece.state for piece in manifest.pieces if "." not in piece.state} - {MASTER}
    unknown = held - set(numbers.moments)
    if unknown or len(set(numbers.moments)) != len(numbers.moments):
        yield f"state.optimizer.moments: {numbers.moments}, the files hold {sorted(held)}"


def _methods(found: RunState, manifest: Manifest, config: RunConfig) -> Iterator[str]:
    """Every method takes back what is kept for it."""
    tensors = {piece.state for piece in manifest.pieces if "." in piece.state}
    try:
        build_methods(config.methods).check_state(tensors, found.methods)
    except ValueError as error:
        yield f"state.methods: {error}"


def _arrays(reader: Reader, arrays: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """The same for what methods and observers keep beside the parameters."""
    manifest = reader.manifest
    if manifest.state.get("weights_only") is True and not arrays:
        return
    drift = arrays_of("drift", arrays)
    kept = manifest.state.get("observers", {}).get("drift") or {}
    # Padding is no token, but how much of the matrix is padding depends on the layout.
    rows = manifest.parameters[EMBEDDING].shape[0]
    for problem in array_problems(References(**kept), drift, vocab_size=rows):
        yield f"observers: drift.{problem}"
    for problem in births_problems(arrays_of("turnover", arrays), reader.topologies):
        yield f"observers: turnover.{problem}"
    observed = ("drift.", "turnover.")
    own = {key: value for key, value in arrays.items() if not key.startswith(observed)}
    try:
        build_methods(_config(manifest).methods).check_arrays(
            own, manifest.state.get("methods", {})
        )
    except ValueError as error:
        yield f"methods: {error}"


def _config(manifest: Manifest) -> RunConfig:
    """Of a manifest whose state has no problems."""
    return parsed(manifest.state["config"]) or RunConfig()


STATE = StateLaws(
    problems=state_problems,
    rewires=lambda manifest: _config(manifest).methods.rewires,
    not_negative=lambda manifest: _config(manifest).methods.not_negative(),
    arrays=_arrays,
)
"""For checkpoint/laws.py."""
