"""What a method's options say of it before anything is built. No torch: plans and reports read it.

Letters of the comparison tables (flags), as in the papers:

    I  needs to know the domain when it is tested      F  freezes weights
    B  is told where one domain ends                   X  keeps more numbers beside the weights
    D  stores training data                            C  computes more for each step
    P  assumes a pre-trained model
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from sparsecl.bounds import check_bounds
from sparsecl.methods.work import MethodWork, RunWork
from sparsecl.optim.config import StageConfig
from sparsecl.sparse.sizes import RankSizes
from sparsecl.topology.layer import LayerShape

FLAGS: dict[str, str] = {
    "I": "needs to know the domain when it is tested",
    "B": "is told where one domain ends",
    "D": "stores training data",
    "P": "assumes a pre-trained model",
    "F": "freezes weights",
    "X": "keeps more numbers beside the weights",
    "C": "computes more for each step",
}


AdamRestartKind = Literal["global", "per_weight"]
"""From where Adam's bias correction counts for a weight that begins anew; see restart.py."""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a method may ask of the run that it is to be part of; known before any work."""

    dense: bool
    """No layer is on a topology."""

    density: float = 1.0
    """topology.density of the run config; 1.0 where a file says what lives."""

    role: Literal["topology", "update"]
    storage: Literal["masked", "packed"]
    tiled: bool = False
    """A layer may multiply by tiles (topology.backend block), which live or are absent whole."""

    live_products: bool = False
    """A layer may multiply by its live weights alone (topology.backend is not dense)."""

    joint: bool
    """One phase trains all domains: there is no border between them."""

    num_phases: int
    micro: int
    """Sequences per rank and micro-batch."""

    optimizer: str
    """optimizer.kind of the run config."""

    layers: tuple[LayerShape, ...]
    """The linears of the model, global."""

    others: tuple[str, ...]
    """Names of the other methods of the run."""

    freezing: tuple[str, ...] = ()
    """Those of them that freeze weights."""

    rewires: bool = False
    """A method of the run moves live weights."""

    curvature: bool = False
    """A step can show the diagonal of the Hessian of its loss by HesScale, without what methods
    have added (MethodContext.curvature; not to be written to)."""

    dense_gradients: bool = True
    """A step can show the gradients of absent weights (MethodContext.dense_gradient)."""

    paired_units: bool = False
    """A hidden unit gives two activations, max(z, 0) and max(-z, 0), and methods see its z."""


@dataclass(frozen=True, kw_only=True)
class AddedParameter:
    """A parameter that a method adds to the model."""

    shape: tuple[int, ...]
    """Global."""

    partition_dim: int
    """The dim that is split over tp; -1: every tp rank has all of it."""

    multiplied: int | None = None
    """Elements that a token multiplies with, of a table that it reads a few rows of; None = all."""

    @property
    def num_elements(self) -> int:
        """Global."""
        return math.prod(self.shape)

    @property
    def num_multiplied(self) -> int:
        """Elements that meet a token; those that it reads twice count twice."""
        return self.num_elements if self.multiplied is None else self.multiplied


@dataclass(frozen=True, kw_only=True)
class MethodMemory:
    """Bytes that a method keeps on one rank, beside the model and the parameters that it adds."""

    beside: int = 0
    """With the masters, all the time: on the host if the optimizer is there."""

    kept: int = 0
    """On the rank's device, all the time."""

    passing: int = 0
    """On the device at the largest moment of a backward pass."""

    update: int = 0
    """With the masters, while they are stepped."""

    host: int = 0
    """In the host's memory, all the time."""

    def __add__(self, other: "MethodMemory") -> "MethodMemory":
        """Of two methods, which change the masters one after the other."""
        return MethodMemory(
            beside=self.beside + other.beside,
            kept=self.kept + other.kept,
            passing=self.passing + other.passing,
            update=max(self.update, other.update),
            host=self.host + other.host,
        )


