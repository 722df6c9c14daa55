"""A study file: the base config, what the arms change in it, controls, seeds, analysis.

Everything under `base`, `scales.NAME.run`, `arms.NAME` and the levels of an axis is a piece of a
run config (engine/run_config.py); later pieces are laid over earlier ones, and an unknown key is
an error that names its line.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Literal, TypeVar

from yaml.nodes import MappingNode, Node

from sparsecl import config as configs
from sparsecl.checkout import shipped
from sparsecl.config_nodes import empty_mapping, fail, join, override
from sparsecl.engine.run_config import RunConfig
from sparsecl.errors import UserError
from sparsecl.experiments.study.chain import ChainConfig, LinkConfig, chained, with_kept
from sparsecl.experiments.study.orders import Order, named
from sparsecl.experiments.study.probes_config import ProbesConfig
from sparsecl.experiments.study.study_plan import AnalysisConfig, Role, at_size
from sparsecl.experiments.study.tune import TuneConfig

GIVEN = {
    "seed": "a study gives every run its seed; list them under seeds, or use --seeds",
    "seeds": "a study gives every run its seed; list them under seeds, or use --seeds",
    "name": "a study names its runs, by arm and seed; leave it out",
}
"""Keys of the config of a run or a stream that would have no effect in a study."""

C = TypeVar("C")
"""Config of the runs of a study."""

S = TypeVar("S")
"""One of its scales."""

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,80}")


@dataclass(frozen=True, kw_only=True)
class GridConfig:
    """Arms made of axes; the first level of every axis is its centre."""

    design: Literal["one_at_a_time", "factorial"]
    """one_at_a_time: the centre, and every other level alone; factorial: every combination."""

    axes: dict[str, dict[str, Node]]
    """Axis -> level -> what it changes in the base config."""


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """One size at which a study can run."""

    run: Node | None = None
    """What it changes in the base config."""

    arms: dict[str, Node] = field(default_factory=dict)
    """Arm of the study -> what this scale changes in it, last."""

    sizes: dict[str, Node] = field(default_factory=dict)
    """Sizes of the model -> what each changes in the base config. Every arm and control is run at
    every size, as SIZE-ARM, and compared within its size; else the study has one size."""

    seeds: int | tuple[int, ...] | None = None
    """In place of the study's."""

    ds_config: str | None = None
    """In place of the study's."""

    base: str | None = None
    """A run config laid over the base before `run`, relative to the current folder: for example
    other data."""

    orders: dict[str, Order] | None = None
    """In place of the study's."""

    grids: tuple[GridConfig, ...] | None = None
    """In place of the study's."""

    tune: TuneConfig | None = None
    """In place of the study's."""


@dataclass(frozen=True, kw_only=True)
class ControlsConfig:
    """Controls, each with the names of its arms; "all_sparse" stands for all that are not dense."""

    equal_parameters: tuple[str, ...] = ()
    """A dense model with as many parameters as the arm has live ones: narrower, within 1 %."""

    stopped_early: tuple[str, ...] = ()
    """The reference, each phase ended at the arm's loss on its domain right after that phase."""

    update_only: tuple[str, ...] = ()
    """All weights exist, those of the arm's topology are trained."""

    equal_flops: tuple[str, ...] = ()
    """The arm, trained longer: as many FLOPs as the reference."""

    joint: tuple[str, ...] = ()
    """All domains at once: the upper bound."""

    alone: tuple[str, ...] = ()
    """Each domain alone from the initial weights: the reference for learning speed."""


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """A study as it is written."""

    name: str
    """Names its folder."""

    question: str = ""
    """For the report: what the study asks, in a sentence or two."""

    base: Node | None = None
    """What all arms share."""

    scales: dict[str, ScaleConfig] = field(default_factory=dict)
    """Sizes by name; --scale picks one, else the first."""

    seeds: int | tuple[int, ...] = 6
    """Number of seeds, from 0 on, or the seeds themselves."""

    ds_config: str = "ds_configs/zero1.json"
    """DeepSpeed JSON, relative to the current folder."""

    orders: dict[str, Order] = field(default_factory=dict)
    """Name -> domain trained in each phase, or a word for it (study/orders.py): every run is made
    once in each of these orders. Empty = in that of the run config."""

    arms: dict[str, Node] = field(default_factory=dict)
    """Name -> what the arm changes in the base config."""

    labels: dict[str, str] = field(default_factory=dict)
    """Arm -> text for tables and legends; else its name."""

    grids: tuple[GridConfig, ...] = ()
    """More arms."""

    links: dict[str, LinkConfig] = field(default_factory=dict)
    """Arm -> what its runs take from finished runs of other arms."""

    chains: dict[str, ChainConfig] = field(default_factory=dict)
    """Name -> rounds of pruning, which make arms: NAME.1, NAME.2, ..."""

    controls: ControlsConfig = field(default_factory=ControlsConfig)

    probes: ProbesConfig | None = None
    """Runs that begin with the weights after some phases of each arm, and learn one new domain."""

    analysis: AnalysisConfig = field(default_factory=AnalysisConfig)

    tune: TuneConfig | None = None
    """Values that each arm gets from trials before the test; controls have those of the config
    that they are made of."""

    def __post_init__(self) -> None:
        check_names(
            name=[self.name],
            arms=self.arms,
            scales=self.scales,
            chains=self.chains,
            orders=self.orders,
        )
        if not self.arms and not self.grids:
            raise ValueError("arms is missing: a study needs arms, or grids that make them")


