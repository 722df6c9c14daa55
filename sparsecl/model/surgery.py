"""The model before DeepSpeed has it, as methods see it: they import no model."""

from collections.abc import Mapping

from sparsecl.model.gpt import GPT
from sparsecl.sparse.linear import SparseLinear


class GptSide:
    """Implements methods.context.ModelSide for a GPT."""

    def __init__(self, model: GPT) -> None:
        self._model = model

    def linears(self) -> Mapping[str, SparseLinear]:
        """By layer name (layers.3.mlp.up), in the order of the model."""
        modules = self._model.named_modules()
        return {name: part for name, part in modules if isinstance(part, SparseLinear)}