class MethodConfig:
    """Base of every method's options; bounds of numbers stand in their types."""

    flags: ClassVar[Mapping[str, str]] = {}
    """Letter of FLAGS -> what the method needs or costs, in a few words."""

    rewires: ClassVar[bool] = False
    """It moves live weights: a checkpoint's topology takes the place of the config's."""

    networks: ClassVar[Literal["none", "one", "many"]] = "none"
    """Networks of a stream (streams/) that it takes in hand at once: none, because it asks for what
    only text has; one; or many side by side, because it treats every weight by itself or each
    network by `context.networks`."""

    any_shape: ClassVar[bool] = False
    """Weights may be convolutions: it asks for no more than elements, and units by the context."""

    not_negative: ClassVar[tuple[str, ...]] = ()
    """Its slice tensors that are never below zero; a checkpoint is checked for it."""

    @property
    def about_units(self) -> bool:
        """It has no sense where there is no hidden unit."""
        return False

    @property
    def keeps_logits(self) -> bool:
        """The method asks for the logits of each micro-batch (Method.needs_outputs)."""
        return False

    @property
    def replayed_share(self) -> float:
        """Earlier sequences that are trained again for each new one, when the memory is filled."""
        return 0.0

    @property
    def reread_share(self) -> float:
        """Of these, the ones that are read from the training text again."""
        return self.replayed_share

    def __post_init__(self) -> None:
        check_bounds(self)

    def check(self, run: RunFacts) -> None:
        """Raise ValueError if the run lacks what the method needs, with the way out. A message
        that begins with one of the method's fields is about that field."""

    def check_layers(
        self, live: Mapping[str, int], num_phases: int, layers: Sequence[LayerShape]
    ) -> None:
        """The same as `check`, once the topologies are drawn.

        Args:
            live: global live weights by layer name, in the order of the model.
            layers: the linears of the model, global.
        """

    def about(
        self, layers: Sequence[LayerShape], num_phases: int, in_columns: int = 0
    ) -> dict[str, Any]:
        """What the first record of a run says of the method: the letters of its flags, and the
        elements of its parameters (global).

        Args:
            in_columns: live weights of the columns after the first.
        """
        added = self.parameters(layers, num_phases).values()
        later = in_columns if self.columns(num_phases)[0] > 1 else 0
        return {
            "flags": " ".join(flag for flag in FLAGS if flag in self.flags),
            "extra_parameters": later + sum(parameter.num_elements for parameter in added),
        }

    def parameters(
        self, layers: Sequence[LayerShape], num_phases: int
    ) -> Mapping[str, AddedParameter]:
        """What `Method.attach` will have added to a model of these linears, by parameter name."""
        return {}

    def columns(self, num_phases: int) -> tuple[int, int]:
        """Networks of the model's shape side by side, and the rank of what a later one hears of
        the earlier (model/columns.py)."""
        return 1, 0

    def memory(self, rank: RankSizes) -> MethodMemory:
        """What the method keeps on a rank at most, in the whole run; not the parameters that it
        adds, which count as all others do."""
        return MethodMemory()

    def work(self, run: RunWork) -> MethodWork:
        """What moving the graph costs in a whole run; not the passes over replayed sequences, nor a
        method's own passes at borders."""
        return MethodWork()

    def stages(self) -> Sequence[StageConfig]:
        """How it divides every phase's own steps; empty: as phases.stages says."""
        return ()


def check_adam_restart(kind: AdamRestartKind, run: RunFacts) -> None:
    """Raise ValueError if the run has no Adam to be restarted."""
    if kind == "per_weight" and run.optimizer not in ("adam", "adamw"):
        raise ValueError(
            f"adam_restart=per_weight is for Adam, and optimizer.kind is {run.optimizer}; use "
            "global"
        )


def error_text(name: str, config: MethodConfig, error: ValueError) -> str:
    """An error of `check`, with the key as the user wrote it."""
    own = {field.name for field in fields(config)}  # pyright: ignore[reportArgumentType]
    word = str(error).partition("=")[0].partition(" ")[0]
    return f"methods.{name}{'.' if word in own else ': '}{error}"