def check_names(**named: Iterable[str]) -> None:
    """Raise ValueError for a name that cannot name files.

    Args:
        named: key of the study -> names that stand under it.
    """
    for key, names in named.items():
        for name in names:
            if not NAME.fullmatch(name):
                raise ValueError(
                    f"{key}: {name!r} must be letters, digits, _ - . (81 at most, not - or . "
                    "first), for it names files"
                )


@dataclass(frozen=True)
class Setting:
    """One arm before it is planned."""

    name: str
    config: RunConfig
    levels: dict[str, str] = field(default_factory=dict)
    size: str | None = None
    """Of a study of several sizes."""
    link: LinkConfig = field(default_factory=LinkConfig)
    role: Role = "arm"
    of: str | None = None
    """Of what a chain has made: the arm that it belongs to."""


@dataclass(frozen=True)
class ScaledStudy:
    """A study at one of its sizes."""

    config: StudyConfig
    scale: str
    ds_config: Path
    seeds: tuple[int, ...]
    settings: tuple[Setting, ...]
    orders: dict[str, tuple[str, ...]] = field(default_factory=dict)


def read_study(
    path: Path,
    *,
    scale: str | None = None,
    base: Path | None = None,
    overrides: Sequence[str] = (),
    seeds: int | None = None,
) -> ScaledStudy:
    """Read a study file and lay out its arms.

    Args:
        scale: name of one of its scales; None = the first.
        base: one more run config laid over the base, for example with other data.
        overrides: "a.b=value" texts laid over it last.
        seeds: number of seeds in place of the study's.

    Raises:
        UserError: one line with the place and the key.
    """
    study = configs.load(StudyConfig, path)
    scale, found = scale_of(study.scales, scale, path)
    size = found or ScaleConfig()
    config = RunConfig()
    if study.base is not None:
        config = laid(config, study.base, "base")
    if size.base is not None:
        config = with_file(config, shipped(Path(size.base)))
    if size.run is not None:
        config = laid(config, size.run, f"scales.{scale}.run")
    if base is not None:
        config = with_file(config, base)
    config = overridden(config, overrides)
    study = replace(study, grids=study.grids if size.grids is None else size.grids)
    settings = _settings(study, size, config, path)
    if size.sizes:
        study, settings = _at_sizes(study, size, config, scale, path)
    domains = [domain.name for domain in settings[0].config.data.domains]
    study = replace(study, tune=_named_tuning(size.tune or study.tune, domains))
    orders = {
        name: named(order, domains, f"{path}: orders.{name}")
        for name, order in (study.orders if size.orders is None else size.orders).items()
    }
    _check_orders(orders, settings, path)
    return ScaledStudy(
        config=study,
        scale=scale,
        ds_config=shipped(Path(size.ds_config or study.ds_config)),
        seeds=seeds_of(seeds or size.seeds or study.seeds),
        settings=tuple(settings),
        orders=orders,
    )


