"""What a user may say of a stream, its networks and their training. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from sparsecl.bounds import check_bounds
from sparsecl.methods.config import MethodsConfig
from sparsecl.methods.facts import RunFacts, error_text
from sparsecl.topology.config import ON_DISK, TopologyConfig
from sparsecl.topology.layer import LayerShape


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """The tasks, one after the other."""

    kind: Literal["permuted_mnist"] = "permuted_mnist"
    """permuted_mnist: images whose pixels are permuted anew in each task."""

    tasks: Annotated[int, Ge(1)] = 150
    """How many."""

    samples_per_task: Annotated[int, Ge(1)] = 10_000
    """Images of a task, each trained once; beyond those that there are they come again."""

    batch: Annotated[int, Ge(1)] = 1
    """Images of an optimizer step; divides samples_per_task."""

    data: Path | None = None
    """Folder with the idx files of MNIST or of a set in its form, packed (.gz) or not. null = the
    digits of scikit-learn, 1797 images of 8 x 8."""

    def __post_init__(self) -> None:
        check_bounds(self)
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

    kind: Literal["mlp"] = "mlp"
    """mlp: hidden layers of ReLU units, Kaiming-uniform weights, biases of zero."""

    width: Annotated[int, Ge(1)] = 100
    """Units of a hidden layer."""

    layers: Annotated[int, Ge(1)] = 3
    """Hidden layers."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def shapes(self, inputs: int, classes: int) -> tuple[LayerShape, ...]:
        """The matrices, in order; the last one gives the logits."""
        sizes = (inputs, *[self.width] * self.layers, classes)
        pairs = enumerate(zip(sizes[1:], sizes[:-1], strict=True))
        return tuple(LayerShape(f"layers.{k}", "up", o, i, bias=True) for k, (o, i) in pairs)


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

    seed: int = 0
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
        check_topology(self.topology)

    @property
    def num_together(self) -> int:
        """Networks that are trained side by side."""
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


def check_methods(config: StreamRunConfig, shapes: tuple[LayerShape, ...]) -> None:
    """Raise ValueError, with the key as the user wrote it, for methods that cannot run here."""
    used = config.methods.used()
    able: Mapping[str, str] = {name: block.networks for name, block in used.items()}
    for name, networks in able.items():
        if networks == "none":
            raise ValueError(f"methods.{name}: it does not run on the networks of a stream")
    for name, block in used.items():
        facts = RunFacts(
            dense=config.topology.kind == "dense",
            density=config.topology.rho,
            role="topology",
            storage="masked",
            joint=False,
            num_phases=config.stream.tasks,
            micro=config.stream.batch,
            optimizer=config.optimizer.kind,
            layers=shapes,
            others=tuple(other for other in used if other != name),
        )
        try:
            block.check(facts)
        except ValueError as error:
            raise ValueError(error_text(name, block, error)) from None
