"""The DeepSpeed JSON, completed from the run config and checked against it.

DeepSpeed owns how state is sharded, moved and reduced; the run config owns every number that
changes what is learned. A number of the run config may stand in the JSON as "auto", or not at
all, or with the same value; another value is an error that names both places.

Differs from what DeepSpeed itself does with a JSON: it accepts an unknown top-level key in
silence, clips at 1.0 when the file says nothing, and answers a typo in a block with a page.
"""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from sparsecl.config_nodes import suggest
from sparsecl.engine.deepspeed.ds_json import JsonFile, read_json
from sparsecl.engine.deepspeed.ds_keys import (
    ALLOWED,
    LOOSE_KEYS,
    NUMBERS,
    OPTIMIZERS,
    REFUSED,
)
from sparsecl.errors import UserError

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class RunNumbers:
    """The numbers of the run config that DeepSpeed has to know."""

    precision: Literal["fp32", "bf16", "fp16"]
    """Of weights and activations; masters and moments are fp32."""

    sequences: int
    """Global sequences per optimizer step (batch.sequences)."""

    micro: int
    """Sequences per rank and forward pass (batch.micro)."""

    dp_size: int
    """Data-parallel ranks."""

    clip: float
    """Largest global gradient norm (optimizer.clip); 0 = no clipping."""

    lr: float
    """Peak learning rate; the schedule overwrites it at every step."""

    betas: tuple[float, float]
    """Decay of the first and second moment."""

    eps: float
    """Added to the root of the second moment."""

    weight_decay: float
    """Decoupled weight decay."""

    whole_matrices: str | None = None
    """optimizer.kind where it has to see whole matrices; None = it works elementwise."""


@dataclass(frozen=True)
class Resolved:
    """What `deepspeed.initialize` gets, and what the engine wants to know of it."""

    config: dict[str, Any]
    """Complete: no "auto" is left in a number that the run config owns."""

    warnings: tuple[str, ...]
    """One line each, to be said once on rank 0."""

    stage: int
    """ZeRO stage, 0 to 3."""

    offload: bool
    """Whether the optimizer state lives on the CPU."""


def resolve(path: Path, numbers: RunNumbers) -> Resolved:
    """Complete the DeepSpeed JSON at `path` with `numbers` and check it.

    Raises:
        UserError: syntax, an unknown key, a value of the wrong kind, or a contradiction between
            the file and the run config. DeepSpeed is imported only when all else is well.
    """
    file = read_json(path)
    _check_keys(file)
    config = copy.deepcopy(file.values)
    config.setdefault("zero_optimization", {}).setdefault("stage", 0)
    _fill_batch(file, config, numbers)
    _fill_precision(file, config, numbers)
    if "optimizer" in config and numbers.whole_matrices is not None:
        problem = f"remove this block: the run config has optimizer.kind={numbers.whole_matrices}"
        file.fail("optimizer", problem)
    if "optimizer" in config:
        _fill_optimizer(file, config["optimizer"], numbers)
    stage, offload = _check_zero(file, config, numbers)
    _check_blocks(file, config)
    # DeepSpeed's timer is on if the file says nothing, and waits for the device twice in every
    # micro-batch; the run measures its own speed.
    timers = config.setdefault("timers", {}).setdefault("throughput", {})
    timers.setdefault("enabled", False)
    return Resolved(config, tuple(_warnings(file, config)), stage, offload)


def accumulation(sequences: int, micro: int, dp_size: int) -> int:
    """Micro-batches per optimizer step: sequences / (micro x dp_size), a whole number.

    Raises:
        UserError: with the equation and the nearest values that work.
    """
    per_pass = micro * dp_size
    if sequences >= per_pass and sequences % per_pass == 0:
        return sequences // per_pass
    below = sequences // per_pass * per_pass
    near = [str(value) for value in (below, below + per_pass) if value > 0]
    fits = [m for m in range(1, sequences + 1) if sequences % (m * dp_size) == 0]
    fits = sorted(sorted(fits, key=lambda m: abs(m - micro))[:4])
    way_out = f"use batch.sequences={' or '.join(near)}"
    if fits:
        way_out += f", or batch.micro={' or '.join(map(str, fits))}"
    raise UserError(
        f"batch.sequences={sequences} is not a multiple of batch.micro x data-parallel ranks "
        f"= {micro} x {dp_size} = {per_pass}; {way_out}"
    )