def with_file(config: C, path: Path, allowed: Sequence[str] = ("name",)) -> C:
    """`config` with a file of its kind laid over it as it stands; it may have a name."""
    return laid(config, configs.read_nodes(path, type(config)), "", allowed=allowed)


def overridden(config: C, overrides: Sequence[str]) -> C:
    """`config` with "a.b=value" texts laid over it."""
    if not overrides:
        return config
    root = empty_mapping("defaults")
    for text in overrides:
        override(root, text)
    return laid(config, root, "")


def _named_tuning(tune: TuneConfig | None, domains: Sequence[str]) -> TuneConfig | None:
    if tune is None:
        return None
    order = named(tune.on.order, domains, "tune.on.order")
    return replace(tune, on=replace(tune.on, order=order))


def _check_orders(
    orders: dict[str, tuple[str, ...]], settings: Sequence[Setting], path: Path
) -> None:
    """Orders that would be no factor of this study."""
    for name, order in orders.items():
        key = f"{path}: orders.{name}"
        if not NAME.fullmatch(name):
            raise UserError(f"{key}: the name must be letters, digits, _ - .")
        twin = next(other for other, known in orders.items() if known == order)
        if twin != name:
            raise UserError(f"{key}: is the same as {twin}; leave one out")
        for setting in settings:
            if setting.config.phases.order:
                raise UserError(
                    f"{key}: {setting.name} has phases.order, so it would be run in no other; "
                    "leave one of the two out"
                )


def _at_sizes(
    study: StudyConfig, at: ScaleConfig, base: RunConfig, scale: str, path: Path
) -> tuple[StudyConfig, list[Setting]]:
    """The study as it would be written with all its arms spelled out at every size."""
    settings, sizes = [], at.sizes
    for size, node in sizes.items():
        key = f"scales.{scale}.sizes"
        if not NAME.fullmatch(size):
            raise UserError(f"{path}: {key}: {size!r} must be letters, digits, _ - .")
        config = laid(base, node, f"{key}.{size}")
        settings += [
            replace(
                setting,
                name=at_size(setting.name, size),
                size=size,
                link=setting.link.at_size(size),
                of=setting.of and at_size(setting.of, size),
            )
            for setting in _settings(study, at, config, path)
        ]

    def all_sizes(names: Sequence[str]) -> tuple[str, ...]:
        special = [name for name in names if name.startswith("all_")]
        others = [name for name in names if name not in special]
        return (*special, *(at_size(name, size) for size in sizes for name in others))

    controls = {f.name: all_sizes(getattr(study.controls, f.name)) for f in fields(study.controls)}
    analysis = replace(
        study.analysis,
        reference=at_size(study.analysis.reference, next(iter(sizes))),
        contrasts=tuple(
            replace(pair, arm=at_size(pair.arm, size), against=at_size(pair.against, size))
            for size in sizes
            for pair in study.analysis.contrasts
        ),
    )
    names = {setting.name.removeprefix(f"{setting.size}-") for setting in settings}
    labels = {
        at_size(name, size): f"{size}, {study.labels.get(name, name)}"
        for size in sizes
        for name in names
    }
    controls = ControlsConfig(**controls)
    return replace(study, analysis=analysis, controls=controls, labels=labels), settings


def laid(base: C, node: Node, key: str, allowed: Sequence[str] = ()) -> C:
    """`base` with a piece of a config laid over it; what the study sets itself is refused."""
    pairs = node.value if isinstance(node, MappingNode) else ()
    for key_node, _ in pairs:
        if key_node.value in GIVEN and key_node.value not in allowed:
            fail(key_node, join(key, key_node.value), GIVEN[key_node.value])
    return configs.overlay(base, node, key)


def scale_of(scales: Mapping[str, S], name: str | None, path: Path) -> tuple[str, S | None]:
    """One scale of a study and its name, the first if none is asked for; None if it has none.

    Raises:
        UserError: it has others.
    """
    if not scales and name is None:
        return "base", None
    name = name or next(iter(scales))
    if name not in scales:
        known = ", ".join(scales) or "none"
        raise UserError(f"--scale {name}: {path} has no such scale; it has {known}")
    return name, scales[name]


def seeds_of(given: int | tuple[int, ...]) -> tuple[int, ...]:
    """The seeds of a study, by their number or by themselves."""
    seeds = tuple(range(given)) if isinstance(given, int) else given
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(f"seeds: must be at least one, >= 0 and distinct, got {given}")
    return seeds


