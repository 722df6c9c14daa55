"""What the engine shows to a method, and what a method may ask of it.

Gradients are unscaled here, whatever the precision; a slice tensor is this rank's part of a
parameter, flat. Methods of the context are local unless they say otherwise.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch

from sparsecl.methods.units import UnitFigures
from sparsecl.methods.work import Moment
from sparsecl.optim.slice import Slice
from sparsecl.optim.slices import Slices
from sparsecl.sparse.registry import SparseParameter
from sparsecl.sparse.units import UnitGroup

SliceTensors = dict[str, torch.Tensor]
"""Parameter name -> flat tensor of this rank's slice of it."""

NO_PHASE = -1
"""Origin of a row that is in no phase's data."""


@dataclass(frozen=True)
class Progress(Moment):
    """Where the run is, with its stage, its data and its micro-batches."""

    stage: str
    stage_step: int
    stage_steps: int
    data_step: int
    """Steps' worth of this phase's data read so far: phase_step, and what a rollback left out."""

    micro_step: int
    """0-based micro-batch within the step; outside of a step the last one's."""

    num_micro_steps: int
    """Micro-batches of each rank per step."""

    @classmethod
    def plain(cls, at: Moment) -> "Progress":
        """In a phase without stages, whose steps are one micro-batch each."""
        return cls(
            **vars(at),
            stage="train",
            stage_step=at.phase_step,
            stage_steps=at.phase_steps,
            data_step=at.phase_step,
            micro_step=0,
            num_micro_steps=1,
        )


