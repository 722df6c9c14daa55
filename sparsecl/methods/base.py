"""What a method is: answers to the engine's hooks.

The engine owns the loop, DeepSpeed owns backward and step. A method never calls either; it may
read and change what the hooks hand to it. Projection onto the topology comes after every method.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Protocol

import numpy as np
import torch

from sparsecl.optim.slices import Slices
from sparsecl.sparse.registry import SparseParameter

SliceTensors = dict[str, torch.Tensor]
"""Parameter name -> flat tensor of this rank's slice of it."""


class MethodContext(Protocol):
    """What the engine shows to a method."""

    @property
    def phase(self) -> int:
        """0-based."""
        ...

    @property
    def domain(self) -> str:
        """The domain that this phase trains."""
        ...

    @property
    def step(self) -> int:
        """Optimizer steps done in the whole run."""
        ...

    @property
    def data_step(self) -> int:
        """Steps' worth of this phase's data read so far: the optimizer steps done in this phase,
        and what a rollback has left out."""
        ...

    @property
    def micro_step(self) -> int:
        """0-based micro-batch within the optimizer step; outside of a step the last one's."""
        ...

    @property
    def num_micro_steps(self) -> int:
        """Micro-batches of each rank per optimizer step."""
        ...

    @property
    def batch_sequences(self) -> int:
        """New sequences per optimizer step, over all ranks: those numbered from
        data_step * batch_sequences on, where data_step is that before the step."""
        ...

    @property
    def slices(self) -> Slices:
        """This rank's slices."""
        ...

    @property
    def sparse(self) -> Mapping[str, SparseParameter]:
        """The parameters on a topology, by parameter name, the same order on all ranks."""
        ...

    def live_values(self, name: str) -> torch.Tensor:
        """Master values fp32 [N] of the live weights of this tp slice, row-major. Collective over
        dp."""
        ...

    def rewire(self, name: str, drop: torch.Tensor, grow: torch.Tensor) -> None:
        """Move live weights of this tp slice from `drop` to `grow`, flat indices int64 [K] into the
        local matrix; weight and state of what has grown are zero. Collective over the world.

        Every dp rank passes equal indices. To be called from `after_step` or `phase_start`.
        """
        ...

    def rows(self, phase: int, indices: np.ndarray) -> np.ndarray:
        """Training sequences of any phase by their numbers in it, [n] -> int64 [n, context + 1]."""
        ...

    def generator(self, *names: str | int) -> np.random.Generator:
        """A named random stream of the run: the same on all ranks, whatever the layout."""
        ...

    def mean_squared_gradients(self, *, num_sequences: int) -> SliceTensors:
        """Mean over training sequences of this phase of the squared gradient. Collective.

        The gradient is that of one sequence's mean loss per token with data labels (the empirical
        Fisher per sequence), not of a batch mean: the mean's square is not the mean square.
        """
        ...


class Method:
    """A method that does nothing. Hooks are called on all ranks, in the order given here."""

    name = "none"
    rewires = False
    """It moves live weights: a checkpoint's topology takes the place of the config's."""

    @property
    def replayed_sequences(self) -> int:
        """Earlier sequences trained again up to now, over all ranks: work beside the new tokens."""
        return 0

    @property
    def replayed_by_phase(self) -> Sequence[int]:
        """How many of them were first read in each phase; later phases may be missing."""
        return ()

    def phase_start(self, context: MethodContext) -> None:
        """Before the first step of a phase; not called again on a resume inside it."""

    def batch(self, context: MethodContext, rows: np.ndarray) -> np.ndarray:
        """Change this rank's micro-batch, int64 [sequences, context + 1]."""
        return rows

    def extra_loss(self, context: MethodContext) -> torch.Tensor | None:
        """A differentiable term added to the micro-batch's mean loss."""
        return None

    def after_backward(self, context: MethodContext) -> None:
        """Gradients are reduced, not yet clipped. Change them through `slices.grad`."""

    def after_step(self, context: MethodContext) -> None:
        """The optimizer has stepped and absent weights are absent."""

    def phase_end(self, context: MethodContext) -> None:
        """After the last step of a phase and its evaluation."""

    def slice_tensors(self) -> Iterable[SliceTensors]:
        """Tensors beside the slices that must move along when weights are rewired."""
        return ()

    def state_dict(self) -> tuple[Mapping[str, SliceTensors], Mapping[str, Any]]:
        """Slice tensors by state name, and JSON-safe values: all that a resume needs."""
        return {}, {}

    def check_state(self, tensors: Collection[str], values: Mapping[str, Any]) -> None:
        """Check what a checkpoint keeps for this method, before anything is taken from it. Local.

        Values have the keys and types of those of a method that has seen nothing yet; whoever keeps
        some says more about them here.

        Args:
            tensors: names of the slice tensors.

        Raises:
            ValueError: `state_dict` never gives that; with the key and the value.
        """
        own = self.state_dict()[1]
        for key in [*own, *(key for key in values if key not in own)]:
            if key not in own or key not in values:
                raise ValueError(f"{key} is {'missing' if key in own else 'not known'}")
            if type(values[key]) is not type(own[key]):
                raise ValueError(f"{key}: {values[key]!r:.40} is no {type(own[key]).__name__}")

    def load_state_dict(
        self, tensors: Mapping[str, SliceTensors], values: Mapping[str, Any]
    ) -> None:
        """Take back what `state_dict` gave, after `check_state`."""


