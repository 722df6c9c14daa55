"""Cannistraci-Hebb training: the smallest weights go, the graph says what comes.

Source: Zhang et al., ICLR 2024 (OpenReview iayEcORsGd), and its public code
(biomedical-cybernetics/Cannistraci-Hebb-training). The weights step. Every `every` steps the
int(f N) smallest |w| of a layer go, then what leads nowhere (percolation), and as many as are
missing come, those with the highest CH3-L3 scores. A layer stops for good once the cells that come
are mostly (`stop_overlap`) those that went.

Differs: the initial weights and graph are those of the run. CSTI, which draws a first layer from
correlations of raw features, has no place in a GPT, whose first layer is an embedding.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from sparsecl.methods.context import MethodContext, SliceTensors
from sparsecl.methods.dst.base import LayerView, weakest
from sparsecl.methods.dst.choice import highest
from sparsecl.methods.dst.config import ChtConfig
from sparsecl.methods.dst.hebb import Hebb


class Cht(Hebb):
    """CHT: the weights step, then the graph moves."""

    name = "cht"
    config: ChtConfig

    def __init__(self, config: ChtConfig) -> None:
        super().__init__(config)
        self.stopped: list[str] = []
        """Layers that stay as they are."""

    def after_step(self, context: MethodContext, *, applied: bool) -> None:
        if applied and self.is_due_after(context):
            names = [name for name in context.sparse if name not in self.stopped]
            counts = {name: context.sparse[name].topology.num_live for name in names}
            self._fraction = self.fraction(context.progress)
            self.turn(context, names, counts)

    def keep(self, context: MethodContext, choice: LayerView, num: int) -> Tensor:
        return ~weakest(choice, choice.values.numel() - num)

    def choose(
        self, context: MethodContext, name: str, part: int, score: Tensor, num: int
    ) -> Tensor:
        rng = context.generator(self.name, name, context.progress.step)
        return highest(score, num, int(rng.integers(2**63)))

    def grown(self, name: str, removed: Tensor, came: Tensor) -> None:
        counts = [some.count_nonzero() for some in (removed, removed & came)]
        gone, back = torch.stack(counts).tolist()
        if gone and back / gone > self.config.stop_overlap:
            self.stopped.append(name)

    def state_dict(self) -> tuple[Mapping[str, SliceTensors], Mapping[str, Any]]:
        return super().state_dict()[0], {"stopped": list(self.stopped)}

    def check_state(self, tensors: Collection[str], values: Mapping[str, Any]) -> None:
        super().check_state(tensors, values)
        for name in values["stopped"]:
            if not isinstance(name, str):
                raise ValueError(f"stopped: {name!r:.40} is no name of a layer")

    def load_state_dict(
        self, tensors: Mapping[str, SliceTensors], values: Mapping[str, Any]
    ) -> None:
        super().load_state_dict(tensors, values)
        self.stopped = list(values["stopped"]) if values else []
