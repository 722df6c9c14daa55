"""What a user may say of a stream, its networks and their training. No torch."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt

from sparsecl.bounds import check_bounds, check_name
from sparsecl.config import younger
from sparsecl.methods.config import MethodsConfig
from sparsecl.methods.facts import RunFacts, error_text
from sparsecl.streams.increments.config import IncrementsConfig, check_increments
from sparsecl.topology.config import ON_DISK, TopologyConfig
from sparsecl.topology.layer import LayerShape

Network = Literal["mlp", "linear", "convnet", "resnet18"]
ActivationKind = Literal["relu", "leaky_relu", "tanh", "crelu"]
LearnerKind = Literal[Network, "cobweb", "cobweb_nn", "cobweb_nn_sparse", "nearest_mean"]
Permuted = Literal["permuted_mnist", "input_permuted", "label_permuted"]
StreamKind = Literal[Permuted, "image_pairs", "class_incremental"]


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """The tasks, one after the other."""

    kind: StreamKind = "permuted_mnist"
    """permuted_mnist: images whose pixels are permuted once more in each task; input_permuted:
    anew, normalised; label_permuted: their labels once more, normalised; image_pairs: two classes
    to be told apart, of few images trained many times, and tested on others; class_incremental:
    more classes of images in each task."""

    tasks: Annotated[int, Ge(1)] = 150
    """How many."""

    samples_per_task: Annotated[int, Ge(1)] = 10_000
    """Images of a task, each trained once; beyond those that there are they come again: 3000 are
    100 epochs of a pair with 2 x 15 images."""

    batch: Annotated[int, Ge(1)] = 1
    """Images of an optimizer step; divides samples_per_task."""

    data: Path | None = None
    """Folder with the idx files of MNIST or of a set in its form, packed (.gz) or not. null = the
    digits of scikit-learn, 1797 images of 8 x 8. image_pairs also takes Omniglot's images_*.zip, or
    a NAME.npy for each class; class_incremental the archives too, and CIFAR-100 in its binary form.
    """

    test_per_class: Annotated[int, Ge(1)] = 5
    """image_pairs: the last images of each class, which are for the test; not of idx files, which
    have their own."""

    increments: IncrementsConfig = younger(IncrementsConfig())
    """Of class_incremental."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.kind == "class_incremental":
            return
        if self.samples_per_task % self.batch:
            raise ValueError(
                f"batch={self.batch} does not divide samples_per_task={self.samples_per_task}"
            )

    @property
    def steps_per_task(self) -> int:
        """Optimizer steps of a task."""
        return self.samples_per_task // self.batch


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """The network."""

    kind: LearnerKind = "mlp"
    """mlp: hidden layers, Kaiming-uniform weights, biases of zero; linear: no hidden
    layer, so width, layers and widths do not count. Of class_incremental alone: convnet, resnet18
    (for small images), and without an optimizer cobweb, cobweb_nn, cobweb_nn_sparse and
    nearest_mean."""

    width: Annotated[int, Ge(1)] = 100
    """Units of a hidden layer; channels of a convnet's first layer and of resnet18's (64 in the
    papers), more behind it."""

    layers: Annotated[int, Ge(1)] = 3
    """Hidden layers of mlp and convnet."""

    budget: Annotated[int, Ge(1)] = younger(64)
    """Nodes that cobweb visits for an answer."""

    widths: tuple[int, ...] = ()
    """Units of each hidden layer, in place of width and layers; [] = these count."""

    activation: ActivationKind = younger("relu")
    """Of hidden units of mlp. crelu: a unit gives max(z, 0) and max(-z, 0), so the next layer has
    twice the inputs."""

    norm: Literal["none", "online"] = younger("none")
    """Of what goes into an activation of mlp. online: online normalisation, each sample by those
    before it."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if not all(width >= 1 for width in self.widths):
            raise ValueError(f"widths must be whole numbers >= 1, got {list(self.widths)}")

    @property
    def units(self) -> tuple[int, ...]:
        """Of each hidden layer."""
        if self.kind == "linear":
            return ()
        return self.widths or (self.width,) * self.layers

    @property
    def num_hidden(self) -> int:
        """Hidden layers that there are."""
        return len(self.units)

    def shapes(self, inputs: int, classes: int) -> tuple[LayerShape, ...]:
        """The matrices, in order; the last one gives the logits."""
        return mlp_shapes((inputs, *self.units, classes), self.activation)


def mlp_shapes(
    sizes: Sequence[int], activation: ActivationKind, prefix: str = ""
) -> tuple[LayerShape, ...]:
    """Of layers in a row: sizes = inputs, units of each hidden layer, outputs."""
    given = 2 if activation == "crelu" else 1
    return tuple(
        LayerShape(f"{prefix}layers.{k}", "up", o, i * (given if k else 1), bias=True)
        for k, (o, i) in enumerate(zip(sizes[1:], sizes[:-1], strict=True))
    )


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """The optimizer."""

    kind: Literal["sgd", "adam", "adamw"] = "sgd"
    """torch.optim's SGD, Adam (coupled L2) or AdamW."""

    lr: Annotated[float, Gt(0)] = 0.003
    """Step size, the same all the time."""

    momentum: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Of SGD."""

    betas: tuple[float, ...] = (0.9, 0.999)
    """Decay of the first and second moment of Adam."""

    eps: Annotated[float, Gt(0)] = 1.0e-8
    """Added to Adam's denominator."""

    weight_decay: Annotated[float, Ge(0)] = 0.0
    """Of weights and biases; coupled with SGD and Adam."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {list(self.betas)}")


@dataclass(frozen=True, kw_only=True)
class PanelConfig:
    """The signs of lost plasticity, before each task and after the last."""

    samples: Annotated[int, Ge(1)] = 2000
    """First images of the task to come, with which a network is looked at before it learns them."""

    every: Annotated[int, Ge(0)] = 100
    """Optimizer steps between looks at what an update gains, p(Z); 0 = none."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True)
