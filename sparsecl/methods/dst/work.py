"""What moving a topology computes, counted over the steps of a run that is planned. No torch.

A gradient of absent weights is 2 FLOPs for each of them and token. Where products are dense anyway
it is a copy; in native, csr, block and packed storage it is one more product of all cells. Choices
by the run itself (a layer of CHT that stops, dead ends, room) are not known: then this is an upper
bound.
"""

from collections.abc import Callable, Sequence

from sparsecl.methods.work import LayerWork, MethodWork, Moment, RunWork


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

    def score(
        self,
        form: str,
        left: Sequence[int],
        wanted: Sequence[int],
        *,
        always: bool,
        by_head: bool = False,
    ) -> None:
        """Scores of every layer that grows from as many weights as are `left` to those `wanted`.

        Args:
            form: name of the score.
            always: a layer may grow more than these say.
            by_head: rows of each head apart.
        """
        for layer, num, grown in zip(self.run.layers, left, wanted, strict=True):
            if grown > num or always:
                rows = layer.outputs // (layer.heads if by_head else 1)
                self._scores += score_flops(layer, form, num, rows)

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


def left_of(live: Sequence[int], share: float) -> list[int]:
    """Live weights of each layer once a share of them is removed."""
    return [num - int(num * share) for num in live]
