"""How much one rank holds, known before anything is built: for who keeps something beside it.

Of the tensor-parallel rank that holds most live weights; all that is not global is local to it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sparsecl.topology.layer import LayerShape


@dataclass(frozen=True, kw_only=True)
class RankSizes:
    """Elements, where nothing else is said."""

    layers: tuple[LayerShape, ...]
    """The linears of the model, global."""

    num_phases: int
    vocab_size: int
    context: int
    """Tokens of a training sequence."""

    tokens: int
    """Of a micro-batch, replayed ones included."""

    element: int
    """Bytes of a weight or an activation in the forward pass."""

    parameters: int
    """Of all parameters, not sharded by ZeRO."""

    slices: int
    """Masters of this rank, of all parameters: its share of them from ZeRO stage 1 on."""

    slices_by_kind: Mapping[str, int]
    """Of these the linears of the model, by their job in the block."""

    sparse_slices: int
    """Of these the parameters on a topology."""

    largest_slice: int
    """The largest part of one parameter."""

    anchored: int
    """Masters beside which role update keeps a value already."""

    cells: int
    """Of the matrices on a topology, absent ones too, in any storage."""

    copy: int
    """Bytes of a frozen copy of the model with its masks and indices: not sharded."""

    logits: int
    """Of a micro-batch, this rank's columns."""

    kept_logits: int
    """Bytes of the logits of a micro-batch that are kept for a method."""

    @property
    def whole_cells(self) -> int:
        """Weights and absent cells of all linears, over all tp ranks."""
        return sum(layer.num_cells for layer in self.layers)

    @property
    def held(self) -> int:
        """Bytes beside the masters where some of every slice is held: value, and two marks."""
        return 6 * self.slices - 4 * self.anchored
