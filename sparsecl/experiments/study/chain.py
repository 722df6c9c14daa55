"""Chains of runs: arms that take their topology or their first weights from finished runs.

A link says what an arm takes, and from which other arm. A run then waits for that arm's run of its
own seed, as a control that is stopped at another run's losses does. Every link is a run with a
folder of its own, so a study that is stopped at any of them goes on from there.

A chain writes such arms: iterative magnitude pruning (Frankle and Carbin 2019,
https://arxiv.org/abs/1803.03635) with weights rewound to an early step (Frankle et al. 2020,
https://arxiv.org/abs/1912.05671), and its controls. Differs: a rewound run trains for all of its
steps and reads its data from the beginning, where the papers go on from the early step.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Protocol, TypeVar

from annotated_types import Ge, Gt, Lt
from yaml.nodes import Node

from sparsecl.bounds import check_bounds
from sparsecl.engine.run_config import RunConfig
from sparsecl.errors import UserError
from sparsecl.experiments.study.study_plan import Role, Run, at_size

ChainControl = Literal["one_shot", "random", "reinit"]


@dataclass(frozen=True, kw_only=True)
class LinkConfig:
    """What the runs of an arm take from finished runs, of the same seed and order."""

    mask: str | None = None
    """Arm whose last weights are pruned to the topology; the arm's own topology is kind ticket."""

    weights: str | None = None
    """Arm whose weights the run begins with, with a new optimizer. It may be denser."""

    step: Annotated[int | None, Ge(0)] = None
    """Take the weights after this step of that run, which is made to keep them; 0 = its initial
    weights, null = its last."""

    other_seed: bool = False
    """Take the weights of the study's next seed; the last seed takes those of the first."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.weights is None and (self.step is not None or self.other_seed):
            raise ValueError("step and other_seed say which weights; give weights: ARM")

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms that must be done before."""
        return tuple(name for name in (self.mask, self.weights) if name is not None)

    def at_size(self, size: str) -> "LinkConfig":
        """Between arms of one size of the model."""
        mask, weights = (name and at_size(name, size) for name in (self.mask, self.weights))
        return replace(self, mask=mask, weights=weights)


