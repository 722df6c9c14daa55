"""What the compared methods need and cost, so that unlike is not taken for like."""

from collections.abc import Iterable, Mapping

from sparsecl import config as configs
from sparsecl.engine.run_config import RunConfig
from sparsecl.errors import UserError
from sparsecl.experiments.collect import Study
from sparsecl.experiments.plan import arm_config
from sparsecl.experiments.report.table import Cell, Column, Table
from sparsecl.methods.facts import FLAGS

BASES = ("dense", "fixed sparse", "update")


def methods_of(study: Study, arm: str) -> dict[str, Mapping[str, str]] | None:
    """Flags of the methods that an arm uses, by name, as its run config has them; None if that is
    not there or cannot be read."""
    file = arm_config(study.folder, arm)
    try:
        config = configs.load(RunConfig, file)
    except UserError:
        return None
    base = "dense" if config.topology.kind == "dense" else "fixed sparse"
    if config.topology.role == "update" and base != "dense":
        base = "update"
    used = {name: block.flags for name, block in config.methods.used().items()}
    # What rewires replaces the fixed topology; the others come on top of what they are used with.
    return used if config.methods.rewires else {base: {}, **used}


def flags_table(study: Study) -> Table | None:
    """One line an arm; None if no arm uses a method beside its topology."""
    used = {arm.name: methods_of(study, arm.name) for arm in study.plan.arms}
    if not any(set(names or ()) - set(BASES) for names in used.values()):
        return None
    columns = (
        Column(key="arm", heading="arm"),
        Column(key="methods", heading="methods"),
        *(Column(key=flag, heading=flag) for flag in FLAGS),
    )
    rows: list[tuple[Cell, ...]] = []
    for arm, names in used.items():
        if names is None:
            continue
        texts = [_flag(names.values(), flag) for flag in FLAGS]
        rows.append((arm, " + ".join(names), *texts))
    caption = "; ".join(f"{flag}: {text}" for flag, text in FLAGS.items()) + "."
    return Table(name="methods", caption=caption, columns=columns, rows=tuple(rows))


def _flag(methods: Iterable[Mapping[str, str]], flag: str) -> str:
    texts = (flags.get(flag, "") for flags in methods)
    return ", ".join(dict.fromkeys(text for text in texts if text))
