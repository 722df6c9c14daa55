"""What may change between a checkpoint and the run that goes on from it.

Three kinds. Some settings change no result, or only how it is rounded: free. Most others change
what is computed from here on: shown key by key, and refused unless the user has allowed it. A few
would make the checkpoint or the record of the run mean something else: never.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from sparsecl import config as configs
from sparsecl import dist
from sparsecl.config_nodes import compose, one_line
from sparsecl.engine.position import Position
from sparsecl.engine.run_config import RunConfig
from sparsecl.engine.schedule import Schedule, make_schedule
from sparsecl.errors import DataError, UserError

# Settings that change what is written down, not what is computed.
FREE = ("name", "log", "checkpoint", "data.workers", "data.cache_dir", "parallel")
# How weights are kept and multiplied: another choice rounds differently, no more.
FREE += ("topology.storage", "topology.backend", "topology.keep_expansion")
# How fast it runs; a compiled block rounds differently.
FREE += ("speed",)
# When a broken run is given up.
FREE += ("health.hang_seconds", "health.join_seconds", "health.max_bad_steps")

MAX_SHOWN = 6  # changes in the one line of an error

ANEW = "Use the old value, or start in another --run_dir."


@dataclass(frozen=True)
class Allowed:
    """Changes that the user has permitted."""

    config: bool = False
    """--allow_config_change."""

    data: bool = False
    """--allow_data_change: of the text or the tokenizer."""

    new_optimizer: bool = False
    """--weights_only: the optimizer and the methods begin anew."""


NOTHING = Allowed()


def check_identity(
    folder: Path,
    saved: Mapping[str, Any],
    identity: Mapping[str, Any],
    allowed: Allowed = NOTHING,
) -> list[str]:
    """Compare a checkpoint with the run that wants to go on from it.

    Args:
        saved: the state in the manifest of the checkpoint `folder`.
        identity: config, and digests of data, tokenizer, topology and windows, of this run.

    Returns:
        What has changed with permission, as lines for the log.

    Raises:
        UserError: the config changed without permission, or in what a run cannot change.
        DataError: other domains, text, tokenizer, topology or windows.
    """
    old, new = saved["config"], identity["config"]
    changed = _changed(folder, old, new)
    # First what no permission covers: nobody is sent to an option that does not help.
    try:
        if changed:
            _check_fixed(folder, saved, new)
        shown = changed if allowed.config else ()  # else they stand in front already
        _check_topologies(folder, saved["topology"], identity["topology"], shown)
    except UserError as never:
        if not changed or allowed.config:
            raise
        why = str(never).removeprefix(f"{folder}: ").removesuffix(f". {ANEW}")
        _refuse(folder, changed, f"No option permits that: {why}. {ANEW.removesuffix('.')}")
    if changed and not allowed.config:
        _refuse(folder, changed, "Use the same config, another --run_dir, or --allow_config_change")
    lines = [f"allowed: the config changed since {folder.name}:", *(f"  {c}" for c in changed)]
    lines = lines if changed else []
    for key in ("tokenizer", "data"):
        if saved[key] == identity[key]:
            continue
        change = f"the {key} changed since the checkpoint (digest {saved[key][:12]}, now "
        change += f"{identity[key][:12]})"
        if not allowed.data:
            raise DataError(
                one_line(f"{folder}: {change}. Restore it, start in another --run_dir, or go on ")
                + "with it by --allow_data_change."
            )
        lines.append(f"allowed: {change}")
    if saved["data"] == identity["data"] and saved.get("windows") != identity["windows"]:
        raise DataError(
            one_line(
                f"{folder}: an earlier version saved it, which scored other pieces of the "
                "validation text: the rows of the run would not stand on one text. Start in "
                "another --run_dir."
            )
        )
    return lines


def check_config(holder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Compare the config of the run that has ended in `holder` to that of this run.

    Raises:
        DataError: other domains.
        UserError: another config. No option permits it: what has ended cannot go on with it.
    """
    changed = _changed(holder, old, new)
    if changed:
        _refuse(holder, changed, f"The run there has ended. {ANEW.removesuffix('.')}")