# ---- keys and kinds ------------------------------------------------------------------------


def _check_keys(file: JsonFile) -> None:
    for key, value in file.values.items():
        if key in REFUSED:
            file.fail(key, f"remove this key: {REFUSED[key]}")
        if key not in ALLOWED:
            file.fail(key, f"unknown key; {suggest(key, list(ALLOWED))}")
        if not _is_kind(value, ALLOWED[key]):
            file.fail(key, f"expected {ALLOWED[key]}, got {json.dumps(value)}")
        if key in LOOSE_KEYS:
            _check_names(file, key, value, LOOSE_KEYS[key])


def _check_names(file: JsonFile, key: str, value: dict[str, Any], known: Sequence[str]) -> None:
    for name in value:
        if name not in known:
            file.fail(f"{key}.{name}", f"unknown key; {suggest(name, known)}")


def _is_kind(value: Any, kind: str) -> bool:
    if kind.endswith(" or null") and value is None:
        return True
    if kind == "fp32, bf16 or fp16":
        return value in ("fp32", "bf16", "fp16")
    if kind == "true or false":
        return isinstance(value, bool)
    if kind == "a number above 0":
        return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
    if kind.startswith("a whole number"):
        return isinstance(value, int) and not isinstance(value, bool)
    if kind.startswith("text"):
        return isinstance(value, str)
    return isinstance(value, dict) if kind == "an object" else True


# ---- numbers that both sides may give ------------------------------------------------------


def _fill(
    file: JsonFile, block: dict[str, Any], key: str, value: Any, source: str, *, way_out: str = ""
) -> None:
    """Put `value` where the file says "auto" or nothing; refuse another value."""
    name = key.rpartition(".")[2]
    written = block.get(name, AUTO)
    if written != AUTO and not _equal(written, value):
        way_out = way_out or 'write "auto", or make the two equal'
        file.fail(key, f"is {json.dumps(written)}, but the run config has {source}; {way_out}")
    block[name] = value


def _equal(written: Any, value: Any) -> bool:
    if isinstance(value, list):
        same = isinstance(written, list) and len(written) == len(value)
        return same and all(map(_equal, written, value))
    # In Python True == 1; in a config they are different things.
    return isinstance(written, bool) == isinstance(value, bool) and written == value


def _fill_batch(file: JsonFile, config: dict[str, Any], numbers: RunNumbers) -> None:
    sequences, micro, dp_size = numbers.sequences, numbers.micro, numbers.dp_size
    num_passes = accumulation(sequences, micro, dp_size)
    equation = f"batch.sequences / (batch.micro x ranks) = {sequences} / ({micro} x {dp_size})"
    entries = (
        ("train_batch_size", sequences, f"batch.sequences={sequences}"),
        ("train_micro_batch_size_per_gpu", micro, f"batch.micro={micro}"),
        ("gradient_accumulation_steps", num_passes, f"{equation} = {num_passes}"),
        ("gradient_clipping", float(numbers.clip), f"optimizer.clip={numbers.clip}"),
    )
    for key, value, source in entries:
        _fill(file, config, key, value, source)


def _fill_precision(file: JsonFile, config: dict[str, Any], numbers: RunNumbers) -> None:
    for name in ("bf16", "fp16"):
        block = config.setdefault(name, {})
        source = f"precision={numbers.precision}"
        _fill(file, block, f"{name}.enabled", numbers.precision == name, source)
    _fill_accumulation(file, config, numbers)


