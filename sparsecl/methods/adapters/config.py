"""Options of the methods that add parts beside frozen weights, or train the rank that is left."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, get_args

from annotated_types import Ge, Gt, Le

from sparsecl.methods.facts import AddedParameter, MethodConfig, MethodMemory, RunFacts
from sparsecl.sparse.sizes import RankSizes
from sparsecl.topology.layer import LayerKind, LayerShape

CHUNK = 1 << 22
"""Cells of an update B A that are computed at a time where all of them are looked at."""


@dataclass(frozen=True, kw_only=True)
class AdapterConfig(MethodConfig):
    """Size and place of adapters: pairs A, B beside a linear, whose update is alpha / rank B A."""

    part: ClassVar[str]
    """Name of the parts in the model: that of the method's block."""

    flags = {
        "B": "yes",
        "P": "the first domain's model",
        "F": "all but the newest adapter",
        "X": "an adapter for each domain after the first",
        "C": "adapters of all domains",
    }

    rank: Annotated[int, Ge(1)] = 8
    """Of one adapter."""

    alpha: Annotated[float, Gt(0.0)] = 32.0
    """An adapter is multiplied by alpha / rank."""

    kinds: tuple[LayerKind, ...] = ("q", "v")
    """Linears that have adapters, in every block."""

    def num_pairs(self, num_phases: int) -> int:
        """Adapters of a linear, over all phases."""
        return num_phases - 1

    def chosen(self, layers: Sequence[LayerShape]) -> list[LayerShape]:
        """The linears that have adapters."""
        return [layer for layer in layers if layer.kind in self.kinds]

    def check(self, run: RunFacts) -> None:
        if run.joint or run.num_phases < 2:
            raise ValueError("the first phase trains the base, the later ones adapters: 2 at least")
        if not self.kinds:
            raise ValueError(
                f"kinds is empty; name one of {', '.join(get_args(LayerKind))} at least"
            )
        if not self.chosen(run.layers):
            raise ValueError(
                f"kinds={list(self.kinds)}: the model has none of these linears. Name others."
            )
        if run.freezing:
            raise ValueError(
                f"{' and '.join(run.freezing)} freezes weights too, and what both leave free is "
                "not what either means. Take one of them."
            )
        narrow = min(min(one.out_features, one.in_features) for one in self.chosen(run.layers))
        if self.rank > narrow:
            raise ValueError(
                f"rank={self.rank} is more than a linear of {narrow} inputs or outputs has. Lower "
                "rank."
            )

    def parameters(
        self, layers: Sequence[LayerShape], num_phases: int
    ) -> Mapping[str, AddedParameter]:
        found, total = {}, self.rank * self.num_pairs(num_phases)
        for layer in self.chosen(layers):
            rows = layer.split_dim == 1
            a, b = (total, layer.in_features), (layer.out_features, total)
            part = f"{layer.name}.parts.{self.part}"
            found[f"{part}.a"] = AddedParameter(shape=a, partition_dim=1 if rows else -1)
            found[f"{part}.b"] = AddedParameter(shape=b, partition_dim=-1 if rows else 0)
        return found

    def memory(self, rank: RankSizes) -> MethodMemory:
        # Between A and B each adapter keeps its [tokens, rank * pairs].
        width = self.rank * self.num_pairs(rank.num_phases) * len(self.chosen(rank.layers))
        return MethodMemory(beside=rank.held, passing=rank.element * rank.tokens * width)


@dataclass(frozen=True, kw_only=True)
class LoraConfig(AdapterConfig):
    """Plain LoRA: one adapter for all later domains, or one for each."""

    part = "lora"
    flags = {
        "B": "yes",
        "P": "the first domain's model",
        "F": "all but the adapter; with `per_domain` all but the newest",
        "X": "an adapter; with `per_domain` one for each domain after the first",
        "C": "adapters",
    }

    per_domain: bool = False
    """Each later phase trains an adapter of its own; earlier ones are held, and all are added."""

    def num_pairs(self, num_phases: int) -> int:
        return num_phases - 1 if self.per_domain else 1


@dataclass(frozen=True, kw_only=True)
class OLoraConfig(AdapterConfig):
    """Size of a domain's adapter, and how strongly it is kept apart from those before."""

    part = "o_lora"

    l1: Annotated[float, Ge(0.0)] = 0.5
    """Weight of sum |A_old A^T|, which keeps the new adapter's inputs orthogonal to the old."""

    def check(self, run: RunFacts) -> None:
        super().check(run)
        total = self.rank * (run.num_phases - 1)
        narrow = min(layer.in_features for layer in self.chosen(run.layers))
        if total > narrow:
            raise ValueError(
                f"rank={self.rank} for {run.num_phases - 1} domains is {total} directions, and a "
                f"linear has {narrow} inputs: no more can be orthogonal. Lower rank."
            )


