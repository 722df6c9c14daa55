"""interference.json: what tools/interference.py measured of one checkpoint, written and read.

Matrices [D, D] over the domains. In `update` the row is the domain that was learned, the column the
one that was measured. Losses, changes and divergences are in nats per token; log10 numbers are None
where there is no path. torch is not needed here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsecl import config as configs
from sparsecl.errors import DataError, MissingInputError, UserError
from sparsecl.files import write_json

INTERFERENCE = "interference.json"
FORMAT = 1

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class InterferenceSettings:
    """What the numbers depend on beside the checkpoint."""

    sequences: int = 8
    """Held-out sequences of each domain; less where a domain has less."""

    eps: float = 1e-3
    """Relative size |dw| / |w| of an update, over the live weights of the masked matrices."""

    weights: int = 16
    """Single weights that are changed, drawn from all live ones."""

    def __post_init__(self) -> None:
        if self.sequences < 1:
            raise ValueError(f"sequences must be >= 1, got {self.sequences}")
        if not 0.0 < self.eps <= 1.0:
            raise ValueError(f"eps must be in (0, 1], got {self.eps:g}")
        if self.weights < 1:
            raise ValueError(f"weights must be >= 1, got {self.weights}")


@dataclass(frozen=True, kw_only=True)
class DensityResult:
    """Live shares."""

    masked: float
    """Of the masked matrices."""

    model: float
    """Of all parameters."""

    num_live: int
    """Live weights of the masked matrices."""


@dataclass(frozen=True, kw_only=True)
class StructureResult:
    """Of the masks alone; see analysis/structure.py and topology/reach.py."""

    num_matrices: int
    """Feed-forward matrices, K."""

    paths_per_weight_log10: float | None
    paths_ratio_to_dense_log10: float | None
    rho_power: float
    """rho^(K - 1), beside the ratio."""

    share_of_own_paths_log10: float | None
    share_of_own_paths_dense_log10: float
    without_path: float
    """Share of the live feed-forward weights that are on no path."""

    reach: tuple[float, ...]
    """Mean share of the residual stream that one unit reaches after 1..L blocks."""

    reach_without_residual: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class GradientResult:
    """Gradients of the mean loss of each domain; on live weights unless a name says otherwise."""

    norm: tuple[float, ...]
    cosine: Matrix
    cosine_all_parameters: Matrix
    dot: Matrix
    dot_per_live_weight: Matrix
    """dot / live weights of the masked matrices."""

    overlap_top10: Matrix
    """Jaccard index of the tenth of the live weights with the largest |g|."""

    overlap_by_chance: float
    """What two random tenths would have."""


@dataclass(frozen=True, kw_only=True)
class UpdateResult:
    """One gradient step on domain j (row), measured on domain i (column)."""

    eps: float
    loss: tuple[float, ...]
    """Before any update."""

    loss_change: Matrix
    predicted: Matrix
    """To first order, for the same step."""

    kl: Matrix
    """KL(before || after) of the next-token distribution."""


@dataclass(frozen=True, kw_only=True)
class SingleWeightResult:
    """Mean shares of the outputs that one live weight moves by more than 1e-6 of themselves."""

    logits: float
    hidden: float
    """Units of the residual stream after the last block."""

    num_weights: int


@dataclass(frozen=True, kw_only=True)
class Interference:
    """The whole file."""

    format: int = FORMAT
    run: str
    """Name of the run."""

    checkpoint: str
    """Name of its folder."""

    digest: str
    """sha256 of its manifest."""

    seed: int
    settings: InterferenceSettings
    domains: tuple[str, ...]
    num_tokens: tuple[int, ...]
    """Predicted tokens of each domain that were measured."""

    density: DensityResult
    structure: StructureResult
    gradients: GradientResult
    update: UpdateResult
    single_weight: SingleWeightResult
    means: dict[str, float | None]
    """`summary_means` of the matrices above; None for off-diagonal means of a single domain."""

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ValueError(f"format is {self.format}, this version reads {FORMAT}")
        size = len(self.domains)
        for part, name in MATRICES:
            matrix = getattr(getattr(self, part), name)
            if len(matrix) != size or any(len(row) != size for row in matrix):
                raise ValueError(f"{part}.{name} must be {size} x {size}, one row for each domain")
        for name in ("num_tokens", "gradients.norm", "update.loss"):
            part, _, key = name.rpartition(".")
            if len(getattr(getattr(self, part) if part else self, key)) != size:
                raise ValueError(f"{name} must have one number for each of {size} domains")


MATRICES = (
    ("gradients", "cosine"),
    ("gradients", "cosine_all_parameters"),
    ("gradients", "dot"),
    ("gradients", "dot_per_live_weight"),
    ("gradients", "overlap_top10"),
    ("update", "loss_change"),
    ("update", "predicted"),
    ("update", "kl"),
)


def summary_means(gradients: GradientResult, update: UpdateResult) -> dict[str, float | None]:
    """Means over ordered pairs of different domains, and over the diagonals of the update.

    Keys: cosine, cosine_all_parameters, dot_per_live_weight, overlap_top10, loss_change, predicted
    and kl, each with `_off_diagonal`; loss_change_diagonal and kl_diagonal; kl_ratio = kl of other
    domains over kl of the domain learned.
    """
    parts = {"gradients": gradients, "update": update}
    means: dict[str, float | None] = {}
    for part, name in MATRICES:
        if name != "dot":  # of no use between densities
            means[f"{name}_off_diagonal"] = off_diagonal_mean(getattr(parts[part], name))
    for name in ("loss_change", "kl"):
        matrix: Matrix = getattr(update, name)
        means[f"{name}_diagonal"] = _mean([row[i] for i, row in enumerate(matrix)])
    own, others = means["kl_diagonal"], means["kl_off_diagonal"]
    means["kl_ratio"] = others / own if own and others is not None else None
    return means


def off_diagonal_mean(matrix: Matrix) -> float | None:
    """Mean over all entries beside the diagonal; None if there are none."""
    return _mean([x for i, row in enumerate(matrix) for j, x in enumerate(row) if i != j])


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def write_interference(path: Path, found: Interference) -> None:
    """Write the file, atomically. A number that is not finite is refused with ValueError.

    Raises:
        CannotCreateError, StorageError: it cannot be written.
    """
    write_json(path, configs.to_dict(found))


def read_interference(path: Path) -> Interference:
    """Read a run folder's interference.json, or a file of that form.

    Raises:
        MissingInputError: there is none.
        DataError: naming the line and what is wrong with it.
    """
    file = path / INTERFERENCE if path.is_dir() else path
    if not file.is_file():
        raise MissingInputError(f"{file}: not there; make it with tools/interference.py")
    try:
        return configs.load(Interference, file)
    except MissingInputError:
        raise
    except UserError as error:
        raise DataError(str(error)) from None