def _fill_accumulation(file: JsonFile, config: dict[str, Any], numbers: RunNumbers) -> None:
    """Sum the gradients of several micro-batches in fp32, unless the file says otherwise."""
    types = config.get("data_types", {})
    written = types.get("grad_accum_dtype")
    if config["zero_optimization"]["stage"] == 0:
        # DeepSpeed's stage 0 sums in the precision of the weights and knows nothing else.
        if written not in (None, numbers.precision):
            problem = f"is {json.dumps(written)}; with ZeRO stage 0 and precision"
            file.fail("data_types.grad_accum_dtype", f"{problem}={numbers.precision} remove it")
    elif numbers.precision != "fp32" and config["gradient_accumulation_steps"] > 1:
        # bf16 keeps 8 significant bits: a sum of many micro-batches would lose the later ones.
        config.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")
    if sums_in_fp32(config) and config["zero_optimization"]["stage"] == 1:
        # Else the wrapper of stage 1 keeps every gradient twice, in bf16 and in fp32.
        config["bf16"].setdefault("immediate_grad_update", True)


def sums_in_fp32(config: Mapping[str, Any]) -> bool:
    """Whether a resolved config adds gradients of lower precision in fp32."""
    low = config["bf16"]["enabled"] or config["fp16"]["enabled"]
    return low and config.get("data_types", {}).get("grad_accum_dtype") == "fp32"


def _fill_optimizer(file: JsonFile, block: dict[str, Any], numbers: RunNumbers) -> None:
    kind = block.get("type")
    if not isinstance(kind, str) or kind.lower() not in OPTIMIZERS:
        problem = f"unknown optimizer {json.dumps(kind)}; {suggest(str(kind), list(OPTIMIZERS))}"
        file.fail("optimizer.type", problem)
    params = block.setdefault("params", {})
    if not isinstance(params, dict):
        file.fail("optimizer.params", f"expected an object, got {json.dumps(params)}")
    if "max_grad_norm" in params:
        file.fail("optimizer.params.max_grad_norm", "use optimizer.clip in the run config")
    known = OPTIMIZERS[kind.lower()]
    _check_names(file, "optimizer.params", params, known)
    for name in NUMBERS:
        if name in known:
            value = getattr(numbers, name)
            value = list(value) if isinstance(value, tuple) else value
            source = f"optimizer.{name}={json.dumps(value)}"
            _fill(file, params, f"optimizer.params.{name}", value, source)


# ---- ZeRO ----------------------------------------------------------------------------------


def _check_zero(file: JsonFile, config: dict[str, Any], numbers: RunNumbers) -> tuple[int, bool]:
    zero = config["zero_optimization"]
    stage = zero["stage"]
    if type(stage) is not int or not 0 <= stage <= 3:
        file.fail("zero_optimization.stage", f"must be 0, 1, 2 or 3, got {json.dumps(stage)}")
    if numbers.whole_matrices is not None and stage > 0:
        file.fail("zero_optimization.stage", f"is {stage}, {_needs_stage_0(numbers)}")
    if "zenflow" in zero:
        file.fail("zero_optimization.zenflow", "remove it: it updates only a part of the weights")
    for name in zero:
        if name.startswith("cpu_offload"):
            way_out = 'write "offload_optimizer": {"device": "cpu"}'
            file.fail(f"zero_optimization.{name}", f"is deprecated by DeepSpeed; {way_out}")
    devices = {}
    for name in ("offload_optimizer", "offload_param"):
        block = zero.get(name)
        devices[name] = block.get("device", "none") if isinstance(block, dict) else "none"
        if devices[name] == "nvme":
            problem = 'nvme is not supported: the audit reads the state in memory; use "cpu"'
            file.fail(f"zero_optimization.{name}.device", problem)
        ratio = block.get("ratio", 1.0) if isinstance(block, dict) else 1.0
        if ratio != 1.0:
            problem = f"must be 1, got {json.dumps(ratio)}: else a part is stepped past its masks"
            file.fail(f"zero_optimization.{name}.ratio", problem)
    if numbers.clip > 0 and zero.get("compute_grad_norm") is False:
        problem = f"is false, but the run config has optimizer.clip={numbers.clip}; remove it"
        file.fail("zero_optimization.compute_grad_norm", problem)
    offload = devices["offload_optimizer"] == "cpu"
    if stage == 1 and zero.get("compute_grad_norm") is False and not offload:
        if numbers.precision == "bf16" and sums_in_fp32(config):
            problem = "is false, but fp32 sums of bf16 gradients need the norm in stage 1; remove"
            way_out = 'it, or write "data_types": {"grad_accum_dtype": "bf16"}'
            file.fail("zero_optimization.compute_grad_norm", f"{problem} {way_out}")
    if "optimizer" not in config:
        # The engine brings a torch optimizer; ZeRO takes it only with these two permissions.
        reason = "its own optimizer"
        _fill(file, config, "zero_allow_untested_optimizer", True, reason, way_out="write true")
        if offload:
            _fill(file, config, "zero_force_ds_cpu_optimizer", False, reason, way_out="write false")
    return stage, offload


