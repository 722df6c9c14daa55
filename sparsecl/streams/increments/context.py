"""What methods see of a network that is trained on classes in increments; a phase is a task."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sparsecl import seeding
from sparsecl.methods.context import Progress
from sparsecl.methods.several import Methods
from sparsecl.methods.units import UnitFigures
from sparsecl.methods.weights import WeightContext
from sparsecl.optim.masking import MaskGuard
from sparsecl.sparse.units import UnitGroup, unit_groups
from sparsecl.streams.context import BareSide
from sparsecl.streams.increments.networks import ImageNetwork
from sparsecl.streams.slices import NetworkSlices


class ImageSide(BareSide):
    """A network before its optimizer has it (ModelSide), for methods of increments/config.py."""

    def __init__(self, model: ImageNetwork, seed: int) -> None:
        self.model, self.seed = model, seed

    def units(self, *, gated: bool = False) -> Mapping[str, UnitGroup]:
        assert not gated
        if not unit_groups(self.model):
            self.model.add_units()
        return unit_groups(self.model)

    def generator(self, *names: str | int) -> np.random.Generator:
        return seeding.stream(self.seed, *names)


class ImageContext(WeightContext):
    """The context of one network; without rows, which no method of this stream asks for."""

    def __init__(
        self,
        model: ImageNetwork,
        slices: NetworkSlices,
        guard: MaskGuard,
        methods: Methods,
        *,
        seed: int,
        progress: Callable[[], Progress],
    ) -> None:
        super().__init__(model, slices, guard, methods)
        self.model, self.seed, self._progress = model, seed, progress

    @property
    def progress(self) -> Progress:
        return self._progress()

    def generator(self, *names: str | int) -> np.random.Generator:
        return seeding.stream(self.seed, *names)

    def unit_figures(self) -> Mapping[str, UnitFigures]:
        return {name: self._figures(group) for name, group in self.units.items()}

    def _figures(self, group: UnitGroup) -> UnitFigures:
        params = self.slices.parameters()
        mean, mean_abs, active, distance = group.sums[1:] / group.sums[0].clamp(min=1.0)
        # Filters [n, ...] have the weights of a unit's row; what comes behind are vectors.
        incoming = params[group.incoming[0]].detach().abs().flatten(1).mean(1)
        (name,) = group.outgoing
        outgoing = params[name].detach().abs().transpose(0, 1).flatten(1).mean(1)
        outgoing = group.by_unit(outgoing) / group.num_columns
        return UnitFigures(mean, mean_abs, active, distance, incoming, outgoing)

    def begin_anew(
        self,
        group: UnitGroup,
        units: NDArray[np.int64],
        rng: np.random.Generator,
        network: tuple[int, ...] = (),
        *,
        moments: bool = True,
    ) -> dict[str, Tensor]:
        found = super().begin_anew(group, units, rng, network, moments=moments)
        self.model.forget(group, units)
        return found