def _settings(study: StudyConfig, scale: ScaleConfig, base: RunConfig, path: Path) -> list[Setting]:
    """Arms as written, then those of the grids, then those of the chains; of two equal ones the
    first is kept."""
    check_known("links", study.links, study.arms, path)
    check_known("arms of a scale", scale.arms, study.arms, path)
    found = []
    for name, node in study.arms.items():
        config = laid(base, node, f"arms.{name}")
        if name in scale.arms:
            config = laid(config, scale.arms[name], f"arms.{name} of the scale")
        found.append(Setting(name, config, link=study.links.get(name, LinkConfig())))
    check_twins({one.name: (configs.digest(one.config), one.link) for one in found}, path)
    for number, grid in enumerate(study.grids):
        found += _grid(grid, base, f"grids.{number}")
    kept: dict[object, Setting] = {}
    for setting in found:
        key = (configs.digest(setting.config), setting.link)
        if key in kept:
            old = kept[key]
            kept[key] = replace(old, levels={**setting.levels, **old.levels})
        else:
            kept[key] = setting
    settings = [*kept.values()]
    settings += _chained(study, settings, path)
    names = [setting.name for setting in settings]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path}: two arms are named {name}; rename an arm, an axis or a level")
    check_known("labels", study.labels, names, path)
    return with_kept(settings, str(path), lambda setting, config: replace(setting, config=config))


def check_twins(found: Mapping[str, object], path: Path) -> None:
    """Refuse arms that are run in the same way.

    Args:
        found: arm -> what tells it from others.
    """
    written: dict[object, str] = {}
    for name, what in found.items():
        twin = written.setdefault(what, name)
        if twin != name:
            raise UserError(f"{path}: arms.{name}: is the same as {twin}; leave one out")


def check_known(key: str, names: Iterable[str], arms: Iterable[str], path: Path) -> None:
    """Refuse names under a key of a study that are not among its arms."""
    arms = list(arms)
    for name in names:
        if name not in arms:
            raise UserError(f"{path}: {key}: there is no arm {name}; there are {', '.join(arms)}")


def _chained(study: StudyConfig, settings: Sequence[Setting], path: Path) -> list[Setting]:
    """The arms that the chains of a study make of these."""
    by_name = {setting.name: setting.config for setting in settings}
    made = []
    for name, chain in study.chains.items():
        key = f"chains.{name}"
        if chain.of not in by_name:
            known = ", ".join(by_name)
            raise UserError(f"{path}: {key}.of: there is no arm {chain.of}; there are {known}")
        arm = by_name[chain.of]
        finding = None if chain.find is None else laid(arm, chain.find, f"{key}.find")
        made += [
            Setting(one.name, one.config, link=one.link, role=one.role, of=one.of)
            for one in chained(name, chain, arm, finding)
        ]
    return made


def _grid(grid: GridConfig, base: RunConfig, key: str) -> list[Setting]:
    for axis, levels in grid.axes.items():
        for name in (axis, *levels):
            if not NAME.fullmatch(name):
                raise UserError(f"{key}.axes: {name!r} must be letters, digits, _ - .")
        if not levels:
            raise UserError(f"{key}.axes.{axis}: needs at least one level")
    centre = {axis: next(iter(levels)) for axis, levels in grid.axes.items()}
    if grid.design == "factorial":
        combinations = [
            dict(zip(grid.axes, levels, strict=True)) for levels in product(*grid.axes.values())
        ]
    else:
        combinations = [centre] + [
            {**centre, axis: level}
            for axis, levels in grid.axes.items()
            for level in levels
            if level != centre[axis]
        ]
    return [_cell(grid, base, chosen, centre, key) for chosen in combinations]


def _cell(
    grid: GridConfig, base: RunConfig, chosen: dict[str, str], centre: dict[str, str], key: str
) -> Setting:
    """One combination of levels; its name tells what is off the centre."""
    config = base
    for axis, level in chosen.items():
        config = laid(config, grid.axes[axis][level], f"{key}.axes.{axis}.{level}")
    moved = [f"{axis}_{level}" for axis, level in chosen.items() if level != centre[axis]]
    return Setting("-".join(moved) or "centre", config, chosen)
