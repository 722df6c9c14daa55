"""A study of streams: its arms are networks on a stream of tasks (launch/stream.py).

As a study of text (study_file.py), with other configs: everything under `base`, `scales.NAME.run`
and `arms.NAME` is a piece of the config of a stream (streams/config.py). Each arm is one run, which
trains the networks of all seeds side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from yaml.nodes import MappingNode, Node

from sparsecl import config as configs
from sparsecl.checkout import shipped
from sparsecl.config_nodes import fail
from sparsecl.errors import UserError
from sparsecl.experiments.study.study_file import (
    StudyConfig,
    check_known,
    check_names,
    check_twins,
    laid,
    overridden,
    scale_of,
    seeds_of,
    with_file,
)
from sparsecl.experiments.study.study_plan import AnalysisConfig
from sparsecl.streams.config import StreamRunConfig

SHARED = ("permuted_mnist", "input_permuted", "label_permuted", "image_pairs")
"""Kinds of streams whose runs have the figures of a study."""


@dataclass(frozen=True, kw_only=True)
class StreamScaleConfig:
    """One size at which a study can run."""

    run: Node | None = None
    """What it changes in the base config."""

    arms: dict[str, Node] = field(default_factory=dict)
    """Arm of the study -> what this scale changes in it, last."""

    seeds: int | tuple[int, ...] | None = None
    """In place of the study's."""

    base: str | None = None
    """A config of a stream laid over the base before `run`, relative to the current folder."""


@dataclass(frozen=True, kw_only=True)
class StreamControlsConfig:
    """Controls, each with the names of its arms; "all_sparse" stands for all that are not dense."""

    equal_parameters: tuple[str, ...] = ()
    """A dense network with as many parameters as the arm has live ones: the reference, narrower."""


@dataclass(frozen=True, kw_only=True)
class StreamStudyConfig:
    """A study of streams as it is written; its base has a block `stream`."""

    name: str
    """Names its folder."""

    question: str = ""
    """For the report: what the study asks, in a sentence or two."""

    base: Node
    """What all arms share."""

    scales: dict[str, StreamScaleConfig] = field(default_factory=dict)
    """Sizes by name; --scale picks one, else the first."""

    seeds: int | tuple[int, ...] = 10
    """Number of seeds, from 0 on, or the seeds themselves, one after the other."""

    arms: dict[str, Node]
    """Name -> what the arm changes in the base config."""

    labels: dict[str, str] = field(default_factory=dict)
    """Arm -> text for tables and legends; else its name."""

    controls: StreamControlsConfig = field(default_factory=StreamControlsConfig)

    analysis: AnalysisConfig = field(
        default_factory=lambda: AnalysisConfig(metrics=("last_third", "lost"), margins={})
    )

    def __post_init__(self) -> None:
        check_names(name=[self.name], arms=self.arms, scales=self.scales)
        if not self.arms:
            raise ValueError("arms is empty: a study needs arms")
        for key, value in (
            ("core", self.analysis.core),
            ("interference", self.analysis.interference),
        ):
            if value:
                raise ValueError(
                    f"analysis.{key} is about text; leave it out in a study of streams"
                )


@dataclass(frozen=True)
class StreamStudy:
    """A study of streams at one of its sizes."""

    config: StreamStudyConfig
    scale: str
    arms: dict[str, StreamRunConfig]
    """By name, each with the name, the first seed and the number of seeds of its run."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of every arm."""
        one = next(iter(self.arms.values()))
        return tuple(range(one.seed, one.seed + one.seeds))


def is_of_streams(path: Path) -> bool:
    """Is a file a study whose base has a block `stream`?

    Raises:
        UserError, MissingInputError, DataError: it cannot be read, or is no mapping.
    """
    for key, value in configs.read_nodes(path).value:
        if key.value == "base" and isinstance(value, MappingNode):
            return any(inner.value == "stream" for inner, _ in value.value)
    return False


def read_stream_study(
    path: Path,
    *,
    scale: str | None = None,
    base: Path | None = None,
    overrides: Sequence[str] = (),
    seeds: int | None = None,
) -> StreamStudy:
    """Read a study file and lay out its arms; arguments and errors as `study_file.read_study`."""
    _refuse_keys_of_text(path)
    study = configs.load(StreamStudyConfig, path)
    scale, found = scale_of(study.scales, scale, path)
    size = found or StreamScaleConfig()
    config = laid(StreamRunConfig(), study.base, "base")
    if size.base is not None:
        config = with_file(config, shipped(Path(size.base)), ("name", "seeds"))
    if size.run is not None:
        config = laid(config, size.run, f"scales.{scale}.run")
    if base is not None:
        config = with_file(config, base, ("name", "seeds"))
    config = overridden(config, overrides)
    check_known("arms of a scale", size.arms, study.arms, path)
    check_known("labels", study.labels, study.arms, path)
    chosen = seeds_of(seeds or size.seeds or study.seeds)
    if chosen != tuple(range(chosen[0], chosen[0] + len(chosen))):
        raise UserError(
            f"{path}: seeds: the networks of a stream have seeds one after the other, got "
            f"{list(chosen)}"
        )
    arms: dict[str, StreamRunConfig] = {}
    for name, node in study.arms.items():
        arm = laid(config, node, f"arms.{name}")
        if name in size.arms:
            arm = laid(arm, size.arms[name], f"arms.{name} of the scale")
        if arm.stream.kind not in SHARED:
            raise UserError(
                f"{path}: arms.{name}: stream.kind={arm.stream.kind} has other figures than a "
                f"study compares; launch/stream.py runs it. A study takes {', '.join(SHARED)}"
            )
        arms[name] = replace(arm, name=name, seed=chosen[0], seeds=len(chosen))
    check_twins({n: configs.digest(replace(arm, name="any")) for n, arm in arms.items()}, path)
    return StreamStudy(study, scale, arms)


def _refuse_keys_of_text(path: Path) -> None:
    known = {one.name for one in fields(StreamStudyConfig)}
    for key, _ in configs.read_nodes(path, StudyConfig).value:
        if key.value not in known and key.value in {one.name for one in fields(StudyConfig)}:
            fail(key, key.value, "is for studies of text; a study of streams has no such key")
