"""What moving a topology computes, counted over the steps of a run that is planned. No torch.

A gradient of absent weights is 2 FLOPs for each of them and token. Where products are dense anyway
it is a copy; in csr, block and packed storage it is one more product of all cells. Choices by the
run itself (a layer of CHT that stops, dead ends, room) are not known: then this is an upper bound.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sparsecl.methods.dst.clock import (
    ahead,
    clock,
    cubic,
    cubic_share,
    em_s_shares,
    fraction,
    is_due,
    is_due_in_place,
    is_due_or_prunes,
    shrunk,
    sigmoid,
    sigmoid_share,
)
from sparsecl.methods.work import LayerWork, MethodWork, Moment, RunWork

if TYPE_CHECKING:
    from sparsecl.methods.dst.config import (
        ChtConfig,
        ChtsConfig,
        GranetConfig,
        HebbConfig,
        RiglConfig,
    )


class Tally:
    """FLOPs of a run, step by step."""

    def __init__(self, run: RunWork) -> None:
        self.run = run
        self.live = run.live
        """Weights that live now, of all layers."""
        self._extra = self._gradients = self._scores = 0
        self._whole = 0
        """Steps that show dense gradients."""

    def step(self, *, gradient: bool = False) -> None:
        """A step of the run; `gradient`: it shows the gradient of absent weights."""
        self._extra += self.live - self.run.live
        if gradient:
            self._gradients += self.run.cells - self.live
            self._whole += 1

    def score(self, config: "HebbConfig", left: Sequence[int], wanted: Sequence[int]) -> None:
        """Scores of every layer that grows, from as many weights as are left to those wanted."""
        for layer, num, grown in zip(self.run.layers, left, wanted, strict=True):
            if grown > num or config.percolate:
                rows = layer.outputs // (layer.heads if config.by_head else 1)
                self._scores += score_flops(layer, config.score, num, rows)

    def result(self) -> MethodWork:
        """Of all steps up to now."""
        run, tokens = self.run, self.run.tokens
        sparse = sum(layer.live for layer in run.layers if layer.sparse)
        more = sum(layer.cells for layer in run.layers if not layer.has_gradient)
        return MethodWork(
            density=6 * tokens * self._extra,
            gradients=2 * tokens * self._gradients,
            scores=self._scores,
            # All layers change alike, as far as is known.
            executed=6 * tokens * round(self._extra * sparse / max(run.live, 1))
            + 2 * tokens * more * self._whole,
        )


def score_flops(layer: LayerWork, form: str, live: int, rows: int) -> int:
    """FLOPs of the Cannistraci-Hebb scores of one layer (scores.py), of which `live` weights are
    left; scored by parts of so many rows. Both forms begin with A A^T and A^T A; then l3n has two
    products of their size, l3p one of each row's links with all columns."""
    square = 2 * layer.cells * (rows + layer.inputs)
    return 2 * square if form.endswith("l3n") else square + 2 * rows * layer.inputs * live


def dense_gradients(run: RunWork, is_shown: Callable[[Moment], bool]) -> MethodWork:
    """Of the steps that show them; the density stays."""
    tally = Tally(run)
    for at in run.moments():
        tally.step(gradient=is_shown(at))
    return tally.result()


def rigl(config: "RiglConfig", run: RunWork) -> MethodWork:
    """In place of a step of the weights, whose passes count as those of any other."""
    last = -1

    def is_shown(at: Moment) -> bool:
        nonlocal last
        due = is_due_in_place(config, at, last)
        last = at.step if due else last
        return due

    return dense_gradients(run, is_shown)


def granet(config: "GranetConfig", run: RunWork) -> MethodWork:
    """Each rewire first lowers the density."""
    tally, first = Tally(run), run.live / run.cells
    final = 0.1 * first if config.final_density is None else config.final_density
    for at in run.moments():
        due = is_due(config, ahead(at))
        tally.step(gradient=due)
        done = cubic_share(config, ahead(at)) if due else None
        if done is None:
            continue
        density = cubic(first, final, done)
        each = sum(_shrunk(run, density / first))
        tally.live = round(density * run.cells) if config.scope == "global" else each
    return tally.result()


def cht(config: "ChtConfig", run: RunWork) -> MethodWork:
    """Scores of what is left after removal, at every rewire."""
    tally = Tally(run)
    for at in run.moments():
        tally.step()
        if is_due(config, ahead(at)):
            live = [layer.live for layer in run.layers]
            tally.score(config, _left(live, fraction(config, ahead(at))), live)
    return tally.result()


def chts(config: "ChtsConfig", run: RunWork) -> MethodWork:
    """The same, in place of a step; with a final density, which falls before."""
    tally, first, last = Tally(run), run.live / run.cells, -1
    live = [layer.live for layer in run.layers]
    for at in run.moments():
        tally.step()
        if not is_due_or_prunes(config, at, last):
            continue
        last, done = at.step, sigmoid_share(config, at)
        if done is not None and config.final_density is not None:
            live = _shrunk(run, sigmoid(first, config.final_density, done) / first)
        if config.em_s is not None:
            left, grown = em_s_shares(config, at, first)
            before, live = live, _shrunk(run, grown)
            tally.score(config, list(map(min, before, _shrunk(run, left))), live)
        elif clock(config, at) is not None:
            tally.score(config, _left(live, fraction(config, at)), live)
        tally.live = sum(live)
    return tally.result()


def _left(live: Sequence[int], share: float) -> list[int]:
    return [num - int(num * share) for num in live]


def _shrunk(run: RunWork, share: float) -> list[int]:
    start = {str(index): layer.live for index, layer in enumerate(run.layers)}
    return list(shrunk(start, share).values())
