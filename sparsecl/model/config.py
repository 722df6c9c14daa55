"""The size of the model: presets, overrides, and what must divide what."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sparsecl.errors import UserError

# Of any number of the model. Memory ends long before; far above it, counts would overflow.
LARGEST = 1 << 20

Preset = Literal["demo", "10m", "100m", "500m", "1b"]

# layers, width, heads, context. Names count the weights of the blocks, 12 * layers * width^2,
# except that 100m is GPT-2 small, 124M with its embedding.
PRESETS: dict[Preset, tuple[int, int, int, int]] = {
    "demo": (4, 128, 4, 128),
    "10m": (6, 384, 6, 512),
    "100m": (12, 768, 12, 1024),
    "500m": (24, 1280, 20, 2048),
    "1b": (24, 2048, 16, 2048),
}


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a GPT, all positive, with heads dividing width. Vocabulary not included."""

    layers: int
    width: int
    heads: int
    context: int
    """Longest sequence in tokens."""

    mlp: int
    """Hidden units of the feed-forward part."""

    @property
    def head_width(self) -> int:
        """Features of one attention head."""
        return self.width // self.heads


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A preset, or sizes one by one; a size that is written wins over the preset."""

    preset: Preset | None = "demo"
    """Named size; null asks for layers, width, heads and context."""

    layers: int | None = None
    """Number of transformer blocks."""

    width: int | None = None
    """Features of the residual stream."""

    heads: int | None = None
    """Attention heads; a divisor of width."""

    context: int | None = None
    """Longest sequence, in tokens."""

    mlp_ratio: int = 4
    """Hidden units of the feed-forward part, as a multiple of width."""

    mlp: int | None = None
    """Hidden units of the feed-forward part as a number, in place of mlp_ratio."""

    activation_checkpointing: bool = False
    """Recompute each block in the backward pass: less memory, about a third more compute."""

    density_corrected_init: bool = True
    """Scale the initial weights of a row by sqrt(inputs / live inputs), so that activations start
    at the same scale at every density. Changes nothing in a dense model."""

    init_std: float = 0.02
    """Standard deviation of the initial weights (GPT-2)."""

    def __post_init__(self) -> None:
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {self.preset}")
        if not 0.0 < self.init_std < float("inf"):
            raise ValueError(f"init_std must be > 0, got {self.init_std}")
        sizes = self._sizes()
        for name, value in sizes.items():
            if value is None:
                raise ValueError(f"{name} must be given when model.preset is null")
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
            if value > LARGEST:
                raise ValueError(f"{name} must be <= {LARGEST}, got {value}")
        width, heads = self.resolved().width, self.resolved().heads
        if width % heads:
            raise ValueError(
                f"heads={heads} does not divide width={width}. "
                f"Use {_nearest(heads, lambda n: width % n == 0)} heads."
            )

    def _sizes(self) -> dict[str, int | None]:
        """The sizes by field name, after preset and overrides."""
        preset = PRESETS[self.preset] if self.preset else (None, None, None, None)
        names = ("layers", "width", "heads", "context")
        sizes: dict[str, int | None] = {}
        for name, default in zip(names, preset, strict=True):
            given = getattr(self, name)
            sizes[name] = default if given is None else given
        if self.mlp is not None:
            sizes["mlp"] = self.mlp
        return {**sizes, "mlp_ratio": self.mlp_ratio}

    def resolved(self) -> ModelShape:
        """The sizes, with nothing left open."""
        sizes = {name: value or 0 for name, value in self._sizes().items()}
        return ModelShape(
            layers=sizes["layers"],
            width=sizes["width"],
            heads=sizes["heads"],
            context=sizes["context"],
            mlp=sizes.get("mlp", sizes["width"] * sizes["mlp_ratio"]),
        )


def check_tensor_parallel(shape: ModelShape, tp_size: int, *, sequence: bool = False) -> None:
    """Raise UserError unless heads and hidden units divide over tp_size ranks.

    Width then divides too, since heads divides width; the vocabulary is padded to fit.

    Args:
        sequence: positions are spread too (parallel.sequence), so the context must divide.
    """
    fitting = [n for n in range(1, tp_size) if shape.heads % n == 0 and shape.mlp % n == 0]
    sizes = ", ".join(map(str, fitting))
    if shape.heads % tp_size:
        choices = [n for n in range(tp_size, shape.width + 1, tp_size) if shape.width % n == 0]
        closest = min(choices, key=lambda n: abs(n - shape.heads), default=None)
        raise UserError(
            f"model.heads={shape.heads} is not divisible by parallel.tensor={tp_size}. Use "
            + (f"model.heads={closest}, or " if closest else "")
            + f"parallel.tensor {sizes}."
        )
    if shape.mlp % tp_size:
        raise UserError(
            f"model.mlp={shape.mlp} (or width * mlp_ratio) is not divisible by "
            f"parallel.tensor={tp_size}. Use parallel.tensor {sizes}."
        )
    if sequence and shape.context % tp_size:
        below = shape.context // tp_size * tp_size
        choices = " or ".join(str(n) for n in (below, below + tp_size) if n)
        raise UserError(
            f"model.context={shape.context} is not divisible by parallel.tensor={tp_size}, over "
            f"which parallel.sequence=true spreads positions. Use model.context={choices}, or "
            "parallel.sequence=false."
        )


def padded_vocabulary(vocab_size: int, tp_size: int) -> int:
    """Rows of the embedding: vocab_size rounded up to a multiple of 128 that tp_size divides.

    128 keeps the head's matrix product aligned for tensor cores.
    """
    multiple = 128
    while multiple % tp_size:
        multiple += 128
    return -(-vocab_size // multiple) * multiple


def _nearest(start: int, accept: Callable[[int], bool]) -> int:
    """The accepted positive number closest to start; 1 must be accepted."""
    below = next(n for n in range(start, 0, -1) if accept(n))
    above = next((n for n in range(start, 2 * start - below + 1) if accept(n)), below)
    return above if above - start < start - below else below