@dataclass(frozen=True, kw_only=True)
class NLoraConfig(AdapterConfig):
    """Size of a domain's adapter, and how strongly its update is kept sparse."""

    part = "n_lora"
    flags = {**AdapterConfig.flags, "C": "adapters of all domains, and a product of the newest"}

    l1: Annotated[float, Ge(0.0)] = 1.0e-3
    """Weight of the penalty, a sum over the cells of the newest updates. In the paper 0.38 to 1.8,
    on large pre-trained models; on small ones that keeps every update at zero (`filled` is 0 then).
    Sweep 1e-4..1."""

    penalty: Literal["dW", "code_product"] = "dW"
    """dW: sum |B A| of the newest adapter, as in the paper; code_product: sum |A B|, as in the
    public code, which needs linears with as many inputs as outputs."""

    def check(self, run: RunFacts) -> None:
        super().check(run)
        for layer in self.chosen(run.layers) if self.penalty == "code_product" else ():
            if layer.in_features != layer.out_features:
                raise ValueError(
                    f"penalty=code_product multiplies A by B, and {layer.name} has "
                    f"{layer.in_features} inputs and {layer.out_features} outputs. Use penalty dW, "
                    "or kinds that are square."
                )

    def memory(self, rank: RankSizes) -> MethodMemory:
        cells = max((layer.num_cells for layer in self.chosen(rank.layers)), default=0)
        looked = 8 * min(cells, CHUNK) if self.penalty == "dW" else 0  # a product and its sign
        return super().memory(rank) + MethodMemory(passing=looked)


