"""What a method is: answers to the engine's hooks.

The engine owns the loop, DeepSpeed owns backward and step. A method never calls either; it says
what it means through the context, which knows what it costs: loss scale, norms for clipping,
sharding, the copy to low precision, replicas that count once. Projection onto the topology and onto
what is held comes after every method.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import IntEnum
from typing import Any, ClassVar

import torch

from sparsecl.methods.context import Batch, MethodContext, Outputs, SliceTensors
from sparsecl.methods.many_steps import ManySteps
from sparsecl.methods.model_side import ModelSide
from sparsecl.optim.slice import Slice


class Order(IntEnum):
    """Whose hooks are called first: gradients are looked at, added to, projected, then gated."""

    OBSERVE = 0
    ADD = 1
    PROJECT = 2
    """Two of these in one run are refused: the second undoes what the first has made sure."""

    GATE = 3


class Method:
    """A method that does nothing. Hooks are called on all ranks."""

    name: ClassVar[str] = "none"
    order: ClassVar[Order] = Order.ADD
    needs_update: bool = False
    """`after_update` asks for masters from before the step (`context.before`), which are kept for
    its length: 4 bytes a weight."""

    needs_outputs: bool = False
    """`loss` asks for more than the values of `outputs.losses`: for their graph, or for logits.
    The logits of a micro-batch are then kept: 4 bytes for each position and token id of this tp
    rank."""

    def __init__(self, config: Any = None) -> None:
        self.config = config

    @property
    def replayed_sequences(self) -> int:
        """Earlier sequences trained again up to now, over all ranks: work beside the new tokens."""
        return 0

    @property
    def replayed_by_phase(self) -> Sequence[int]:
        """How many of them were first read in each phase; later phases may be missing."""
        return ()

    def attach(self, model: ModelSide, num_phases: int) -> None:
        """Add parts to the model, before DeepSpeed sees it; for all phases at once."""

    def resumed(self, context: MethodContext) -> None:
        """The state is back after `load_state_dict`: set again what the context keeps for the
        method. No hold of it is there."""

    def began_anew(self, context: MethodContext) -> None:
        """The run goes on from a checkpoint's weights alone (--weights_only), and this method has
        seen nothing yet: hold what it holds, or refuse.

        Raises:
            UserError: the method cannot go on without its state.
        """

    def phase_start(self, context: MethodContext) -> None:
        """Before the first step of a phase; not called again on a resume inside it."""

    def stage_start(self, context: MethodContext) -> None:
        """Before the first step of a stage (context.progress.stage); after `phase_start`."""

    def step_start(self, context: MethodContext) -> None:
        """Before the first micro-batch of a step: arm what the step is to show."""

    def batch(self, context: MethodContext, batch: Batch) -> Batch:
        """Change this rank's micro-batch. A row keeps its origin."""
        return batch

    def loss(self, context: MethodContext, batch: Batch, outputs: Outputs) -> torch.Tensor | None:
        """A differentiable term added to the micro-batch's loss."""
        return None

    def after_backward(self, context: MethodContext) -> None:
        """Gradients are reduced, finite on all ranks and not yet clipped. Not called otherwise."""

    def after_update(self, context: MethodContext, items: Collection[Slice]) -> None:
        """The masters of `items` have stepped; they are not yet projected onto topology and holds,
        nor copied to low precision. Change `item.master` in place. No collectives: under ZeRO the
        ranks have other slices. Called more than once a step where DeepSpeed steps in parts."""

    def after_step(self, context: MethodContext, *, applied: bool) -> None:
        """The optimizer has stepped, and absent weights are absent; or the step was discarded, and
        then the method's state must be what it was before it. A step whose update a method has
        skipped looks the same to the others."""

    def many_steps(self, context: MethodContext) -> ManySteps | None:
        """What the hooks of the steps from now on come to, so that a loop need not call them; None
        = it must call them at the next step. Asked between steps, by streams of small networks."""
        hooks = ("step_start", "batch", "loss", "after_backward", "after_update", "after_step")
        spared = all(getattr(type(self), hook) is getattr(Method, hook) for hook in hooks)
        return ManySteps() if spared else None

    def made_steps(self, num: int) -> None:
        """The loop has made `num` steps without the hooks."""

    def phase_trained(self, context: MethodContext) -> None:
        """After the last step of a phase, before its evaluation, which sees what is written here.
        No checkpoint lies between this and `phase_end`."""

    def phase_end(self, context: MethodContext) -> None:
        """After the last step of a phase and its evaluation."""

    def figures(self, context: MethodContext) -> Mapping[str, float]:
        """What the method measures of itself, after `phase_end`: by name, for the record of the
        phase's end. The same on all ranks. Collective over the world."""
        return {}

    def scoring(self, context: MethodContext, domain: str) -> AbstractContextManager[None]:
        """Around the evaluation of a domain, for a method that is told which one it is (flag I)."""
        return nullcontext()

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

    def arrays(self) -> Mapping[str, torch.Tensor]:
        """What a resume needs beside `state_dict` that belongs to no parameter and is too large for
        JSON: by name, the same on all ranks. Asked of rank 0, at every checkpoint."""
        return {}

    def check_arrays(self, arrays: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        """Check what a checkpoint keeps of `arrays`, finite, beside `values`, which `check_state`
        has accepted. Local.

        Raises:
            ValueError: they were never given with these values; with the name.
        """
        if arrays:
            raise ValueError(f"{next(iter(arrays))} is not known")

    def load_arrays(self, arrays: Mapping[str, torch.Tensor]) -> None:
        """Take back what `arrays` gave, after `load_state_dict`."""

    def load_state_dict(
        self, tensors: Mapping[str, SliceTensors], values: Mapping[str, Any]
    ) -> None:
        """Take back what `state_dict` gave, after `check_state`."""
