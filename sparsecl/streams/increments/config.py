"""What a user may say of classes that come a few at a time. No torch."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from sparsecl.bounds import check_bounds

NETWORKS = ("mlp", "convnet", "resnet18")
"""Learners that are trained by an optimizer; the others learn in their own way."""


@dataclass(frozen=True, kw_only=True)
class IncrementsConfig:
    """Which classes come when, and how a network is trained on them. stream.tasks is the number of
    times that classes come."""

    start: Annotated[int, Ge(1)] = 2
    """Classes of the first task."""

    more: Annotated[int, Ge(1)] = 2
    """Classes that each later task adds."""

    epochs: Annotated[int, Ge(1)] = 10
    """Passes of a task, over the images of all classes that have come."""

    train_per_class: Annotated[int, Ge(1)] | None = None
    """Images of a class that are trained; null = all."""

    test_per_class: Annotated[int, Ge(1)] | None = None
    """Images of a class that are tested; null = all."""

    validation: Annotated[int, Ge(0)] = 50
    """Training images of a class that are held back: a task ends with the weights of the epoch
    that was best on them. 0 = with the last ones."""

    drops: tuple[float, ...] = (0.3, 0.6, 0.8)
    """Shares of a task's epochs after which the step size drops; it begins with optimizer.lr."""

    drop: Annotated[float, Gt(0), Le(1)] = 0.2
    """Factor of a drop."""

    reset: Literal["none", "head", "network"] = "none"
    """What each task begins with anew: the layer that gives the logits, or all, the reference."""

    flip: bool = False
    """Half of the training images are mirrored."""

    crop: Annotated[int, Ge(0)] = 0
    """Pixels by which a training image may be shifted in each direction; what comes in is
    reflected."""

    rotation: Annotated[float, Ge(0), Le(180)] = 0.0
    """A training image is turned by up to so many degrees."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if list(self.drops) != sorted(self.drops) or not all(0 < share < 1 for share in self.drops):
            raise ValueError(f"drops must ascend between 0 and 1, got {list(self.drops)}")

    def num_classes(self, tasks: int) -> int:
        """Classes that have come with so many tasks."""
        return self.start + (tasks - 1) * self.more

    def factor(self, epoch: int) -> float:
        """Of the step size in an epoch of a task, counted from 0."""
        return self.drop ** sum(epoch >= round(share * self.epochs) for share in self.drops)


def check_increments(config: Any) -> None:
    """Raise ValueError for what cannot go together in a StreamRunConfig."""
    learner, topology, used = config.learner.kind, config.topology.kind, config.methods.used()
    if config.stream.kind != "class_incremental":
        if learner not in ("mlp", "linear"):
            raise ValueError(
                f"learner.kind={learner}: stream.kind={config.stream.kind} takes mlp or linear; "
                "only class_incremental has others"
            )
        return
    if learner == "linear":
        raise ValueError("learner.kind=linear: class_incremental has nearest_mean as its floor")
    if config.learner.activation != "relu" and learner != "mlp":
        raise ValueError(
            f"learner.activation={config.learner.activation}: {learner} takes relu; mlp takes all"
        )
    if topology != "dense" and learner != "mlp":
        raise ValueError(f"topology.kind={topology}: {learner} takes no graph; mlp does")
    for name, block in used.items():
        if learner not in NETWORKS:
            raise ValueError(f"methods.{name}: {learner} takes none")
        if not block.any_shape:
            raise ValueError(f"methods.{name}: it does not run on class_incremental")
    reset = config.stream.increments.reset
    if reset != "none" and learner not in NETWORKS:
        raise ValueError(f"stream.increments.reset={reset}: {learner} takes none only")
    if reset == "network" and used:
        raise ValueError(
            "stream.increments.reset=network is the reference; it takes no methods "
            f"(methods.{next(iter(used))})"
        )
    if learner == "resnet18" and config.stream.batch < 2:
        raise ValueError("stream.batch=1: resnet18 normalises over a batch; take 2 or more")
