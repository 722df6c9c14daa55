"""What a study runs, as STUDY/plan.json: all that runner, collection and report know about it.

A study folder:

    plan.json                   this file's StudyPlan
    configs/ARM.yaml            the resolved run config of an arm, for the first seed
    runs/ARM/seedK/             run folders; ORDER-seedK in a study of several orders, `seeds` in
                                one of streams
    failures/ARM-seedK.json     how the last attempt of a run failed
    logs/ARM-seedK.txt          what its process printed
    environment.json            of streams: commit and versions of the last start
    report/                     what tools/report.py makes
    tuning/  tuning_wider/      study folders of the trials, where the study is tuned; plan.json
                                is then written when they are done
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sparsecl import config as configs
from sparsecl.errors import MissingInputError
from sparsecl.experiments.study.subject import Subject
from sparsecl.experiments.study.tune import Tuning
from sparsecl.files import check_entries, write_json

PLAN, ENVIRONMENT = "plan.json", "environment.json"
PARTS = ("configs", "failures", "logs", "runs")
"""Folders of a study."""

TUNING = ("tuning", "tuning_wider")
"""Its folders for trials: of the grid, and of what it was widened by."""

Role = Literal[
    "arm",
    "equal_parameters",
    "stopped_early",
    "update_only",
    "equal_flops",
    "joint",
    "alone",
    "one_shot",
    "random",
    "reinit",
    "link",
    "probe",
    "trial",
]


@dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """One planned comparison: the mean over seeds of `arm` minus `against`."""

    arm: str
    """Name of an arm or control."""

    against: str
    """Name of the other one."""

    unpaired: bool = False
    """Compare the arms without pairing them by seed: needed where they do not read the same data
    in the same order."""


@dataclass(frozen=True, kw_only=True)
class AnalysisConfig:
    """What is compared, fixed before the runs begin."""

    reference: str = "dense"
    """The arm that others are compared with."""

    metrics: tuple[str, ...] = ("F_last", "NF", "final_loss")
    """Names of experiments/study/measures.py; the first is the primary endpoint."""

    contrasts: tuple[ContrastConfig, ...] = ()
    """Planned comparisons, tested with Holm's correction. Empty: every arm with the reference."""

    alpha: float = 0.05
    """Size of the tests; intervals cover 1 - alpha."""

    margins: dict[str, float] = field(default_factory=lambda: {"F_last": 0.05, "final_loss": 0.05})
    """Metric -> difference that counts as none (TOST), in the metric's unit."""

    core: str | None = None
    """Domain whose curve over the rounds is followed by itself."""

    interference: bool = False
    """Measure interference on the last checkpoint of every run, when all are done."""

    def __post_init__(self) -> None:
        if not self.metrics:
            raise ValueError("metrics is empty; name at least one, for example [F_last]")
        if not 0.0 < self.alpha < 0.5:
            raise ValueError(f"alpha must be in (0, 0.5), got {self.alpha}")
        for name, margin in self.margins.items():
            if not margin > 0.0:
                raise ValueError(f"margins.{name} must be > 0, got {margin}")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One setting of a study, run once for each seed."""

    name: str
    label: str
    """For people: in tables and legends."""

    role: Role = "arm"
    """arm: stated in the study; trial: of its tuning; link: finds tickets for other arms; probe:
    see probes.py. The others are controls, see controls.py, chain.py and narrow.py."""

    of: str | None = None
    """Controls and probes: the arm it belongs to."""

    after: int | None = None
    """Probes: phases of `of` that its weights have learned; 0 = none."""

    size: str | None = None
    """Of the model, in a study of several; the name begins with it."""

    levels: dict[str, str] = field(default_factory=dict)
    """Arms of a grid: axis -> level."""

    differences: tuple[str, ...] = ()
    """Lines "key: reference -> here": all that sets this arm apart from the reference."""

    stream: str = ""
    """Digest of what decides which data a run of one seed reads, and in which order: runs of equal
    digests and seeds are pairs."""

    kind: str
    """topology.kind."""

    density: float
    """Live share of the masked matrices, as drawn for the first seed."""

    live: int
    """Parameters that live, embedding included."""

    total: int
    flops_per_token: int
    """Training FLOPs per token by live weights (model/flops.py, `useful`); where methods change
    their number, the mean over a run. 0 in a study of streams: not counted."""

    gradient_flops: int = 0
    """Of one run: gradients of absent weights, which methods ask for."""

    score_flops: int = 0
    """Of one run: scores of the graph."""

    steps: int
    """Optimizer steps of one run (an upper bound if a phase may end early); in a study of streams
    of each network."""

    tokens: int
    """Training tokens of one run, likewise; in a study of streams samples of each network."""

    @property
    def flops(self) -> int:
        """Of one run, by live weights; replayed tokens do not count."""
        return self.flops_per_token * self.tokens + self.gradient_flops + self.score_flops


@dataclass(frozen=True, kw_only=True)
class Run:
    """One arm with one seed."""

    name: str
    """ARM/seedK, or ARM/ORDER-seedK."""

    arm: str
    seed: int
    order: str = ""
    """Of the plan's orders; empty if it has none, or if the arm has a stream of its own."""

    needs: str | None = None
    """Name of a run that must be done before: its losses after each phase end those of this one."""

    mask_of: str | None = None
    """Likewise: its last weights are pruned to the topology of this one."""

    since_of: str | None = None
    """Likewise: movement is measured from its initial weights."""

    weights_of: str | None = None
    """Likewise: this one begins with its weights."""

    weights_step: int | None = None
    """After which of its steps; 0 = its initial weights, None = its last."""

    seeds: tuple[int, ...] = ()
    """Of a stream: its networks, which one run trains side by side; `seed` is the first of them.
    Empty: a run of one seed."""

    def __post_init__(self) -> None:
        # A plan that somebody else has written may not name folders outside of the study's.
        for key, name in (("arm", self.arm), ("order", self.order or "none")):
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
                raise ValueError(f"{key}: {name!r} cannot name a folder")

    @property
    def waits_for(self) -> tuple[str, ...]:
        """Names of all runs that must be done before."""
        found = (self.needs, self.mask_of, self.since_of, self.weights_of)
        return tuple(dict.fromkeys(name for name in found if name is not None))

    @property
    def place(self) -> str:
        """seedK or ORDER-seedK: the run among those of its arm; `seeds` if it is of all."""
        if self.seeds:
            return "seeds"
        return f"{self.order}-seed{self.seed}" if self.order else f"seed{self.seed}"


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """A study with nothing left open."""

    name: str
    question: str
    scale: str
    seeds: tuple[int, ...]
    analysis: AnalysisConfig
    arms: tuple[Arm, ...]
    runs: tuple[Run, ...]
    ds_config: str
    """DeepSpeed JSON of every run."""

    threads: int
    """CPU threads of each run: another number rounds differently."""

    command: str
    """The command line that planned it."""

    orders: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Order of domains -> domain trained in each phase. Each seed is run in every order, and its
    value is the mean over them. Empty: one order, that of the run configs."""

    digest: str
    """Of the arms' run configs, the orders, the seeds and the DeepSpeed JSON; of a tuned study: of
    its arms before the tuning, and of what it asks for."""

    tuning: Tuning | None = None
    """How the values of the arms were found, where the study is tuned; without arms before that,
    and then it is not written."""

    subject: Subject = "text"
    """What the runs are."""

    @property
    def is_tuning(self) -> bool:
        """Are its arms the trials of another study?"""
        return bool(self.arms) and self.arms[0].role == "trial"

    def arm(self, name: str) -> Arm:
        """By name; it must be there."""
        return next(arm for arm in self.arms if arm.name == name)

    def with_needed(self, arms: Collection[str]) -> tuple[Run, ...]:
        """The runs of some arms, and all that these wait for."""
        names = {run.name for run in self.runs if run.arm in arms}
        while True:
            more = {name for run in self.runs if run.name in names for name in run.waits_for}
            if more <= names:
                return tuple(run for run in self.runs if run.name in names)
            names |= more

    def rank(self, run: Run) -> int:
        """How many runs at most must be done one after the other before this one can begin."""
        by_name = {other.name: other for other in self.runs}
        ranks: dict[str, int] = {}

        def of(name: str) -> int:
            if name not in ranks:
                ranks[name] = -1  # a plan in a circle, which nobody has made, must end too
                ranks[name] = max((1 + of(other) for other in by_name[name].waits_for), default=0)
            return ranks[name]

        return of(run.name)

    def runs_of(self, arm: str) -> list[Run]:
        """In the order of the seeds."""
        return [run for run in self.runs if run.arm == arm]

    def seeds_of(self, arm: str) -> list[int]:
        """Seeds with which an arm is run."""
        runs = self.runs_of(arm)
        return list(dict.fromkeys(seed for run in runs for seed in run.seeds or (run.seed,)))

    @property
    def shown_order(self) -> str:
        """The first order: curves and matrices, which mean something in one order only, are of
        its runs. Empty if there is one order."""
        return next(iter(self.orders), "")

    def reference_of(self, arm: Arm) -> str:
        """Name of the arm that `arm` is compared with: the reference of its own size."""
        first = self.arm(self.analysis.reference)
        return reference_at(first.name, first.size, arm.size)

    def is_reference(self, arm: Arm) -> bool:
        """Is it the reference, of any size?"""
        return arm.name == self.reference_of(arm)

    def sizes(self) -> tuple[str, ...]:
        """In the order of the study; empty if it has one size."""
        return tuple(dict.fromkeys(arm.size for arm in self.arms if arm.size is not None))

    def paired(self, contrast: ContrastConfig) -> bool:
        """Are the two arms compared seed by seed?"""
        streams = {self.arm(name).stream for name in (contrast.arm, contrast.against)}
        return not contrast.unpaired and len(streams) == 1

    def contrasts(self) -> tuple[ContrastConfig, ...]:
        """The planned ones, or every arm against the reference of its size."""
        return self.analysis.contrasts or tuple(
            ContrastConfig(arm=arm.name, against=self.reference_of(arm))
            for arm in self.arms
            if arm.role == "arm" and not self.is_reference(arm)
        )


def at_size(arm: str, size: str | None) -> str:
    """Name of an arm at a size of the model."""
    return arm if size is None else f"{size}-{arm}"


def reference_at(reference: str, first: str | None, size: str | None) -> str:
    """Name at `size` of the reference that is given at the size `first`."""
    return at_size(reference if first is None else reference.removeprefix(f"{first}-"), size)


def write_plan(folder: Path, plan: StudyPlan) -> None:
    """Write plan.json, atomically."""
    write_json(folder / PLAN, configs.to_dict(plan))


def read_plan(folder: Path) -> StudyPlan:
    """Read STUDY/plan.json.

    Raises:
        MissingInputError: if the folder has none.
        UserError: if it is not one.
    """
    if not (folder / PLAN).is_file():
        if (folder / TUNING[0] / PLAN).is_file():
            raise MissingInputError(
                f"{folder}: its tuning is not done, so it has no {PLAN}; the trials are a study of "
                f"their own, {folder / TUNING[0]}"
            )
        raise MissingInputError(f"{folder}: no {PLAN} in it, so this is not the folder of a study")
    return configs.load(StudyPlan, folder / PLAN)


def check_study(folder: Path, plan: StudyPlan) -> None:
    """Refuse links, pipes and the like in the place of what a study folder may hold.

    Raises:
        CannotCreateError: with the path and what is there.
    """
    files = [folder / PLAN, folder / ENVIRONMENT, folder / "slurm" / "jobs.json"]
    folders = [folder / part for part in (*PARTS, *TUNING, "report", "slurm")]
    for arm in plan.arms:
        files.append(arm_config(folder, arm.name))
        folders.append(folder / "runs" / arm.name)
    for run in plan.runs:
        files += [failure_file(folder, run), log_file(folder, run)]
        folders.append(run_folder(folder, run))
    check_entries(
        folder,
        files=[str(path.relative_to(folder)) for path in files],
        folders=[str(path.relative_to(folder)) for path in folders],
    )


def run_folder(folder: Path, run: Run) -> Path:
    """STUDY/runs/ARM/seedK."""
    return folder / "runs" / run.arm / run.place


def arm_config(folder: Path, arm: str) -> Path:
    """STUDY/configs/ARM.yaml."""
    return folder / "configs" / f"{arm}.yaml"


def slug(run: Run) -> str:
    """ARM-seedK: for the files of one run that are not in its folder."""
    return f"{run.arm}-{run.place}"


def failure_file(folder: Path, run: Run) -> Path:
    """STUDY/failures/ARM-seedK.json."""
    return folder / "failures" / f"{slug(run)}.json"


def log_file(folder: Path, run: Run) -> Path:
    """STUDY/logs/ARM-seedK.txt."""
    return folder / "logs" / f"{slug(run)}.txt"