class Methods(Method):
    """All methods of a run, asked one after the other."""

    def __init__(self, methods: Iterable[Method]) -> None:
        self.methods = list(methods)
        self.rewires = any(method.rewires for method in self.methods)

    def __bool__(self) -> bool:
        return bool(self.methods)

    @property
    def replayed_sequences(self) -> int:
        return sum(method.replayed_sequences for method in self.methods)

    @property
    def replayed_by_phase(self) -> Sequence[int]:
        parts = [method.replayed_by_phase for method in self.methods]
        return [sum(counts) for counts in zip_longest(*parts, fillvalue=0)]

    def phase_start(self, context: MethodContext) -> None:
        for method in self.methods:
            method.phase_start(context)

    def batch(self, context: MethodContext, rows: np.ndarray) -> np.ndarray:
        for method in self.methods:
            rows = method.batch(context, rows)
        return rows

    def extra_loss(self, context: MethodContext) -> torch.Tensor | None:
        terms = [method.extra_loss(context) for method in self.methods]
        given = [term for term in terms if term is not None]
        return torch.stack(given).sum() if given else None

    def after_backward(self, context: MethodContext) -> None:
        for method in self.methods:
            method.after_backward(context)

    def after_step(self, context: MethodContext) -> None:
        for method in self.methods:
            method.after_step(context)

    def phase_end(self, context: MethodContext) -> None:
        for method in self.methods:
            method.phase_end(context)

    def slice_tensors(self) -> Iterable[SliceTensors]:
        return [tensors for method in self.methods for tensors in method.slice_tensors()]

    def state_dict(self) -> tuple[Mapping[str, SliceTensors], Mapping[str, Any]]:
        tensors: dict[str, SliceTensors] = {}
        values: dict[str, Any] = {}
        for method in self.methods:
            own_tensors, own_values = method.state_dict()
            tensors |= {f"{method.name}.{key}": value for key, value in own_tensors.items()}
            values[method.name] = dict(own_values)
        return tensors, values

    def check_state(self, tensors: Collection[str], values: Mapping[str, Any]) -> None:
        names = [method.name for method in self.methods]
        for name in [*values, *(key.partition(".")[0] for key in tensors)]:
            if name not in names:
                raise ValueError(f"{name} is no method of the run")
        for method in self.methods:
            if method.name not in values:
                raise ValueError(f"{method.name} is missing")
            prefix = f"{method.name}."
            own = [key.removeprefix(prefix) for key in tensors if key.startswith(prefix)]
            try:
                method.check_state(own, values[method.name])
            except ValueError as error:
                raise ValueError(f"{method.name}.{error}") from None

    def load_state_dict(
        self, tensors: Mapping[str, SliceTensors], values: Mapping[str, Any]
    ) -> None:
        for method in self.methods:
            prefix = f"{method.name}."
            own = {
                key.removeprefix(prefix): value
                for key, value in tensors.items()
                if key.startswith(prefix)
            }
            method.load_state_dict(own, values.get(method.name, {}))
