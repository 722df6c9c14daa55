"""All methods of a run, asked one after the other."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import zip_longest
from typing import Any

import torch

from sparsecl.methods.base import Method
from sparsecl.methods.context import Batch, MethodContext, Outputs, SliceTensors
from sparsecl.methods.model_side import ModelSide
from sparsecl.optim.slice import Slice


class Methods(Method):
    """In the order of `Method.order`; those of one order as the config has them."""

    def __init__(self, methods: Iterable[Method], *, rewires: bool = False) -> None:
        """`rewires`: one of them moves live weights."""
        super().__init__()
        self.methods = sorted(methods, key=lambda method: method.order)
        self.rewires = rewires
        self.needs_update = any(method.needs_update for method in self.methods)
        self.needs_outputs = any(method.needs_outputs for method in self.methods)

    def __bool__(self) -> bool:
        return bool(self.methods)

    def overrides(self, hook: str) -> bool:
        """A method answers the hook: else what it takes to call it can be spared."""
        return any(getattr(type(m), hook) is not getattr(Method, hook) for m in self.methods)

    @property
    def replayed_sequences(self) -> int:
        return sum(method.replayed_sequences for method in self.methods)

    @property
    def replayed_by_method(self) -> dict[str, int]:
        """`replayed_sequences` of each method that has any, by name."""
        counts = {method.name: method.replayed_sequences for method in self.methods}
        return {name: count for name, count in counts.items() if count}

    @property
    def replayed_by_phase(self) -> Sequence[int]:
        parts = [method.replayed_by_phase for method in self.methods]
        return [sum(counts) for counts in zip_longest(*parts, fillvalue=0)]

    def attach(self, model: ModelSide, num_phases: int) -> None:
        for method in self.methods:
            method.attach(model, num_phases)

    def resumed(self, context: MethodContext) -> None:
        for method in self.methods:
            method.resumed(context)

    def began_anew(self, context: MethodContext) -> None:
        for method in self.methods:
            method.began_anew(context)

    def phase_start(self, context: MethodContext) -> None:
        for method in self.methods:
            method.phase_start(context)

    def stage_start(self, context: MethodContext) -> None:
        for method in self.methods:
            method.stage_start(context)

    def step_start(self, context: MethodContext) -> None:
        for method in self.methods:
            method.step_start(context)

    def batch(self, context: MethodContext, batch: Batch) -> Batch:
        for method in self.methods:
            batch = method.batch(context, batch)
        return batch

    def loss(self, context: MethodContext, batch: Batch, outputs: Outputs) -> torch.Tensor | None:
        terms = [method.loss(context, batch, outputs) for method in self.methods]
        given = [term for term in terms if term is not None]
        assert all(term.requires_grad for term in given), "a loss without its graph changes nothing"
        return torch.stack(given).sum() if given else None

    @torch.no_grad()
    def after_backward(self, context: MethodContext) -> None:
        for method in self.methods:
            method.after_backward(context)

    @torch.no_grad()
    def after_update(self, context: MethodContext, items: Collection[Slice]) -> None:
        for method in self.methods:
            method.after_update(context, items)

    @torch.no_grad()
    def after_step(self, context: MethodContext, *, applied: bool) -> None:
        for method in self.methods:
            method.after_step(context, applied=applied)

    @torch.no_grad()
    def phase_trained(self, context: MethodContext) -> None:
        for method in self.methods:
            method.phase_trained(context)

    @torch.no_grad()
    def phase_end(self, context: MethodContext) -> None:
        for method in self.methods:
            method.phase_end(context)

    @torch.no_grad()
    def all_figures(self, context: MethodContext) -> dict[str, Mapping[str, float]]:
        """`figures` of each method that has any, by name."""
        found = {method.name: method.figures(context) for method in self.methods}
        return {name: figures for name, figures in found.items() if figures}

    def scoring(self, context: MethodContext, domain: str) -> AbstractContextManager[None]:
        return self._scoring(context, domain)

    @contextmanager
    def _scoring(self, context: MethodContext, domain: str) -> Iterator[None]:
        with ExitStack() as stack:
            for method in self.methods:
                stack.enter_context(method.scoring(context, domain))
            yield

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
            method.load_state_dict(_of(method, tensors), values.get(method.name, {}))

    def arrays(self) -> Mapping[str, torch.Tensor]:
        return {
            f"{method.name}.{key}": value
            for method in self.methods
            for key, value in method.arrays().items()
        }

    def check_arrays(self, arrays: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        names = [method.name for method in self.methods]
        for key in arrays:
            if key.partition(".")[0] not in names:
                raise ValueError(f"{key} is of no method of the run")
        for method in self.methods:
            try:
                method.check_arrays(_of(method, arrays), values[method.name])
            except ValueError as error:
                raise ValueError(f"{method.name}.{error}") from None

    def load_arrays(self, arrays: Mapping[str, torch.Tensor]) -> None:
        for method in self.methods:
            method.load_arrays(_of(method, arrays))


def _of(method: Method, keyed: Mapping[str, Any]) -> dict[str, Any]:
    """What is one method's, by its own names."""
    prefix = f"{method.name}."
    return {
        key.removeprefix(prefix): value for key, value in keyed.items() if key.startswith(prefix)
    }


NO_METHODS = Methods(())
