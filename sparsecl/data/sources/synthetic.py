"""Source `synthetic`: random text whose entropy rate is known exactly.

markov   A chain of order k over S letters; each of the S**k contexts has a Dirichlet row. The rate
         is the mean row entropy under the stationary distribution of the contexts (Cover and
         Thomas 2006, eq. 4.27 applied to blocks of k letters).
grammar  Sentences "subject verb object.\\n" drawn independently; the verb depends on the subject
         and the object on the verb. Words of one place are distinct and blanks part them, so a
         sentence has one derivation, and the rate per character is H(sentence) / E[length]
         (renewal theorem).

Each split is ONE document: its only end-of-text token is the last one, so nothing interrupts the
chain. It starts from the stationary distribution. Train and validation are independent draws.
"""

import bisect
import string
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sparsecl.data.config import DomainConfig, SyntheticConfig
from sparsecl.data.sources.source import Source
from sparsecl.errors import UserError
from sparsecl.seeding import stream

LETTERS = string.ascii_lowercase + string.ascii_uppercase + string.digits

_TOLERANCE = 1e-13  # total variation per step; far below what a loss can show
_MAX_STEPS = 20_000


def open_source(domain: DomainConfig, *, seed: int, max_document_bytes: int) -> Source:
    """Draw the source's parameters; the domain's name is part of the random stream's name."""
    del max_document_bytes  # a cut would add end-of-text tokens
    config = domain.synthetic or SyntheticConfig()
    used_seed = seed if config.seed is None else config.seed
    names = ("synthetic", domain.name)
    law = _KINDS[config.kind](config, stream(used_seed, *names, "law"))
    lengths = {"train": config.train_tokens, "validation": config.validation_tokens}

    def texts(split: str) -> Iterator[str]:
        yield law.draw(lengths[split], stream(used_seed, *names, split))

    key = {
        "source": "synthetic",
        "seed": used_seed,
        "name": domain.name,
        "kind": config.kind,
        "num_symbols": config.num_symbols,
        "order": config.order,
        "concentration": config.concentration,
        **lengths,
    }
    return Source(
        key=key, texts=texts, has_validation=True, atomic=True, entropy_rate=law.entropy_rate
    )


class Markov:
    """A chain over letters.

    Attributes:
        rows: next-letter distribution of each context, [S**k, S].
        stationary: distribution of contexts, [S**k].
        entropy_rate: nats per letter.
    """

    def __init__(self, config: SyntheticConfig, rng: np.random.Generator) -> None:
        size, order = config.num_symbols, config.order
        self.rows = _dirichlet(rng, size**order, size, config.concentration)
        self.stationary = stationary(self.rows, order)
        self.entropy_rate = float(self.stationary @ _entropies(self.rows))
        self._order = order

    def draw(self, length: int, rng: np.random.Generator) -> str:
        """Text of `length` letters."""
        num_contexts, size = self.rows.shape
        context = int(rng.choice(num_contexts, p=self.stationary))
        ids = [context // size**i % size for i in reversed(range(self._order))]
        bounds = _bounds(self.rows)
        for u in rng.random(max(0, length - self._order)).tolist():
            symbol = bisect.bisect(bounds[context], u)
            context = (context * size + symbol) % num_contexts
            ids.append(symbol)
        return "".join(LETTERS[i] for i in ids[:length])


class Grammar:
    """Sentences of three dependent words.

    Attributes:
        entropy_rate: nats per character.
    """

    def __init__(self, config: SyntheticConfig, rng: np.random.Generator) -> None:
        size = config.num_symbols
        self.words = [_distinct_words(size, rng) for _ in range(3)]
        self._first = _dirichlet(rng, 1, size, config.concentration)[0]
        self._next = [_dirichlet(rng, size, size, config.concentration) for _ in range(2)]
        place = self._first
        entropy = float(_entropies(place[None])[0])
        length = 4.0  # two blanks, full stop, newline
        for words, rows in zip(self.words, [*self._next, None], strict=True):
            length += float(place @ np.array([len(word) for word in words]))
            if rows is not None:
                entropy += float(place @ _entropies(rows))
                place = place @ rows
        self.entropy_rate = entropy / length

    def draw(self, length: int, rng: np.random.Generator) -> str:
        """Text of `length` characters; the last sentence may be cut."""
        first = _bounds(self._first[None])[0]
        following = [_bounds(rows) for rows in self._next]
        sentences: list[str] = []
        size = 0
        while size < length:
            u, v, w = rng.random(3).tolist()
            subject = bisect.bisect(first, u)
            verb = bisect.bisect(following[0][subject], v)
            thing = bisect.bisect(following[1][verb], w)
            picked = zip(self.words, (subject, verb, thing), strict=True)
            sentences.append(" ".join(words[i] for words, i in picked) + ".\n")
            size += len(sentences[-1])
        return "".join(sentences)[:length]


def stationary(rows: NDArray[np.float64], order: int) -> NDArray[np.float64]:
    """Stationary distribution of the contexts of a chain of `order`, [S**order].

    Context (a, b, ..) is followed by (b, .., next). Dirichlet rows are positive, so it is unique
    and repeated steps converge to it.
    """
    num_contexts, size = rows.shape
    place = np.full(num_contexts, 1.0 / num_contexts)
    for _ in range(_MAX_STEPS):
        # [oldest letter, rest of the context, next letter], summed over the oldest.
        moved = (place[:, None] * rows).reshape(size, -1).sum(axis=0)
        # Mean of two steps: a chain that is nearly periodic converges too.
        moved = 0.5 * (moved / moved.sum() + place)
        change = np.abs(moved - place).sum()
        place = moved
        if change < _TOLERANCE:
            return place
    raise UserError(
        "synthetic.concentration is so small that the chain hardly moves between its parts and "
        "its entropy rate is not known; use a larger one or a smaller order"
    )


def _dirichlet(
    rng: np.random.Generator, count: int, size: int, concentration: float
) -> NDArray[np.float64]:
    rows = rng.dirichlet(np.full(size, concentration), size=count)
    # A tiny floor keeps every transition possible, so that the chain is irreducible.
    rows = rows + 1e-6
    return rows / rows.sum(axis=1, keepdims=True)


def _bounds(rows: NDArray[np.float64]) -> list[list[float]]:
    """Cumulative rows without the last entry: bisecting them with u in [0, 1) draws from a row."""
    return np.cumsum(rows, axis=1)[:, :-1].tolist()


def _entropies(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy of each row in nats."""
    return -(rows * np.log(rows)).sum(axis=1)


def _distinct_words(count: int, rng: np.random.Generator) -> list[str]:
    words: dict[str, None] = {}
    while len(words) < count:
        length = int(rng.integers(2, 8))
        words["".join(LETTERS[i] for i in rng.integers(0, 26, size=length))] = None
    return list(words)


_KINDS: dict[str, type[Markov] | type[Grammar]] = {"markov": Markov, "grammar": Grammar}