@dataclass(frozen=True)
class Batch:
    """This rank's micro-batch. The loss is the mean over rows of weight * mean loss of the row."""

    rows: np.ndarray
    """int64 [B, context + 1]."""

    weight: np.ndarray
    """fp32 [B]."""

    origin: np.ndarray
    """int64 [B, 2] = (phase, number of the sequence in the phase): where a row comes from. A row of
    no phase's data, which a method has made, is (NO_PHASE, its own number of it)."""

    extra: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What a method keeps beside its rows, for its own loss."""

    @property
    def plain(self) -> bool:
        """Every row counts as much as another."""
        return bool((self.weight == 1.0).all())

    def joined(self, rows: np.ndarray, origin: np.ndarray, weight: float = 1.0) -> "Batch":
        """This batch, and `rows` [n, context + 1] from `origin` [n, 2] after it."""
        return replace(
            self,
            rows=np.concatenate([self.rows, rows]),
            weight=np.concatenate([self.weight, np.full(len(rows), weight, np.float32)]),
            origin=np.concatenate([self.origin, origin]),
        )

    def replaced(self, places: np.ndarray, rows: np.ndarray, origin: np.ndarray) -> "Batch":
        """With `rows` [n, context + 1] of `origin` [n, 2] at places int64 [n], at their weights."""
        now, whence = self.rows.copy(), self.origin.copy()
        now[places], whence[places] = rows, origin
        return replace(self, rows=now, origin=whence)

    def beside(self, rows: np.ndarray, origin: np.ndarray) -> "Batch":
        """This batch, and after it rows that do not count in its loss, which stays what it was: the
        mean over the rows before. They are there for the loss of a method."""
        grown = (len(self.rows) + len(rows)) / len(self.rows)
        scaled = replace(self, weight=(self.weight * grown).astype(np.float32))
        return scaled.joined(rows, origin, 0.0)


class Outputs(Protocol):
    """What a forward pass gave; the same on all tp ranks, as at tp size 1.

    V = token ids in use. All but `losses` and `select` read the logits, which are kept for methods
    with `needs_outputs` only, and are collective over tp. Without them losses have no graph.
    """

    @property
    def losses(self) -> torch.Tensor:
        """fp32 [B, T], nats."""
        ...

    def select(self, rows: np.ndarray) -> "Outputs":
        """Those of some rows, int64 [n] in 0..B-1."""
        ...

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Of the tokens `ids`, int64 [B, T, k], the same on all tp ranks: fp32 [B, T, k]."""
        ...

    @property
    def logsumexp(self) -> torch.Tensor:
        """Of all V logits, fp32 [B, T]."""
        ...

    @property
    def squared_norm(self) -> torch.Tensor:
        """Sum of the squares of all V logits, fp32 [B, T]."""
        ...

    def log_probs(self, ids: torch.Tensor) -> torch.Tensor:
        """Of the tokens `ids`, int64 [B, T, k]: fp32 [B, T, k]."""
        ...

    def top(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids int64 and log probabilities fp32 of the most likely tokens, each [B, T, min(k, V)],
        the most likely first, the lower id on a tie."""
        ...

    def draw(self, uniform: torch.Tensor) -> torch.Tensor:
        """A token drawn from each position's own distribution, int64 [B, T].

        Args:
            uniform: fp64 [B, T] in [0, 1), the same on all tp ranks: what the draws follow from.
        """
        ...

    def kl(self, teacher: "Outputs", tau: float = 1.0) -> torch.Tensor:
        """KL(teacher || this) at temperature tau, fp32 [B, T]; no factor of tau squared. No
        gradient goes to the teacher."""
        ...


class MethodContext(Protocol):
    """One run on this rank."""

    @property
    def progress(self) -> Progress: ...

    @property
    def domain(self) -> str:
        """The domain that this phase trains."""
        ...

    @property
    def batch_sequences(self) -> int:
        """New sequences per optimizer step, over all ranks: those numbered from
        data_step * batch_sequences on, where data_step is that before the step."""
        ...

    @property
    def slices(self) -> Slices:
        """This rank's slices: names, masters, moments."""
        ...

    @property
    def sparse(self) -> Mapping[str, SparseParameter]:
        """The parameters on a topology, by parameter name, the same order on all ranks."""
        ...

    # Data and randomness.

    def rows(self, phase: int, indices: np.ndarray) -> np.ndarray:
        """Training sequences of any phase by their numbers in it, [n] -> int64 [n, context + 1]."""
        ...

    def chunks(self, phase: int, indices: np.ndarray) -> np.ndarray:
        """Which piece of the phase's text, numbered from 0, each of its sequences is: int64 [n]. A
        piece comes once in each pass over the text."""
        ...

    def sample_sequences(
        self, prompts: np.ndarray, rng: np.random.Generator, *, temperature: float = 1.0
    ) -> np.ndarray:
        """Sequences that the model as it is now writes after prompts: int64 [n, context + 1], the
        same on all ranks. Collective over the world, between steps.

        It takes a frozen copy of the model for its length. The bits do not depend on dp; at another
        tp size a token differs only where its draw lies within rounding of a border.

        Args:
            prompts: int64 [n, p], the same on all ranks; with p = 0 each is an end-of-text.
            rng: a stream that is the same on all ranks; it is advanced.
            temperature: > 0; logits are divided by it.

        Raises:
            InvariantError: on all ranks, if a logit is not finite.
        """
        ...

    def generator(self, *names: str | int) -> np.random.Generator:
        """A named random stream of the run: the same on all ranks, whatever the layout."""
        ...

    @property
    def networks(self) -> tuple[int, ...]:
        """() of one network, as in every GPT. (N,) of N side by side: slices, lines and figures of
        units have N in front, each draws by itself (`np.ndindex`), and there is no `dot`."""
        ...

    def network_generator(self, network: tuple[int, ...], *names: str | int) -> np.random.Generator:
        """`generator` of one network: what it would be if it were alone."""
        ...

    def each(self) -> "Sequence[MethodContext]":
        """This one; of networks side by side each alone, where whole matrices are chosen over."""
        ...

    def begin_anew(
        self,
        group: UnitGroup,
        units: np.ndarray,
        rng: np.random.Generator,
        network: tuple[int, ...] = (),
        *,
        moments: bool = True,
    ) -> dict[str, torch.Tensor]:
        """Give units, int64 [k], of one network the incoming weights of a new model, outgoing ones
        of zero, and with `moments` moments of zero: on live weights only. Local; every rank passes
        the same. Returns which elements have begun anew, as in `hold`, by parameter name."""
        ...

    def noise(self, item: Slice, *names: str | int) -> torch.Tensor:
        """Standard normal fp32 [numel] on the master's device: a draw depends on the names, the
        parameter and the place in the global matrix, not on the layout; 0 in padding."""
        ...

    # Gradients: in `after_backward` only.

    def gradient(self, item: Slice) -> torch.Tensor | None:
        """The reduced gradient of a slice, a copy, fp32 [numel]; None where there is none."""
        ...

    def add_gradient(self, item: Slice, value: torch.Tensor, scale: float = 1.0) -> None:
        """Add scale * value [numel] to the gradient of a slice, before clipping."""
        ...

    def set_gradient(self, item: Slice, value: torch.Tensor) -> None:
        """Replace the gradient of a slice by value [numel], before clipping."""
        ...

    def arm_dense_gradients(self) -> None:
        """In `step_start`: let this step show `dense_gradient`, at the cost of one dense product
        for each layer and micro-batch."""
        ...

    def dense_gradient(self, name: str) -> torch.Tensor:
        """The gradient of all cells of a parameter on a topology, absent ones too, in any storage:
        fp32 [O_local, I_local], of the step's mean loss; not to be written to. In `after_backward`
        and `after_step` of a step that was armed. Collective over dp."""
        ...

    def curvature(self, item: Slice) -> torch.Tensor:
        """Diagonal of the Hessian of the step, fp32 [numel]; only where RunFacts.curvature."""
        ...

    def mean_gradients(
        self,
        rows: np.ndarray,
        *,
        each: Callable[[torch.Tensor], torch.Tensor] | None = None,
        of: Callable[[Outputs, np.ndarray], torch.Tensor] | None = None,
    ) -> SliceTensors:
        """Mean gradient of the loss per token over sequences; `.grad` is left alone. Collective
        over the world; at any time between steps, and in `after_backward`.

        Args:
            rows: int64 [n, context + 1], the same on all ranks, which share the work.
            each: applied to the gradient of every single sequence before the mean is taken, for
                example torch.square: the mean of squares is not the square of the mean.
            of: what takes the place of the loss of each token, [B, T]: called with the outputs of
                some of the rows, logits included, and which rows these are, int64 [B] in 0..n-1.
        """
        ...

    def movable(self, values: SliceTensors) -> SliceTensors:
        """`values`, changed in place: zero where an element is absent or held, as the step's own
        gradient is. What is compared with that gradient goes through here. Local."""
        ...

    def linear_inputs(self, rows: np.ndarray) -> Iterator[Mapping[str, torch.Tensor]]:
        """What goes into every linear while the model reads sequences, without gradients: for one
        micro-batch after the other, by parameter name, fp32 [tokens, I], all tp shares joined; the
        same on all ranks, up to rounding. Between steps. Collective over the world.

        Args:
            rows: int64 [n, context + 1], the same on all ranks, each of which reads all.
        """
        ...

    def pass_forward(self, rows: np.ndarray) -> None:
        """Let the model read sequences, in eval mode and without gradients, for a part of it that
        sees what passes. Between steps. Collective over the world.

        Args:
            rows: int64 [n, context + 1], the same on all ranks, of which each dp rank reads its
                share; dp divides n.
        """
        ...

    def frozen_copy(self, masters: SliceTensors | None = None) -> Callable[[np.ndarray], Outputs]:
        """A teacher: scores rows int64 [B, context + 1] with the weights as they are now, whatever
        is trained afterwards; in eval mode, without gradients. Collective over dp; its calls are
        collective over tp, and local otherwise, so that dp ranks may make different ones.

        It takes the tp-local weights in the run's precision, not sharded, and the masks and indices
        once more. A method that is to go on after a resume keeps the masters of the moment,
        {item.name: item.master.clone() for item in context.slices}, among its slice tensors (4
        bytes a weight, sharded as the optimizer's state is) and gives them here in `resumed`. They
        are of the graph of their moment: not for a run in which live weights move.

        Args:
            masters: those of an earlier moment; None = the present ones.
        """
        ...

    def before(self, item: Slice) -> torch.Tensor:
        """In `after_update` with `needs_update`: the master of one of its items as it was before
        the step, fp32 [numel]; not to be written to. Local."""
        ...

    def skip_update(self) -> None:
        """In `after_backward`, on all ranks: the optimizer leaves these gradients alone. It stays a
        step of the run; `after_step` comes with applied=False and `update_skipped`."""
        ...

    @property
    def update_skipped(self) -> bool:
        """In `after_step`: every gradient was finite, and a method wanted no update."""
        ...

    # Hidden units, where a method has asked for them in `attach`.

    @property
    def units(self) -> Mapping[str, UnitGroup]:
        """The same order on all ranks."""
        ...

    def arm_units(self, centres: Mapping[str, torch.Tensor] | None = None) -> None:
        """In `step_start`: let this step show `unit_figures`.

        Args:
            centres: fp32 [n] by group, to measure distances from; they are those of the last
                caller.
        """
        ...

    def unit_figures(self) -> Mapping[str, UnitFigures]:
        """Means of every unit by group, over all tokens of a step that was armed, and over its
        weights as they are now. In `after_step`. Collective over the world."""
        ...

    # Sums over the model; replicas over tp count once.

    def dot(self, a: SliceTensors, b: SliceTensors) -> float:
        """Sum of a * b over all elements of the model. Collective over the world."""
        ...

    def maximum(self, values: SliceTensors) -> torch.Tensor:
        """Largest element in the model, fp64 [1]; of each network where many are side by side,
        [N, 1]. Collective over the world."""
        ...

    def line_sums(self, values: SliceTensors, dims: Mapping[str, int]) -> dict[str, torch.Tensor]:
        """Sums over the rows (dim 0) or columns (1) of global matrices, fp64 [lines], the same on
        all ranks; a vector is one row. Collective over the world.

        Args:
            dims: by the names of all parameters that are asked for, the same on all ranks.
        """
        ...

    def of_lines(self, item: Slice, found: torch.Tensor, dim: int) -> torch.Tensor:
        """For each element of a slice what was found of its line: [lines] -> [numel]."""
        ...

    # Weights.

    def shapes(self) -> Mapping[str, torch.Size]:
        """Shape of every tp-local parameter, by name, in the order of the model."""
        ...

    def live_values(self, name: str) -> torch.Tensor:
        """Masters fp32 [N] of this tp slice's live weights, row-major. Collective over dp."""
        ...

    def whole(self, name: str, values: SliceTensors | None = None) -> torch.Tensor:
        """The tp-local parameter, fp32 in its own shape, from the slices of all dp ranks: its
        masters, or what `values` has of it. Collective over dp."""
        ...

    def matrix(self, name: str, values: SliceTensors | None = None) -> torch.Tensor:
        """As `whole`, of the global parameter: all tp shares joined; a packed matrix is expanded,
        zero where absent. Collective over the world."""
        ...

    def joined(self, name: str, local: torch.Tensor) -> torch.Tensor:
        """The global matrix [O, I] of which every tp rank passes its share. Collective over tp."""
        ...

    def global_shape(self, name: str) -> torch.Size:
        """Of a parameter over all tp ranks, as a matrix if it is packed."""
        ...

    def local_of(self, name: str, matrix: torch.Tensor) -> torch.Tensor:
        """The tp-local parameter, in the form of its storage, out of a global one."""
        ...

    def slice_of(self, name: str, matrix: torch.Tensor) -> torch.Tensor | None:
        """This rank's slice [numel] of a global parameter; None where it holds none."""
        ...

    def write(self, name: str, value: torch.Tensor, where: torch.Tensor | None = None) -> None:
        """Set a parameter from its tp-local value: master and the copy that the forward pass uses.
        Every dp rank passes the same. Between steps only; what is held must keep its value.

        Args:
            where: bool of its shape: all else keeps its bits, and so does what is absent.
        """
        ...

    def hidden(self, where: Iterable[tuple[str, torch.Tensor]]) -> AbstractContextManager[None]:
        """Around an evaluation (`scoring`): the forward pass sees zero at these elements, and
        afterwards every bit is back. Collective over dp.

        Args:
            where: parameter name and bool of the shape of the tp-local parameter, equal on all dp
                ranks; asked for one after the other.
        """
        ...

    def shown(self, values: Iterable[tuple[str, torch.Tensor]]) -> AbstractContextManager[None]:
        """The same with other values in the place of all of a parameter, absent cells too: masked
        storage only. Collective over dp.

        Args:
            values: parameter name and fp32 of the shape of the tp-local parameter, equal on all dp
                ranks; asked for one after the other.
        """
        ...

    def hold(self, name: str, where: torch.Tensor | None, *, owner: str) -> None:
        """From now on the elements of `where` keep their value bit for bit, and their moments stay
        zero; audited like absent weights. None ends it. What is held already keeps the value that
        it is held at: to give it another one, let go before.

        Args:
            where: bool, of the shape of the tp-local parameter; equal on all dp ranks.
            owner: the method's name: an element moves when no owner holds it.
        """
        ...

    def reset_state(self, name: str, where: torch.Tensor) -> None:
        """Set the moments of the elements of `where` (as in `hold`) to zero."""
        ...

    def rewire(self, name: str, drop: torch.Tensor, grow: torch.Tensor) -> torch.Tensor:
        """Move live weights from `drop` to `grow`, flat indices int64 [K]; weight and state of what
        has grown are zero. Collective over the world. To be called between steps.

        The indices go into the global matrix in masked storage, where all ranks pass the same; into
        this tp slice of it in packed storage, where all ranks of dp do (sparse/rewire.py).

        Returns:
            What has grown, as a `where` of `hold`.
        """
        ...

    def set_live(self, name: str, mask: torch.Tensor) -> torch.Tensor:
        """Give a parameter in masked storage another live set, of any size: bool [O, I] of the
        global matrix, the same on all ranks. What was dropped is zero from now on, with all state
        of it; so is what has grown. To be called between steps.

        Returns:
            What has grown, as a `where` of `hold`.
        """
        ...
