"""What a user may say about the topology."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from sparsecl.bounds import check_bounds
from sparsecl.config import younger
from sparsecl.topology.layer import LayerKind

TopologyKind = Literal[
    "dense",
    "er_fixed",
    "er_bernoulli",
    "brf",
    "shared_index",
    "bsw",
    "expander",
    "nm",
    "block_diag",
    "from_file",
    "from_zeros",
    "ticket",
]
ON_DISK = ("from_file", "from_zeros", "ticket")
"""Kinds that are not drawn: they follow from files, which may have moved since."""

BackendName = Literal["dense", "native", "csr", "block"]
BY_LIVE_WEIGHT: tuple[BackendName, ...] = ("native", "csr", "block")
"""Backends whose products touch live weights alone."""


@dataclass(frozen=True, kw_only=True)
class BrfConfig:
    """Bipartite receptive fields (kinds brf and shared_index)."""

    r: Annotated[float, Ge(0), Le(1)] = 0.3
    """Spatial randomness. 0: each unit sees its nearest units; 1: any units."""

    degrees: Literal["fixed", "uniform"] = "fixed"
    """Links of a unit of the smaller side. fixed: all equal, within one; uniform: one each, the
    rest dropped on units at random."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True)
class BswConfig:
    """Bipartite small world (kind bsw)."""

    beta: Annotated[float, Ge(0), Le(1)] = 0.25
    """Probability of a link to be moved to a random place."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True)
class ExpanderConfig:
    """Random graphs with regular degrees (kind expander)."""

    form: Literal["biregular", "near_biregular", "xnet"] = "biregular"
    """biregular: all rows equal and all columns equal, density rounded to what allows it;
    near_biregular: exact density, degrees equal within one; xnet: the smaller side only, density
    rounded too."""


@dataclass(frozen=True, kw_only=True)
class NmConfig:
    """N of every M consecutive weights (kind nm)."""

    m: Annotated[int, Ge(1)] = 16
    """M, weights per group; N = density * M must be a whole number."""

    axis: Literal["input", "output"] = "input"
    """input: groups of inputs of one output unit (2:4 hardware); output: the other way round."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """Graphs of square tiles in place of single weights."""

    size: Annotated[int, Ge(1)]
    """Weights along each side of a tile; must divide both sides of every masked matrix."""

    balanced: bool = True
    """No row of tiles is dead; with er_fixed all rows have the same number of tiles, within one."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True)
