"""What the compared methods need and cost, so that unlike is not taken for like."""

import dataclasses

from sparsecl import config as configs
from sparsecl.engine.run_config import RunConfig
from sparsecl.errors import UserError
from sparsecl.experiments.collect import Study
from sparsecl.experiments.plan import arm_config
from sparsecl.experiments.report.table import Cell, Column, Table

FLAGS = (
    ("I", "needs to know the domain when it is tested"),
    ("B", "is told where one domain ends"),
    ("D", "stores training data"),
    ("P", "assumes a pre-trained model"),
    ("F", "freezes weights"),
    ("X", "keeps more numbers beside the weights"),
    ("C", "computes more for each step"),
)

METHODS: dict[str, dict[str, str]] = {
    "dense": {},
    "fixed sparse": {},
    "update": {},
    "set": {"C": "a little, at rewires"},
    "ewc": {"B": "yes", "X": "two for each weight"},
    "replay": {"D": "yes", "C": "replayed sequences"},
}
"""Method -> its flags, as the methods stand in methods/ and in the papers they are from."""


def methods_of(study: Study, arm: str) -> list[str] | None:
    """Methods that an arm uses, by its run config; None if that is not there or cannot be read."""
    file = arm_config(study.folder, arm)
    try:
        config = configs.load(RunConfig, file)
    except UserError:
        return None
    base = "dense" if config.topology.kind == "dense" else "fixed sparse"
    if config.topology.role == "update" and base != "dense":
        base = "update"
    blocks = dataclasses.fields(config.methods)
    used = [block.name for block in blocks if getattr(config.methods, block.name) is not None]
    # SET replaces the fixed topology; the others come on top of what they are used with.
    return used if "set" in used else [base, *used]


def flags_table(study: Study) -> Table | None:
    """One line an arm; None if no arm uses a method beside its topology."""
    used = {arm.name: methods_of(study, arm.name) for arm in study.plan.arms}
    if not any(set(names or ()) - {"dense", "fixed sparse", "update"} for names in used.values()):
        return None
    columns = (
        Column(key="arm", heading="arm"),
        Column(key="methods", heading="methods"),
        *(Column(key=flag, heading=flag) for flag, _ in FLAGS),
    )
    rows: list[tuple[Cell, ...]] = []
    for arm, names in used.items():
        if names is None:
            continue
        texts = [_flag(names, flag) for flag, _ in FLAGS]
        rows.append((arm, " + ".join(names), *texts))
    caption = "; ".join(f"{flag}: {text}" for flag, text in FLAGS) + "."
    return Table(name="methods", caption=caption, columns=columns, rows=tuple(rows))


def _flag(names: list[str], flag: str) -> str:
    """ "?" for a method that nobody has described here."""
    found = ["?" if name not in METHODS else METHODS[name].get(flag, "") for name in names]
    return ", ".join(dict.fromkeys(text for text in found if text))
