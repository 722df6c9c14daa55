"""The size of the model: presets, overrides, and what must divide what."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sparsecl.config import younger
from sparsecl.errors import UserError

# Of any number of the model. Memory ends long before; far above it, counts would overflow.
LARGEST = 1 << 20

Preset = Literal["demo", "10m", "100m", "500m", "1b"]
Form = Literal["gpt", "gpt2", "llama"]

LAYER_NORM_EPS = 1e-5  # nn.LayerNorm's default, GPT-2's and Llama 2's
ROPE_THETA = 10_000.0  # Su et al. 2021; Llama 3 has 500,000
# Tokens whose logits exist at once (chunked.py), if nobody says how many. A CPU keeps a few in
# its cache. On a GPU every chunk also reads and writes the gradient of the head, so there it is as
# many as have so many bytes of fp32 logits, and no fewer than fill it with work: both assumed.
LOSS_CHUNK = 1024
GPU_LOGIT_BYTES, GPU_LEAST_CHUNK = 2**30, 4096
LLAMA_MULTIPLE = 64  # hidden units of a gated part: 8/3 width is rarely whole

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

    form: Form = "gpt"
    kv_heads: int = 0
    """Heads of keys and values, a divisor of heads; 0 becomes as many as heads."""

    tied: bool = True
    """The head is the embedding."""

    norm_eps: float = LAYER_NORM_EPS
    rope_theta: float = ROPE_THETA
    """Base of the rotary angles (llama)."""

    qkv_bias: bool = False
    """q, k and v have biases (llama: Qwen2)."""

    columns: int = 1
    """Networks of this shape side by side, of which a later one hears the earlier (columns.py)."""

    lateral: int = 0
    """Rank of what a column hears, in every block; 0 if there is one column."""

    def __post_init__(self) -> None:
        if not self.kv_heads:
            object.__setattr__(self, "kv_heads", self.heads)

    @property
    def head_width(self) -> int:
        """Features of one attention head."""
        return self.width // self.heads

    @property
    def kv_width(self) -> int:
        """Features of all keys; as many of all values."""
        return self.kv_heads * self.head_width

    @property
    def rotary(self) -> bool:
        """Positions are angles of q and k; otherwise they are learned features."""
        return self.form == "llama"

    @property
    def gated(self) -> bool:
        """SwiGLU: down(silu(gate x) * up x); otherwise down(gelu(up x))."""
        return self.form == "llama"

    @property
    def rms_norm(self) -> bool:
        """Norms divide by the root of the mean square; otherwise they are LayerNorms."""
        return self.form == "llama"

    @property
    def biases(self) -> bool:
        """All linears and norms have biases."""
        return self.form == "gpt2"


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
    """Hidden units of the feed-forward part, as a multiple of width. llama, which has three
    matrices for two: two thirds of that, rounded up to a multiple of 64."""

    mlp: int | None = None
    """Hidden units of the feed-forward part as a number, in place of mlp_ratio."""

    activation_checkpointing: bool = False
    """Recompute each block in the backward pass: less memory, about a third more compute."""

    form: Form = younger("gpt")
    """gpt: pre-norm blocks with exact GELU, learned positions, a tied head and no biases. gpt2: the
    same with biases and the tanh form of GELU, as published. llama: RMSNorm, SwiGLU, rotary
    positions and no biases."""

    kv_heads: int | None = younger(None)
    """llama: heads of keys and values; a divisor of heads. null: as many as heads."""

    tied: bool | None = younger(None)
    """The head is the embedding. null: false for llama; gpt and gpt2 have no other head."""

    norm_eps: float = younger(LAYER_NORM_EPS)
    """Added to the variance (llama: to the mean square) in every norm."""

    rope_theta: float = younger(ROPE_THETA)
    """llama: base of the rotary angles."""

    qkv_bias: bool = younger(False)
    """llama: q, k and v have biases, as in Qwen2."""

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
        self._check_form()
        shape = self.resolved()
        width, heads = shape.width, shape.heads
        if width % heads:
            raise ValueError(
                f"heads={heads} does not divide width={width}. "
                f"Use {_nearest(heads, lambda n: width % n == 0)} heads."
            )
        if shape.rotary and shape.head_width % 2:
            raise ValueError(
                f"heads={heads} leaves {shape.head_width} features to a head; rotary positions "
                "turn them in pairs. Use another number of heads."
            )
        if self.kv_heads is not None and (self.kv_heads < 1 or heads % self.kv_heads):
            raise ValueError(
                f"kv_heads={self.kv_heads} does not divide heads={heads}. "
                f"Use {_nearest(max(self.kv_heads, 1), lambda n: heads % n == 0)}."
            )

    def _check_form(self) -> None:
        if not 0.0 < self.norm_eps < 1.0:
            raise ValueError(f"norm_eps must be in (0, 1), got {self.norm_eps}")
        if not 1.0 < self.rope_theta < float("inf"):
            raise ValueError(f"rope_theta must be > 1, got {self.rope_theta}")
        if self.form == "llama":
            return
        given = {
            "kv_heads": self.kv_heads is not None,
            "rope_theta": self.rope_theta != ROPE_THETA,
            "qkv_bias": self.qkv_bias,
            "tied": self.tied is False,
        }
        for name, is_given in given.items():
            if is_given:
                raise ValueError(
                    f"{name}={getattr(self, name)} has no meaning with form: {self.form}; it "
                    "belongs to form: llama"
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
        mlp, llama = sizes["width"] * sizes["mlp_ratio"], self.form == "llama"
        if llama:
            mlp = -(-2 * mlp // (3 * LLAMA_MULTIPLE)) * LLAMA_MULTIPLE
        return ModelShape(
            layers=sizes["layers"],
            width=sizes["width"],
            heads=sizes["heads"],
            context=sizes["context"],
            mlp=sizes.get("mlp", mlp),
            form=self.form,
            kv_heads=self.kv_heads or 0,
            tied=not llama if self.tied is None else self.tied,
            norm_eps=self.norm_eps,
            rope_theta=self.rope_theta,
            qkv_bias=self.qkv_bias,
        )


def config_of(shape: ModelShape) -> ModelConfig:
    """The config that resolves to `shape`, every size written."""
    return ModelConfig(
        preset=None,
        layers=shape.layers,
        width=shape.width,
        heads=shape.heads,
        context=shape.context,
        mlp=shape.mlp,
        form=shape.form,
        kv_heads=shape.kv_heads if shape.kv_heads < shape.heads else None,
        tied=shape.tied if shape.form == "llama" else None,
        norm_eps=shape.norm_eps,
        rope_theta=shape.rope_theta,
        qkv_bias=shape.qkv_bias,
    )


def check_tensor_parallel(shape: ModelShape, tp_size: int, *, sequence: bool = False) -> None:
    """Raise UserError unless heads and hidden units divide over tp_size ranks.

    Width then divides too, since heads divides width; the vocabulary is padded to fit.

    Args:
        sequence: positions are spread too (parallel.sequence), so the context must divide.
    """
    split = (shape.heads, shape.kv_heads, shape.mlp)
    fitting = [n for n in range(1, tp_size) if not any(size % n for size in split)]
    sizes = ", ".join(map(str, fitting))
    if shape.heads % tp_size:
        choices = [n for n in range(tp_size, shape.width + 1, tp_size) if shape.width % n == 0]
        closest = min(choices, key=lambda n: abs(n - shape.heads), default=None)
        raise UserError(
            f"model.heads={shape.heads} is not divisible by parallel.tensor={tp_size}. Use "
            + (f"model.heads={closest}, or " if closest else "")
            + f"parallel.tensor {sizes}."
        )
    if shape.kv_heads % tp_size:
        raise UserError(
            f"model.kv_heads={shape.kv_heads} is not divisible by parallel.tensor={tp_size}: every "
            f"rank needs whole heads of keys and values. Use parallel.tensor {sizes}."
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


def loss_chunk(asked: int | None, *, rows: int, gpu: bool) -> int:
    """Tokens whose logits exist at once; 0 = those of all.

    Args:
        asked: speed.loss_chunk; None = what suits the device.
        rows: of the head on this tensor-parallel rank, padding included.
    """
    if asked is not None or not gpu:
        return LOSS_CHUNK if asked is None else asked
    fitting = GPU_LOGIT_BYTES // (4 * rows)
    return max(GPU_LEAST_CHUNK, fitting - fitting % LOSS_CHUNK)


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