@dataclass(frozen=True, kw_only=True)
class ChainConfig:
    """Rounds of pruning: each prunes the run before it and trains what is left from the early
    weights. The arm NAME.K has the ticket of round K."""

    of: str
    """The arm that is pruned first, and whose early weights all rounds begin with."""

    rounds: Annotated[int, Ge(1)]
    """How often; the density is (1 - prune) ** K of that of the arm."""

    prune: Annotated[float, Gt(0), Lt(1)] = 0.2
    """Share of the live weights that a round removes, the smallest first."""

    rewind: Annotated[int, Ge(0)] = 0
    """Optimizer step of `of` whose weights all rounds begin with; 0 = its initial weights."""

    scope: Literal["global", "layer"] = "global"
    """Compare weights over all layers together, or in each layer by itself."""

    controls: tuple[ChainControl, ...] = ()
    """one_shot: `of` pruned once to the same number of weights; random: a random mask with the
    ticket's density in each layer; reinit: the ticket with another seed's initial weights."""

    at: tuple[int, ...] = ()
    """Rounds that get these controls; empty = all."""

    find: Node | None = None
    """What the runs that find the tickets change in the config, for example one domain in place of
    all; null = the arms find them themselves."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if wrong := [number for number in self.at if not 1 <= number <= self.rounds]:
            raise ValueError(f"at: there is no round {wrong[0]}; there are 1 to {self.rounds}")


@dataclass(frozen=True)
class Linked:
    """An arm that a chain has made."""

    name: str
    config: RunConfig
    link: LinkConfig
    role: Role = "arm"
    of: str | None = None


def chained(
    name: str, chain: ChainConfig, arm: RunConfig, finding: RunConfig | None
) -> Iterator[Linked]:
    """All arms of a chain, in the order in which they need each other.

    Args:
        arm: config of `chain.of`.
        finding: the same with `chain.find` laid over it; None = there is none.
    """
    first = chain.of
    if finding is not None:
        first = f"{name}.find0"
        yield Linked(first, finding, LinkConfig(), "link", chain.of)
    before, density = first, arm.topology.rho
    for number in range(1, chain.rounds + 1):
        density *= 1 - chain.prune
        ticket = f"{name}.{number}"
        link = LinkConfig(mask=before, weights=first, step=chain.rewind)
        yield Linked(ticket, pruned(arm, chain, density), link)
        for control in chain.controls:
            if chain.at and number not in chain.at:
                continue
            config = pruned(arm, chain, density)
            if control == "one_shot":
                if number == 1:  # one round is pruned once
                    continue
                its = replace(link, mask=first)
                config = pruned(arm, chain, density, times=number)
            elif control == "random":
                its = link
                config = pruned(arm, chain, density, positions="random")
            else:
                its = replace(link, step=0, other_seed=True)
            yield Linked(f"{ticket}.{control}", config, its, control, ticket)
        before = ticket
        if finding is not None and number < chain.rounds:
            before = f"{name}.find{number}"
            yield Linked(before, pruned(finding, chain, density), link, "link", chain.of)


def pruned(arm: RunConfig, chain: ChainConfig, density: float, **ticket: Any) -> RunConfig:
    """An arm on what is left of another run; `density` is what the plan counts with."""
    options = {"prune": chain.prune, "scope": chain.scope, **ticket}
    topology = replace(
        arm.topology,
        kind="ticket",
        density=density,
        path=None,
        ticket=replace(arm.topology.ticket, **options),
    )
    return replace(arm, topology=topology)


def stand_in(config: RunConfig) -> RunConfig:
    """A config that costs the same and needs no finished run: before the runs, a ticket without
    `topology.path` is counted as a random graph of its density."""
    topology = config.topology
    if topology.kind != "ticket" or topology.path is not None:
        return config
    drawn = replace(topology, kind="er_fixed", allocation="uniform", overrides=())
    return replace(config, topology=drawn)


class Chainable(Protocol):
    """An arm before it is planned; study_file.Setting."""

    @property
    def name(self) -> str: ...
    @property
    def config(self) -> RunConfig: ...
    @property
    def link(self) -> LinkConfig: ...


T = TypeVar("T", bound=Chainable)


def with_kept(settings: Sequence[T], place: str, change: Callable[[T, RunConfig], T]) -> list[T]:
    """The arms, made to keep what others take from them.

    Args:
        place: of the study file, for errors.
        change: gives an arm another config.

    Raises:
        UserError: a link leads nowhere, in a circle, or does not fit its arm.
    """
    by_name = {setting.name: setting for setting in settings}
    for setting in settings:
        _check_link(setting, by_name, f"{place}: links.{setting.name}")
    kept = dict(by_name)
    for setting in settings:
        link = setting.link
        if link.weights is not None and link.step is not None:
            kept[link.weights] = _keeping(kept[link.weights], link.step, change)
        if link.mask is not None and setting.config.topology.ticket.score == "movement":
            kept[link.mask] = _keeping(kept[link.mask], 0, change)
    return list(kept.values())


def _keeping(setting: T, step: int, change: Callable[[T, RunConfig], T]) -> T:
    checkpoint = setting.config.checkpoint
    if step == 0:
        checkpoint = replace(checkpoint, initial=True)
    else:
        steps = tuple(sorted({*checkpoint.keep_steps, step}))
        checkpoint = replace(checkpoint, keep_steps=steps)
    return change(setting, replace(setting.config, checkpoint=checkpoint))


def _check_link(setting: T, by_name: dict[str, T], key: str) -> None:
    link, config = setting.link, setting.config
    for name in link.arms:
        if name not in by_name:
            raise UserError(f"{key}: there is no arm {name}; there are {', '.join(by_name)}")
    is_ticket = config.topology.kind == "ticket" and config.topology.path is None
    if is_ticket and link.mask is None:
        raise UserError(
            f"{key}: {setting.name} has topology.kind ticket; say of which arm, with mask: ARM, or "
            "name a run with topology.path"
        )
    if link.mask is not None and not is_ticket:
        raise UserError(f"{key}.mask: needs topology.kind ticket, and no topology.path, in the arm")
    if link.weights is not None and config.init_from is not None:
        raise UserError(f"{key}.weights: the arm has init_from too; leave one of them out")
    seen, ahead = set[str](), [setting.name]
    while ahead:
        for name in by_name[ahead.pop()].link.arms:
            if name == setting.name:
                raise UserError(f"{key}: {name} would wait for itself; take from another arm")
            if name not in seen and name in by_name:
                seen.add(name)
                ahead.append(name)


def link_lines(link: LinkConfig) -> list[str]:
    """What sets a linked arm apart beside its config."""
    lines = [] if link.mask is None else [f"topology.path: null -> the end of {link.mask}"]
    if link.weights is not None:
        when = "the end" if link.step is None else f"step {link.step}"
        seed = ", another seed" if link.other_seed else ""
        lines.append(f"init_from: null -> {link.weights} at {when}{seed}")
    return lines


def linked_run(
    run: Run,
    link: LinkConfig,
    config: RunConfig,
    seeds: Sequence[int],
    find: Callable[[str, int], str],
) -> Run:
    """A run with the names of the runs that it takes from.

    Args:
        find: (arm, seed) -> name of the arm's run in the same order of domains.
    """
    seed = run.seed
    if link.other_seed:
        seed = seeds[(seeds.index(seed) + 1) % len(seeds)]
    mask_of = link.mask and find(link.mask, run.seed)
    moved = config.topology.kind == "ticket" and config.topology.ticket.score == "movement"
    return replace(
        run,
        mask_of=mask_of,
        since_of=mask_of if moved else None,
        weights_of=link.weights and find(link.weights, seed),
        weights_step=link.step,
    )