class TicketConfig:
    """What is left of the run or checkpoint in topology.path (kind ticket)."""

    prune: Annotated[float | None, Gt(0), Lt(1)] = None
    """Share of its live weights to remove, exactly round(share * live). null = so many that
    topology.density of all weights are left."""

    times: Annotated[int, Ge(1)] = 1
    """How often `prune` is applied, without training in between: the live weights that so many
    rounds leave, pruned at once."""

    above: Annotated[float | None, Ge(0)] = None
    """In place of prune and density: keep the weights whose score is above this."""

    scope: Literal["global", "layer"] = "global"
    """Compare scores over all layers together, or in each layer by itself."""

    score: Literal["magnitude", "movement", "random"] = "magnitude"
    """What is removed first. magnitude: small weights; movement: weights that have moved little
    since the checkpoint in `since`; random: any, by the seed of the run."""

    since: str | None = None
    """Score movement: the checkpoint, or run, that the distance of a weight is measured from."""

    positions: Literal["ticket", "random"] = "ticket"
    """random: keep only the number of live weights of each layer and draw them anew, by the seed of
    the run, as er_fixed does. The control of a ticket."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.prune is not None and self.above is not None:
            raise ValueError("prune and above both say how much is left; give one of them")
        if self.times > 1 and self.prune is None:
            raise ValueError("times says how often prune is applied; give prune")


@dataclass(frozen=True, kw_only=True)
class OverrideConfig:
    """A density of its own for some layers."""

    kinds: tuple[LayerKind, ...] = ()
    """Matrices of a block; empty = all."""

    layers: tuple[int, ...] = ()
    """Blocks, counted from 0; empty = all."""

    density: float
    """Live weights / all weights of each matched matrix, in (0, 1]."""

    def __post_init__(self) -> None:
        _check_density(self.density)


@dataclass(frozen=True, kw_only=True)
class TopologyConfig:
    """Which weights of the masked matrices may live."""

    kind: TopologyKind = "er_fixed"
    """Graph family. er_fixed: exactly round(density * cells) live weights; er_bernoulli: every
    weight lives with probability density; brf: receptive fields; shared_index: brf with the units
    of every layer shuffled; bsw: small world; expander: regular degrees; nm: N of every M weights;
    block_diag: diagonal blocks, density 1 / g; from_file: the masks in `path`; from_zeros: the
    zeros of the weights in `path`; ticket: the largest weights of the run in `path`; dense: all
    weights live, density is ignored."""

    density: float = 0.1
    """Live weights / all weights of the masked matrices, in (0, 1]. Ignored by from_file and
    from_zeros, and by a ticket that says otherwise."""

    role: Literal["topology", "update"] = "topology"
    """topology: absent weights do not exist (value 0). update: all weights exist, but only those
    of the topology are trained; the others keep their initial value."""

    storage: Literal["masked", "packed"] = "masked"
    """masked: a dense tensor and a bool mask. packed: the vector of live values only."""

    backend: Literal[BackendName, "auto"] = "dense"
    """How a sparse layer multiplies. dense: as a full matrix; native: by live weight, on a CPU;
    csr: the same with torch's own kernels; block: by live tile (needs a block); auto: the fastest
    of them on this machine."""

    keep_expansion: bool = False
    """Packed storage with the dense backend: keep the expanded matrix over the micro-batches of a
    step, for its memory."""

    allocation: Literal["uniform", "er", "erk"] = "uniform"
    """How density is spread over layers. uniform: the same in each; er: small layers denser, by
    the rule of SET; erk: the same rule to the power erk_power."""

    erk_power: Annotated[float, Ge(0)] = 1.0
    """Exponent of the erk rule; 0 = uniform."""

    overrides: tuple[OverrideConfig, ...] = ()
    """Densities of single layers; a later entry wins. They are outside the budget of er and erk."""

    block: BlockConfig | None = None
    """Draw tiles in place of weights; null = single weights."""

    brf: BrfConfig = field(default_factory=BrfConfig)
    bsw: BswConfig = field(default_factory=BswConfig)
    expander: ExpanderConfig = field(default_factory=ExpanderConfig)
    nm: NmConfig = field(default_factory=NmConfig)
    ticket: TicketConfig = younger(TicketConfig())
    path: str | None = None
    """from_file: .npz or .safetensors with one mask per layer. from_zeros: .safetensors, a folder
    of them, or the checkpoint folder of a run. ticket: the folder of a run (its newest checkpoint)
    or of a checkpoint."""

    def __post_init__(self) -> None:
        _check_density(self.density)
        if self.role == "update" and self.storage != "masked":
            raise ValueError(
                f"storage {self.storage} has no absent weights to keep; use masked for role: update"
            )
        if self.role == "update" and self.backend != "dense":
            raise ValueError(
                f"backend {self.backend} multiplies by live weights only; role update uses all "
                "weights in the forward pass: use dense"
            )
        if self.keep_expansion and self.storage != "packed":
            raise ValueError("keep_expansion needs storage: packed; masked has nothing to expand")
        if self.backend == "block" and self.block is None:
            raise ValueError("backend block needs tiles: set block.size, for example block.size=16")
        if self.kind == "nm" and self.block is not None:
            raise ValueError("block has no meaning for kind nm, which keeps single weights")
        if self.kind == "ticket" and self.block is not None:
            raise ValueError("block has no meaning for kind ticket, which keeps single weights")
        if self.kind in ("from_file", "from_zeros") and not self.path:
            raise ValueError(f"path is required for kind {self.kind}: the file with the masks")
        check_bounds(self)

    @property
    def rho(self) -> float:
        """The density asked for: 1.0 for a dense model whatever `density` says."""
        return 1.0 if self.kind == "dense" else self.density


def _check_density(density: float) -> None:
    if not 0.0 < density <= 1.0:  # also catches NaN
        raise ValueError(f"density must be in (0, 1], got {density:g}{_percent_hint(density)}")


def _percent_hint(density: float) -> str:
    """A way out for numbers that look like a percentage."""
    if not 1.0 < density < 100.0:
        return ". It is the share of weights that live: write 0.1 for one weight in ten."
    return (
        f". {density:g}% of the weights live: write {density / 100:g}. "
        f"For {density:g}% sparsity write density {1 - density / 100:g}."
    )