def _changed(holder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    _check_domains(holder, completed(old), new)
    return changes(old, new)


def _refuse(holder: Path, changed: Sequence[str], way_out: str) -> NoReturn:
    """Name the changes: some of them in the error, all of them on the stdout of rank 0."""
    if dist.rank() == 0:
        print("\n".join([f"{holder}: made with another config:", *(f"  {c}" for c in changed)]))
    raise UserError(
        one_line(f"{holder}: was made with another config: {_some(changed)}. ") + f"{way_out}."
    )


def _some(changed: Sequence[str]) -> str:
    more = [f"and {len(changed) - MAX_SHOWN} more"] if len(changed) > MAX_SHOWN else []
    return "; ".join([*changed[:MAX_SHOWN], *more])


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between a saved config and one of now, one line each, but what is free."""
    return [line for line in configs.differences(completed(old), new) if not _is_free(line)]


def completed(old: Mapping[str, Any]) -> dict[str, Any]:
    """A saved config with the defaults of keys that are younger than it.

    A key that is no longer known stays, and so shows as a change.
    """
    config = parsed(old)
    return dict(old) if config is None else configs.to_dict(config)


def parsed(old: Mapping[str, Any]) -> RunConfig | None:
    """A saved config, younger keys at their defaults; None if this version cannot read it."""
    try:
        node = compose(yaml.safe_dump(configs.to_dict(old)), "checkpoint")
        return None if node is None else configs.overlay(RunConfig(), node, "")
    except UserError:
        return None


def _is_free(line: str) -> bool:
    key = line.partition(":")[0]
    return any(key == free or key.startswith(f"{free}.") for free in FREE)


def _check_domains(holder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """The domains of a run are the columns of its result matrix, measured from the first step."""
    names, now = ([d["name"] for d in config["data"]["domains"]] for config in (old, new))
    if names == now:
        return
    missing = [name for name in names if name not in now]
    added = [name for name in now if name not in names]
    what = [f"{', '.join(missing)} missing"] if missing else []
    what += [f"{', '.join(added)} new"] if added else []
    what = what or [f"the order was {', '.join(names)} and is {', '.join(now)}"]
    raise DataError(
        one_line(f"{holder}: data.domains are not those of this run: {'; '.join(what)}. {ANEW}")
    )


def _check_fixed(folder: Path, saved: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise for a change that no permission covers."""
    before, now = parsed(saved["config"]), parsed(new)
    if before is None or now is None:
        raise UserError(
            one_line(f"{folder}: its config has keys that this version does not know. {ANEW}")
        )
    position = Position(**saved["position"])
    for key, value, why in _FIXED:
        if value(before) != value(now):
            raise UserError(
                one_line(f"{folder}: {key} was {value(before)} and is {value(now)}: {why}. {ANEW}")
            )
    _check_phases(folder, position, _schedule(before), _schedule(now))


def _schedule(config: RunConfig) -> Schedule:
    """Its phases; they are the same for any number of ranks."""
    return make_schedule(config, world_size=config.parallel.tensor)


def _methods(config: RunConfig) -> list[str]:
    return list(config.methods.used())


# (key, its value, why it cannot change in a run)
_FIXED: Sequence[tuple[str, Callable[[RunConfig], Any], str]] = (
    ("model", lambda c: c.model.resolved(), "the weights in the checkpoint have the old shapes"),
    (
        "optimizer.kind",
        lambda c: c.optimizer.kind,
        "the moments in the checkpoint are those of the old one",
    ),
    ("methods", _methods, "a method needs what it has gathered since the first step"),
    (
        "batch.sequences",
        lambda c: c.batch.sequences,
        "sequences of the phase would be read twice or not at all",
    ),
    (
        "eval.tokens",
        lambda c: c.eval.tokens,
        "the scores before and after would not stand on one text",
    ),
    (
        "eval.end_tokens",
        lambda c: c.eval.cap_at_ends,
        "the rows of the result matrix would not stand on one text",
    ),
    (
        "topology.role",
        lambda c: (c.topology.kind == "dense", c.topology.role),
        "the checkpoint holds the weights that the old one has",
    ),
)


def _check_phases(folder: Path, position: Position, before: Schedule, now: Schedule) -> None:
    """What is trained is trained; the phases to come may be longer or shorter."""
    names, new = ([schedule.domain_name(p) for p in schedule.phases] for schedule in (before, now))
    if names != new:
        raise DataError(
            one_line(
                f"{folder}: the phases were {', '.join(names)} and are {', '.join(new)}: the "
                f"record of the run is made for the old ones. {ANEW}"
            )
        )
    for old_phase, new_phase in zip(before.phases, now.phases, strict=True):
        index, steps = old_phase.index, new_phase.num_steps
        done = old_phase.num_steps if index < position.phase else 0
        if index == position.phase:
            done = position.phase_step
        if steps < done or (index < position.phase and steps != done):
            raise UserError(
                one_line(
                    f"{folder}: phase {index} has {steps} steps now, but {done} of its "
                    f"{old_phase.num_steps} steps are done. {ANEW}"
                )
            )


def _check_topologies(
    folder: Path, old: Mapping[str, str], new: Mapping[str, str], changed: Sequence[str]
) -> None:
    for name in [*new, *(name for name in old if name not in new)]:
        if old.get(name) != new.get(name):
            was, now = (str(digests.get(name))[:12] for digests in (old, new))
            why = f" (changed: {_some(changed)})" if changed else ""
            raise DataError(
                one_line(
                    f"{folder}: topology digest of {name} is {was}, this config gives {now}{why}. "
                    f"{ANEW}"
                )
            )