@dataclass(frozen=True, kw_only=True)
class OsftConfig(MethodConfig):
    """How much of a linear's rank each phase holds from then on, and who says so."""

    flags = {
        "B": "yes",
        "P": "the first domain's model",
        "F": "the largest singular directions of every linear",
        "X": "these directions, on every rank",
        "C": "two gathers and two projections of every linear at each step",
    }

    rule: Literal["adaptive", "fixed"] = "adaptive"
    """adaptive: a linear whose output is like its input keeps more; fixed: all keep `share`."""

    share: Annotated[float, Ge(0.0), Le(1.0)] = 0.5
    """Of the rank that is held (fixed). 0 is plain training, bit for bit; 1 holds all linears."""

    least: Annotated[float, Ge(0.0), Le(1.0)] = 0.1
    """Share that a linear of importance 0 keeps (adaptive)."""

    most: Annotated[float, Ge(0.0), Le(1.0)] = 0.8
    """Share that a linear of average importance keeps (adaptive); more important ones keep more,
    up to all."""

    sequences: Annotated[int, Ge(1)] = 16
    """Sequences of the phase before from which importance is measured (adaptive)."""

    from_start: bool = False
    """Hold directions in the first phase too: for a run that begins with a model (init_from)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.least > self.most:
            raise ValueError(f"least={self.least} is more than most={self.most}; swap them")

    def check(self, run: RunFacts) -> None:
        if not run.dense:
            raise ValueError(
                "a projected update reaches every cell of a matrix: it would fill absent weights, "
                "and masked again it is no longer orthogonal to what is held. It is for dense "
                "models: set topology.kind=dense, or take packnet or o_lora."
            )
        if run.joint or (run.num_phases < 2 and not self.from_start):
            raise ValueError(
                "the first phase trains the base, the later ones beside it: 2 at least, or 1 with "
                "init_from and from_start=true"
            )
        if run.freezing:
            raise ValueError(
                f"{' and '.join(run.freezing)} freezes weights too, and what both leave free is "
                "not what either means. Take one of them."
            )

    def memory(self, rank: RankSizes) -> MethodMemory:
        # U, S and V of at most so many directions; the whole gradient, its projection and a term.
        share = self.share if self.rule == "fixed" else 1.0
        kept = sum(
            int(share * min(one.out_features, one.in_features))
            * (one.out_features + one.in_features + 1)
            for one in rank.layers
        )
        largest = max((one.num_cells for one in rank.layers), default=0)
        return MethodMemory(kept=4 * kept, passing=12 * largest if kept else 0)


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(MethodConfig):
    """Size and place of a memory, and which of its slots later phases train."""

    flags = {
        "B": "yes",
        "P": "the first domain's model",
        "F": "all but the slots of the step",
        "X": "a memory, and how often its slots are read",
        "C": "lookups in the memory, and forward passes at borders",
    }

    layers: tuple[int, ...] = ()
    """Blocks, from 0, whose feed-forward part has a memory beside it; all share one pool of values.
    Empty: the middle one."""

    keys: Annotated[int, Ge(1)] = 64
    """Half keys of each of two sets; the pool has keys^2 slots. In the public code 1024."""

    key_width: Annotated[int, Ge(2)] = 64
    """Numbers of a head's query, half of them for each set; even. In the public code 512."""

    heads: Annotated[int, Ge(1)] = 4
    """Queries of a token, each with keys of its own."""

    reads: Annotated[int, Ge(1)] = 8
    """Slots that a head reads for a token. In the public code 32."""

    gate: bool = False
    """Multiply what is read by silu of a linear of the token, between two more matrices."""

    top: Annotated[int, Ge(0)] = 100
    """Slots that a step of a later phase trains; 0: later phases train nothing. Sweep 0.01..10 % of
    the pool."""

    rule: Literal["tfidf", "kl"] = "tfidf"
    """How they are chosen: see adapters/memory.py."""

    background: Annotated[int, Ge(1)] = 32
    """Batches of each phase that are read again at its end, for what slots are usual. In
    re-implementations 1000."""

    sgd: Annotated[float | None, Gt(0.0)] = None
    """Fixed rate of plain gradient descent for values in later phases; None: the run's optimizer
    steps them, at its own rate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reads > self.keys:
            raise ValueError(f"reads={self.reads} is more than keys={self.keys}; lower reads")
        if self.key_width % 2:
            raise ValueError(f"key_width={self.key_width} is odd, and has two halves")
        if len(set(self.layers)) < len(self.layers) or list(self.layers) != sorted(self.layers):
            raise ValueError(f"layers={list(self.layers)}: give each block once, in order")

    @property
    def num_slots(self) -> int:
        return self.keys**2

    def chosen(self, num_blocks: int) -> tuple[int, ...]:
        """Blocks with a memory."""
        return self.layers or (num_blocks // 2,)

    def check(self, run: RunFacts) -> None:
        if run.joint or run.num_phases < 2:
            raise ValueError("the first phase trains the base, the later ones slots: 2 at least")
        if run.freezing:
            raise ValueError(
                f"{' and '.join(run.freezing)} freezes weights too, and what both leave free is "
                "not what either means. Take one of them."
            )
        blocks = sum(layer.kind == "down" for layer in run.layers)
        if self.layers and not 0 <= self.layers[0] <= self.layers[-1] < blocks:
            raise ValueError(f"layers={list(self.layers)}: the model has blocks 0..{blocks - 1}")

    def parameters(
        self, layers: Sequence[LayerShape], num_phases: int
    ) -> Mapping[str, AddedParameter]:
        closing = [layer for layer in layers if layer.kind == "down"]
        chosen = [closing[block] for block in self.chosen(len(closing))]
        found: dict[str, AddedParameter] = {}
        for layer in chosen:
            at, width = f"{layer.name.rpartition('.')[0]}.parts.memory", layer.out_features
            rows = self.heads * self.key_width
            for name, shape, dim in (
                ("query", (rows, width), -1),
                ("bias", (rows,), -1),
                ("keys", (2 * self.heads * self.keys, self.key_width // 2), -1),
                *((("gate_in", (width, width), 0), ("gate_out", (width, width), 1)) * self.gate),
            ):
                found[f"{at}.{name}"] = AddedParameter(shape=shape, partition_dim=dim)
            if layer is chosen[0]:
                found[f"{at}.pool.weight"] = AddedParameter(
                    shape=(self.num_slots, width),
                    partition_dim=1,
                    multiplied=len(chosen) * self.heads * self.reads * width,
                )
        return found

    def memory(self, rank: RankSizes) -> MethodMemory:
        num = len(self.chosen(sum(layer.kind == "down" for layer in rank.layers)))
        # Queries, and of each read its place among the halves and in the pool, and its weight.
        kept = rank.element * self.key_width + self.reads * (40 + rank.element)
        # Of one layer at a time: scores of all half keys, and of pairs of the best.
        passing = 2 * self.keys * (rank.element + 4) + 4 * self.reads**2
        # A mark for each cell of the pool, and its gradient.
        width = max(layer.out_features for layer in rank.layers if layer.kind == "down")
        choice = self.num_slots * width + 4 * rank.largest_slice
        return MethodMemory(
            beside=rank.held,
            kept=8 * self.num_slots,
            passing=max(rank.tokens * self.heads * (num * kept + passing), choice),
            update=4 * rank.largest_slice if self.sgd is not None else 0,
            host=40 * self.num_slots,
        )
