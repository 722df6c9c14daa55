"""Options of the methods that add low-rank parts beside frozen weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, get_args

from annotated_types import Ge, Gt

from sparsecl.methods.facts import AddedParameter, MethodConfig, MethodMemory, RunFacts
from sparsecl.sparse.sizes import RankSizes
from sparsecl.topology.layer import LayerKind, LayerShape


@dataclass(frozen=True, kw_only=True)
class OLoraConfig(MethodConfig):
    """Size of a domain's adapter, and how strongly it is kept apart from those before."""

    flags = {
        "B": "yes",
        "P": "the first domain's model",
        "F": "all but the newest adapter",
        "X": "an adapter for each domain after the first",
        "C": "adapters of all domains",
    }

    rank: Annotated[int, Ge(1)] = 8
    """Of the adapter of one domain."""

    alpha: Annotated[float, Gt(0.0)] = 32.0
    """An adapter is multiplied by alpha / rank."""

    l1: Annotated[float, Ge(0.0)] = 0.5
    """Weight of sum |A_old A^T|, which keeps the new adapter's inputs orthogonal to the old."""

    kinds: tuple[LayerKind, ...] = ("q", "v")
    """Linears that have adapters, in every block."""

    def check(self, run: RunFacts) -> None:
        if run.joint or run.num_phases < 2:
            raise ValueError("the first phase trains the base, the later ones adapters: 2 at least")
        if not self.kinds:
            raise ValueError(
                f"kinds is empty; name one of {', '.join(get_args(LayerKind))} at least"
            )
        total = self.rank * (run.num_phases - 1)
        narrow = min(layer.in_features for layer in run.layers if layer.kind in self.kinds)
        if total > narrow:
            raise ValueError(
                f"rank={self.rank} for {run.num_phases - 1} domains is {total} directions, and a "
                f"linear has {narrow} inputs: no more can be orthogonal. Lower rank."
            )

    def parameters(
        self, layers: Sequence[LayerShape], num_phases: int
    ) -> Mapping[str, AddedParameter]:
        found, total = {}, self.rank * (num_phases - 1)
        for layer in layers:
            if layer.kind in self.kinds:
                rows = layer.split_dim == 1
                a, b = (total, layer.in_features), (layer.out_features, total)
                part = f"{layer.name}.parts.o_lora"
                found[f"{part}.a"] = AddedParameter(shape=a, partition_dim=1 if rows else -1)
                found[f"{part}.b"] = AddedParameter(shape=b, partition_dim=-1 if rows else 0)
        return found

    def memory(self, rank: RankSizes) -> MethodMemory:
        # Between A and B each adapter keeps its [tokens, rank * domains].
        num_adapters = sum(layer.kind in self.kinds for layer in rank.layers)
        width = self.rank * (rank.num_phases - 1) * num_adapters
        return MethodMemory(beside=rank.held, passing=rank.element * rank.tokens * width)
