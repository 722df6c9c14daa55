"""Controls of an arm, made from its config: each takes one explanation away.

equal_parameters  is it the number of weights?    a dense model with the arm's live parameters
stopped_early     is it having learned less?      the reference, cut short at the arm's losses
update_only       is it that fewer weights move?  all exist, those of the topology are trained
equal_flops       is it the work?                 the arm, trained for the reference's FLOPs
joint             how good can it get?            all domains at once
alone             how fast is a fresh model?      each domain by itself
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from sparsecl.engine.run_config import RunConfig
from sparsecl.errors import UserError
from sparsecl.experiments.study.pairing import same_data
from sparsecl.experiments.study.study_file import ControlsConfig, Setting
from sparsecl.experiments.study.study_plan import Role, reference_at

TOLERANCE = 0.01
"""Relative difference of live parameters that still counts as equal."""

SPARSE = "all_sparse"
"""In a list of arms: all that are not dense."""


class Sized(Protocol):
    """How large a model is; of networks on streams: streams/size.py."""

    @property
    def live(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def density(self) -> float: ...


class Priced(Sized, Protocol):
    """What a run costs before it starts; engine/price.py."""

    @property
    def flops_per_token(self) -> int: ...
    @property
    def gradient_flops(self) -> int: ...
    @property
    def score_flops(self) -> int: ...
    @property
    def flops(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def tokens(self) -> int: ...


@dataclass(frozen=True)
class Control:
    """A setting, and what it is the control of."""

    setting: Setting
    role: Role
    of: str
    needs_losses: bool = False
    """Each of its phases ends at the loss of `of` after that phase: known when that run is done."""
    after: int | None = None
    """Probes: phases of `of` that they follow."""


def controls(
    config: ControlsConfig,
    settings: list[Setting],
    reference: str,
    price: Callable[[RunConfig], Priced],
) -> Iterator[Control]:
    """All controls that a study asks for, arm by arm.

    Args:
        reference: name of the arm that others are compared with.
        price: counts live parameters and FLOPs of a config.

    Raises:
        UserError: if an arm is not there, or a control cannot be made of it.
    """
    by_name = {setting.name: setting for setting in settings}
    references = own_references(settings, reference)

    def made(name: str, control: str, config: RunConfig) -> Setting:
        # What is made of the arm itself takes what the arm takes; the reference takes nothing.
        arm = by_name[name]
        setting = Setting(f"{name}.{control}", config, size=arm.size)
        own = control not in ("equal_parameters", "stopped_early")
        return replace(setting, link=arm.link) if own else setting

    def base(name: str) -> RunConfig:
        return references[by_name[name].size].config

    for name in _asked(config.equal_parameters, "equal_parameters", settings):
        arm = by_name[name].config
        narrow = equal_parameters(name, arm, base(name), price)
        yield Control(made(name, "equal_parameters", narrow), "equal_parameters", name)
    for name in _asked(config.stopped_early, "stopped_early", settings):
        stopped = made(name, "stopped_early", _stoppable(name, by_name[name].config, base(name)))
        yield Control(stopped, "stopped_early", name, True)
    for name in _asked(config.update_only, "update_only", settings):
        arm = by_name[name].config
        update = made(name, "update_only", _update_only(name, arm))
        yield Control(update, "update_only", name)
    for name in _asked(config.equal_flops, "equal_flops", settings):
        arm = by_name[name].config
        dense, own = price(base(name)), price(arm)
        ratio = (dense.flops / dense.tokens) / (own.flops / own.tokens)
        yield Control(made(name, "equal_flops", longer(arm, ratio)), "equal_flops", name)
    for name in _asked(config.joint, "joint", settings):
        arm = by_name[name].config
        joint = replace(arm, phases=replace(arm.phases, joint=True, patience=0))
        yield Control(made(name, "joint", joint), "joint", name)
    for name in _asked(config.alone, "alone", settings):
        for domain, alone in each_alone(by_name[name].config):
            yield Control(made(name, f"alone.{domain}", alone), "alone", name)


def own_references(settings: list[Setting], reference: str) -> dict[str | None, Setting]:
    """Size -> the setting that others of this size are compared with.

    Raises:
        UserError: if the reference is no arm.
    """
    by_name = {setting.name: setting for setting in settings}
    if reference not in by_name:
        raise UserError(f"analysis.reference: there is no arm {reference}; name one of the arms")
    first = by_name[reference].size
    sizes = dict.fromkeys(setting.size for setting in settings)
    return {size: by_name[reference_at(reference, first, size)] for size in sizes}


def equal_parameters(
    name: str,
    arm: RunConfig,
    reference: RunConfig,
    price: Callable[[RunConfig], Priced],
) -> RunConfig:
    """The reference made narrower until it has as many parameters as `arm` has live ones.

    Width and hidden units shrink in the same proportion, as near as whole heads allow; hidden units
    then take up the rest. The embedding is part of the count, so it shrinks too.

    Raises:
        UserError: if no width comes within 1 %.
    """
    target = price(arm).live
    shape = reference.model.resolved()
    dense = replace(reference, topology=replace(reference.topology, kind="dense"))

    def sized(width: int, mlp: int) -> RunConfig:
        return replace(dense, model=replace(dense.model, width=width, heads=shape.heads, mlp=mlp))

    best: tuple[float, RunConfig] | None = None
    step = dense.parallel.tensor
    # Rotary positions turn the features of a head in pairs.
    widths = shape.heads * (2 if shape.rotary else 1)
    for width in range(widths, shape.width + 1, widths):
        least, more = price(sized(width, step)).live, price(sized(width, 2 * step)).live
        mlp = step * max(1, round(1 + (target - least) / (more - least)))
        found = sized(width, mlp)
        if abs(price(found).live - target) > TOLERANCE * target:
            continue
        ratio = (mlp / width) / (shape.mlp / shape.width)
        distance = max(ratio, 1 / ratio)
        if best is None or distance < best[0]:
            best = (distance, found)
    if best is None:
        raise UserError(
            f"controls.equal_parameters: no dense model with {shape.heads} heads comes within 1 % "
            f"of the {target:,} live parameters of {name}; give the base fewer heads"
        )
    return best[1]


def longer(arm: RunConfig, ratio: float) -> RunConfig:
    """The arm with its phases `ratio` times as long."""
    phases = arm.phases
    key = "tokens" if phases.tokens is not None else "steps"
    given = getattr(phases, key)
    if given is None:
        raise UserError("controls.equal_flops needs phases.steps or phases.tokens in the base")
    scaled = (
        tuple(round(ratio * count) for count in given)
        if isinstance(given, tuple)
        else round(ratio * given)
    )
    return replace(arm, phases=replace(phases, **{key: scaled}))


def each_alone(arm: RunConfig) -> Iterator[tuple[str, RunConfig]]:
    """(domain, config) of every domain, trained from the start as in its first phase.

    It reads the sequences that it reads in that phase.
    """
    phases = arm.phases
    order = phases.order or tuple(domain.name for domain in arm.data.domains)
    for domain in dict.fromkeys(order):
        place = order.index(domain)
        changes: dict[str, object] = {
            key: value[place]
            for key in ("steps", "tokens")
            if isinstance(value := getattr(phases, key), tuple)
        }
        alone = replace(phases, order=(domain,), offset=place, **changes)  # type: ignore[arg-type]
        yield domain, replace(arm, phases=alone)


def _asked(names: tuple[str, ...], control: str, settings: list[Setting]) -> list[str]:
    """The arms that get a control, in the order of the study."""
    known = [setting.name for setting in settings]
    for name in names:
        if name != SPARSE and name not in known:
            raise UserError(
                f"controls.{control}: there is no arm {name}; there are {', '.join(known)}, "
                f"and {SPARSE} for all that are not dense"
            )
    return [
        setting.name
        for setting in settings
        if setting.name in names or (SPARSE in names and _is_sparse_arm(setting))
    ]


def _is_sparse_arm(setting: Setting) -> bool:
    return setting.role == "arm" and setting.config.topology.kind != "dense"


def _stoppable(name: str, arm: RunConfig, reference: RunConfig) -> RunConfig:
    if not same_data(arm, reference):
        raise UserError(
            f"controls.stopped_early: {name} reads other data than the reference, so its losses "
            "cannot end the phases of the reference"
        )
    if not reference.eval.every:
        raise UserError(
            f"controls.stopped_early: {name}: the reference must be scored within phases to be "
            "stopped in them; set eval.every > 0 in the base"
        )
    return reference


def _update_only(name: str, arm: RunConfig) -> RunConfig:
    if arm.topology.kind == "dense":
        raise UserError(f"controls.update_only: {name} is dense; all its weights are trained")
    changes = {"role": "update", "storage": "masked", "backend": "dense", "keep_expansion": False}
    return replace(arm, topology=replace(arm.topology, **changes))