class SaveConfig:
    """When the state is saved."""

    every: Annotated[int, Ge(1)] = 1
    """Tasks between checkpoints."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True)
class StreamRunConfig:
    """Networks on a stream of tasks."""

    name: str = "stream"
    """For people, and for the run folder."""

    seed: Annotated[int, Ge(0)] = 0
    """Decides order, permutations, weights, graph and all that methods draw."""

    seeds: Annotated[int, Ge(1)] = 1
    """Networks: of seed, seed + 1, and so on. They know nothing of each other."""

    together: Annotated[int, Ge(0)] = 0
    """Networks that are trained side by side, which is faster and changes no result; 0 = all. A
    method that can only take one in hand makes it one."""

    stream: StreamConfig = field(default_factory=StreamConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    optimizer: StepConfig = field(default_factory=StepConfig)
    topology: TopologyConfig = field(default_factory=lambda: TopologyConfig(kind="dense"))
    methods: MethodsConfig = field(default_factory=MethodsConfig)
    panel: PanelConfig = field(default_factory=PanelConfig)
    checkpoint: SaveConfig = field(default_factory=SaveConfig)

    def __post_init__(self) -> None:
        check_bounds(self)
        check_name(self.name)
        check_topology(self.topology)
        check_increments(self)
        _check_norm(self)
        if not self.learner.num_hidden:
            _check_linear(self.topology, self.methods)

    @property
    def num_together(self) -> int:
        """Networks that are trained side by side."""
        if self.stream.kind == "class_incremental":
            return 1
        if not all(block.networks == "many" for block in self.methods.used().values()):
            return 1
        return min(self.together or self.seeds, self.seeds)

    @property
    def packs(self) -> tuple[tuple[int, ...], ...]:
        """Seeds that are trained side by side, one pack after the other."""
        seeds, size = range(self.seed, self.seed + self.seeds), self.num_together
        return tuple(tuple(seeds[k : k + size]) for k in range(0, self.seeds, size))


def check_topology(topology: TopologyConfig) -> None:
    """What the layers here have no form for."""
    if topology.kind in ON_DISK:
        raise ValueError(f"topology.kind={topology.kind} follows from files of a GPT; take another")
    for key, value, only in (
        ("role", topology.role, "topology"),
        ("storage", topology.storage, "masked"),
        ("backend", topology.backend, "dense"),
    ):
        if value != only:
            raise ValueError(f"topology.{key}={value}: a stream's networks have {key} {only} only")


def _check_norm(config: StreamRunConfig) -> None:
    """What does not go with a norm that passes move on."""
    if config.learner.norm == "none":
        return
    if config.stream.kind in ("class_incremental", "image_pairs") or not config.learner.num_hidden:
        raise ValueError(
            f"learner.norm={config.learner.norm} is for hidden layers of mlp on the streams that "
            f"permute images, not for stream.kind={config.stream.kind}, "
            f"learner.kind={config.learner.kind}"
        )
    for name, block in config.methods.used().items():
        if block.networks == "one":
            raise ValueError(
                f"learner.norm={config.learner.norm}: methods.{name} makes passes of its own, "
                "which would move it on; take one"
            )


def _check_linear(topology: TopologyConfig, methods: MethodsConfig) -> None:
    """What is about hidden layers."""
    if topology.kind != "dense":
        raise ValueError(
            f"topology.kind={topology.kind} is for hidden layers, and learner.kind=linear has none"
        )
    for name, block in methods.used().items():
        if block.about_units:
            raise ValueError(
                f"methods.{name} is about hidden units, and learner.kind=linear has none"
            )


def check_methods(config: StreamRunConfig, shapes: tuple[LayerShape, ...]) -> None:
    """Raise ValueError, with the key as the user wrote it, for methods that cannot run here."""
    check_blocks(
        config,
        shapes,
        able=("one", "many"),
        where="the networks of a stream",
        micro=config.stream.batch,
        curvature=config.learner.norm == "none",
        moving=True,
    )


def check_blocks(
    config: Any,
    shapes: tuple[LayerShape, ...],
    *,
    able: Collection[str],
    where: str,
    micro: int,
    curvature: bool = False,
    moving: bool = False,
) -> None:
    """`check_methods` of any config of a stream.

    Args:
        able: of which `MethodConfig.networks` methods run here.
        micro: samples of an optimizer step.
        curvature: a step can be made again, so methods may ask for `curvature` and
            `dense_gradient` of it (MethodContext).
        moving: graphs may move.
    """
    used = config.methods.used()
    for name, block in used.items():
        if block.networks not in able or (block.rewires and not moving):
            raise ValueError(f"methods.{name}: it does not run on {where}")
        facts = RunFacts(
            dense=config.topology.kind == "dense",
            density=config.topology.rho,
            role="topology",
            storage="masked",
            joint=False,
            num_phases=config.stream.tasks,
            micro=micro,
            optimizer=config.optimizer.kind,
            layers=shapes,
            others=tuple(other for other in used if other != name),
            curvature=curvature,
            dense_gradients=curvature,
            paired_units=config.learner.activation == "crelu",
        )
        try:
            block.check(facts)
        except ValueError as error:
            raise ValueError(error_text(name, block, error)) from None