def _needs_stage_0(numbers: RunNumbers) -> str:
    return (
        f"and optimizer.kind={numbers.whole_matrices} needs whole matrices, which ZeRO cuts into "
        "slices from stage 1 on. Use stage 0 (ds_configs/zero0.json), whatever parallel.tensor, or "
        "optimizer.kind=adamw"
    )


def _warnings(file: JsonFile, config: dict[str, Any]) -> Iterator[str]:
    zero = config["zero_optimization"]
    overlap = zero.get("overlap_comm", AUTO)
    if overlap is True or (overlap in (AUTO, None) and zero["stage"] == 3):
        why = "" if overlap is True else " (DeepSpeed's default for stage 3)"
        yield (
            f"{file.path}: zero_optimization.overlap_comm is on{why}: losses may differ from run "
            "to run; write false for exact ones"
        )
    for name in ("zero_quantized_weights", "zero_quantized_gradients"):
        if zero.get(name) is True:
            yield f"{file.path}: zero_optimization.{name} rounds: compare only with runs that do so"


# ---- DeepSpeed's own models ----------------------------------------------------------------


def _check_blocks(file: JsonFile, config: dict[str, Any]) -> None:
    """Let DeepSpeed's pydantic models judge their blocks, and say it in one line."""
    import pydantic
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    models: dict[str, Any] = {
        "zero_optimization": DeepSpeedZeroConfig,
        "bf16": DeepSpeedBF16Config,
        "fp16": DeepSpeedFP16Config,
        "comms_logger": CommsLoggerConfig,
        "tensorboard": TensorBoardConfig,
        "csv_monitor": CSVConfig,
        "wandb": WandbConfig,
        "comet": CometConfig,
        "timers.throughput": DeepSpeedThroughputTimerConfig,
    }
    for key, model in models.items():
        outer, _, inner = key.partition(".")
        block = config.get(outer, {})
        block = block.get(inner, {}) if inner else block
        if not isinstance(block, dict):
            file.fail(key, f"expected an object, got {json.dumps(block)}")
        try:
            model(**copy.deepcopy(block))
        except pydantic.ValidationError as error:
            _fail_first(file, key, model, error.errors()[0])
        except (AssertionError, ValueError) as error:
            file.fail(key, str(error))


def _fail_first(file: JsonFile, key: str, model: Any, detail: Any) -> None:
    names = [str(part) for part in detail["loc"]]
    where = ".".join([key, *names])
    if detail["type"] == "extra_forbidden":
        file.fail(where, f"unknown key; {suggest(names[-1], _names(model, names[:-1]))}")
    value = f", got {json.dumps(detail['input'])}" if names else ""
    file.fail(where, f"{detail['msg']}{value}")


def _names(model: Any, way: list[str]) -> list[str]:
    """Keys that the pydantic model at the end of `way` accepts, as a user writes them."""
    for name in way:
        field = model.model_fields[name]
        nested = [t for t in (field.annotation, *get_args(field.annotation)) if _is_model(t)]
        model = nested[0]
    return [field.alias or name for name, field in model.model_fields.items()]


def _is_model(tp: Any) -> bool:
    return hasattr(tp, "model_fields")
