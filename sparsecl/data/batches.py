"""Tokens -> training sequences and evaluation windows, by index alone.

A sequence is named by its number in the phase. Which tokens number k holds depends on the seed,
the phase and the domain; who reads it depends on the parallel layout. So the order of the data
is the same for every layout, and a resumed run needs to know nothing but its step.
"""

import numpy as np
from numpy.typing import NDArray

from sparsecl.data.permutation import Permutation
from sparsecl.data.token_store import TokenStore
from sparsecl.errors import DataError
from sparsecl.seeding import stream

NO_TARGET = -1
"""Target of a position that predicts nothing (padding)."""


class PhaseStream:
    """Endless training sequences of one phase.

    The tokens are parted into chunks that start every `context` tokens and overlap by one: the
    last token of a chunk is predicted there and is the first input of the next. An epoch visits
    every chunk once, in an order of its own; fewer than `context` tokens at the end are left out.

    Args:
        store: training tokens of the domain.
        context: inputs per sequence.
        seed: seed of the run.
        phase: 0-based; the same domain in another phase has another order.
        domain_name: part of the order's name.
    """

    def __init__(
        self, store: TokenStore, *, context: int, seed: int, phase: int, domain_name: str
    ) -> None:
        self.num_chunks = (store.num_tokens - 1) // context
        if self.num_chunks < 1:
            raise DataError(
                f"domain {domain_name}: train has {store.num_tokens} tokens, one sequence of "
                f"context {context} needs {context + 1}; give more text or a smaller context"
            )
        self._store = store
        self._context = context
        self._names = (seed, "data_order", phase, domain_name)

    def rows(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sequences `indices` [n] of the phase, each >= 0, as token ids [n, context + 1]."""
        chunks = self.chunks(np.asarray(indices, dtype=np.int64))
        return self._store.take(chunks * self._context, self._context + 1)

    def chunks(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Chunk [n] that each sequence [n] reads; a bijection within an epoch."""
        if len(indices) and indices.min() < 0:
            raise ValueError(f"indices must be >= 0, got {indices.min()}")
        epochs, positions = np.divmod(indices, self.num_chunks)
        result = np.empty_like(indices)
        for epoch in np.unique(epochs):
            rng = stream(*self._names, int(epoch))
            here = epochs == epoch
            result[here] = Permutation(self.num_chunks, rng)(positions[here])
        return result


def sample_indices(
    step: int, *, sequences: int, micro: int, dp_rank: int, dp_size: int, micro_step: int
) -> NDArray[np.int64]:
    """Sequences of the phase that one rank reads for one micro-batch, [micro].

    Step s reads s * sequences .. (s + 1) * sequences - 1 in total, each by one rank once.

    Args:
        step: optimizer step within the phase, 0-based.
        sequences: sequences per optimizer step, over all ranks; a multiple of micro * dp_size.
        micro: sequences per rank and micro-batch.
        micro_step: 0-based micro-batch within the step.

    Raises:
        ValueError: if the batch does not divide, or a position is outside it.
    """
    per_micro_step = micro * dp_size
    if per_micro_step < 1 or sequences % per_micro_step:
        raise ValueError(f"sequences={sequences} is no multiple of {micro=} * {dp_size=}")
    if not (step >= 0 and 0 <= dp_rank < dp_size and 0 <= micro_step < sequences // per_micro_step):
        raise ValueError(f"no such micro-batch: {step=}, {dp_rank=} of {dp_size}, {micro_step=}")
    start = step * sequences + micro_step * per_micro_step + dp_rank * micro
    return np.arange(start, start + micro, dtype=np.int64)


def spread(total: int, count: int) -> NDArray[np.int64]:
    """`count` of the places 0 .. total - 1, rising, or all if there are fewer: the middles of
    `count` equal parts. The same at every place and time, so nothing of a run decides them."""
    count = min(total, count)
    return (2 * np.arange(count, dtype=np.int64) + 1) * total // (2 * max(1, count))


class EvaluationWindows:
    """Windows of validation text that predict no token twice, in the order of the text.

    The text is cut into windows of `context` predictions that follow each other, the first token
    left out and the last window padded with token 0 and NO_TARGET. `chosen` of them are read.

    Args:
        chosen: numbers of windows, rising; None = all.
    """

    def __init__(
        self, store: TokenStore, *, context: int, chosen: NDArray[np.int64] | None = None
    ) -> None:
        predicted = max(0, store.num_tokens - 1)
        if predicted < 1 or context < 1:
            raise DataError(
                f"validation has {store.num_tokens} tokens, {context=}: nothing to predict"
            )
        self.num_windows = -(-predicted // context)
        """Of the whole text."""
        self.chosen = np.arange(self.num_windows) if chosen is None else chosen
        self.store, self.context = store, context
        self._predicted = predicted

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Tokens that each window predicts, [n]."""
        return np.minimum(self.context, self._predicted - self.chosen * self.context)

    def rows(self, i: int, j: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Windows i..j-1 as (inputs, targets), each [j - i, context]; target NO_TARGET = none."""
        if not 0 <= i <= j <= len(self):
            raise IndexError(f"windows {i}..{j} are outside 0..{len(self)}")
        inputs = np.zeros((j - i, self.context), dtype=np.int64)
        targets = np.full_like(inputs, NO_TARGET)
        starts, sizes = self.chosen[i:j] * self.context, self.sizes[i:j]
        for size in np.unique(sizes):  # one, and that of the last window of the text
            here = sizes == size
            tokens = self.store.take(starts[here], int(size) + 1)
            inputs[here, :size], targets[here, :size] = tokens[:, :-1], tokens[:, 1:]
        return inputs, targets


def evaluation_windows(
    store: TokenStore, *, context: int, max_tokens: int | None = None
) -> EvaluationWindows:
    """Windows spread evenly over the text, as many as `max_tokens` predicted tokens need, the last
    one whole; None: all of the text. They depend on the number of tokens, `context` and
    `max_tokens`, and on nothing else.

    A document has its share of them by its length: one that is as long as two neighbours are apart
    always has some.
    """
    whole = EvaluationWindows(store, context=context)
    if max_tokens is None:
        return whole
    chosen = spread(whole.num_windows, -(-max_tokens // context))
    return EvaluationWindows(store, context=context, chosen=chosen)


def whole_windows(store: TokenStore, *, context: int, count: int) -> NDArray[np.int64]:
    """Up to `count` windows of `context` predictions, spread evenly over the text and none of them
    padded, as token ids [n, context + 1]."""
    chosen = spread((store.num_tokens - 1) // context, count)
    return store.take(chosen * context, context + 1)
