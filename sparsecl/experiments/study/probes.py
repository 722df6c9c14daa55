"""Probes: how well a model that has learned k domains still learns one that it has never seen.

The loss that a new domain is learned to, against the number of domains before it, shows whether a
model loses its plasticity, and from when on (Hernandez-Garcia et al. 2026,
https://arxiv.org/abs/2606.24752: GPTs on a stream of languages, probed with one that the stream
does not have). Taken from the paper: the stream, the probe and the sizes. Our own reading: a probe
begins with the weights after phase k and a new optimizer, and is otherwise the run of a fresh model
on that domain, with the same steps, sequences, order and learning rates.

Probes of a seed differ in their first weights alone, so they are pairs. What methods have gathered
(penalties, a memory) stays behind: a probe begins with the weights.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from sparsecl.engine.run_config import RunConfig
from sparsecl.errors import UserError
from sparsecl.experiments.study.chain import with_kept
from sparsecl.experiments.study.controls import Control, Priced
from sparsecl.experiments.study.probes_config import ProbesConfig
from sparsecl.experiments.study.study_file import Setting


def with_probes(
    probes: ProbesConfig,
    settings: list[Setting],
    orders: Mapping[str, object],
    price: Callable[[RunConfig], Priced],
) -> tuple[list[Setting], list[Control]]:
    """The arms, made to keep the weights that probes begin with, and the probes: ARM.probe.K.

    Args:
        orders: of the study; there may be none, for a probe would follow only one of them.
        price: counts the steps of a config.

    Raises:
        UserError: an arm cannot be probed.
    """
    if orders:
        raise UserError(
            "probes: a study with probes has one order of domains; give it as phases.order in the "
            "base, in place of orders"
        )
    made = []
    for setting in settings:
        if setting.role == "arm":
            _check(probes, setting.name, setting.config)
            made += _of_arm(probes, setting, price(setting.config).steps)
    joined = with_kept(
        [*settings, *(control.setting for control in made)],
        "probes",
        lambda setting, config: replace(setting, config=config),
    )
    return joined[: len(settings)], made


def _of_arm(probes: ProbesConfig, arm: Setting, num_steps: int) -> Iterator[Control]:
    num_phases = len(arm.config.phases.order)
    config = _probe_config(probes, arm.config)
    for after in sorted({0, *probes.after}):
        setting = Setting(f"{arm.name}.probe.{after}", config, size=arm.size, link=arm.link)
        if after:
            # The last weights stay anyway; those of other phases are kept for their sake.
            step = None if after == num_phases else after * (num_steps // num_phases)
            link = replace(arm.link, weights=arm.name, step=step, other_seed=False)
            setting = replace(setting, config=replace(config, init_from=None), link=link)
        yield Control(setting, "probe", arm.name, after=after)


def _probe_config(probes: ProbesConfig, arm: RunConfig) -> RunConfig:
    """The probe domain as the only phase, `length` phases long."""
    phases = replace(arm.phases, order=(probes.domain,), offset=0)
    key = "tokens" if phases.tokens is not None else "steps"
    each = getattr(phases, key)
    if probes.length > 1 and each is None:
        raise UserError("probes.length: needs phases.steps or phases.tokens in the base")
    if each is not None:
        phases = replace(phases, **{key: probes.length * each})
    checkpoint = replace(arm.checkpoint, keep_steps=())
    return replace(arm, phases=phases, checkpoint=checkpoint)


def _check(probes: ProbesConfig, name: str, arm: RunConfig) -> None:
    """Refuse an arm whose state after a phase is not known by its step and weights alone."""
    phases = arm.phases
    domains = tuple(domain.name for domain in arm.data.domains)
    order = phases.order or domains
    if probes.domain not in domains:
        raise UserError(
            f"probes.domain: there is no domain {probes.domain}; there are {', '.join(domains)}"
        )
    if probes.domain in order:
        raise UserError(
            f"probes.domain: {name} trains {probes.domain} in its stream, so it is not new to it. "
            "Leave it out of phases.order, or probe with another domain."
        )
    if max(probes.after) > len(order):
        raise UserError(
            f"probes.after: {max(probes.after)} phases, and the stream of {name} has {len(order)}"
        )
    if phases.patience or phases.until_loss is not None or phases.joint:
        raise UserError(
            f"probes: phases of {name} may end early, or are one (phases.patience, until_loss, "
            "joint), so their ends have no known step. Leave these out."
        )
    if isinstance(phases.steps, tuple) or isinstance(phases.tokens, tuple):
        raise UserError(
            f"probes: {name} has phases of unequal length; give phases.steps or phases.tokens as "
            "one number"
        )
    if arm.methods.rewires or arm.methods.columns(len(order)) != arm.methods.columns(1):
        raise UserError(
            f"probes: a method of {name} moves its graph or adds columns, and a probe begins on "
            "the graph of the first step. Leave out the method."
        )
