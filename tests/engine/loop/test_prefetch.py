"""Rows read ahead are the rows that are due, in whatever order places are asked for."""

import threading

import numpy as np
import pytest

from sparsecl.engine.loop.prefetch import BatchPlace, Prefetcher
from sparsecl.errors import DataError
from tests.distributed import cases


class Rows:
    """A data set that remembers who read what."""

    def __init__(self):
        self.read, self.threads = [], set()
        self.bad = None

    def __call__(self, place):
        self.read.append(place)
        self.threads.add(threading.current_thread())
        if place == self.bad:
            raise DataError(f"{place} is bad")
        return np.array([place], dtype=np.int64)


def walk(loader, *places):
    return [loader.take(BatchPlace(*place)).rows.tolist() for place in places]


def test_the_place_after_the_last_micro_batch_is_in_the_next_step():
    assert BatchPlace(1, 4, 0).next(2) == (1, 4, 1)
    assert BatchPlace(1, 4, 1).next(2) == (1, 5, 0)


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_rows_are_those_of_the_place(ahead):
    # Two steps, a rollback that leaves out data, a new phase, and back to an earlier step.
    places = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 5, 0), (0, 5, 1), (1, 0, 0), (0, 1, 0)]
    loader = Prefetcher(Rows(), accumulation=2, ahead=ahead)
    assert walk(loader, *places) == [[list(place)] for place in places]
    assert loader.num_unforeseen == (4 if ahead else 0)
    assert loader.wait_seconds > 0
    loader.close()


def test_it_reads_in_order_and_ahead():
    rows = Rows()
    loader = Prefetcher(rows, accumulation=2, ahead=3)
    walk(loader, (0, 0, 0), (0, 0, 1))
    loader._pool.submit(lambda: None).result()  # the one thread has come to the end of its queue
    assert rows.read == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (0, 2, 0)]
    assert len(rows.threads) == 2
    loader.close()


def test_an_error_comes_at_its_own_place_only():
    rows = Rows()
    rows.bad = BatchPlace(0, 1, 0)
    loader = Prefetcher(rows, accumulation=1, ahead=2)
    assert walk(loader, (0, 0, 0), (0, 5, 0)) == [[[0, 0, 0]], [[0, 5, 0]]]  # bad was foreseen
    walk(loader, (0, 0, 0))
    with pytest.raises(DataError, match="is bad"):
        loader.take(BatchPlace(0, 1, 0))
    assert walk(loader, (0, 2, 0)) == [[[0, 2, 0]]]
    loader.close()


def test_changed_rows_are_what_trains():
    loader = Prefetcher(Rows(), accumulation=1, ahead=1)
    batch = loader.take(BatchPlace(0, 7, 0))
    assert loader.tokens(batch, batch.rows).tolist() == [[0, 7, 0]]
    replayed = np.concatenate([batch.rows, batch.rows])
    assert loader.tokens(batch, replayed).tolist() == [[0, 7, 0], [0, 7, 0]]
    loader.close()


def test_its_thread_ends_with_it():
    before = set(threading.enumerate())
    loader = Prefetcher(Rows(), accumulation=1, ahead=1)
    walk(loader, (0, 0, 0))
    (thread,) = set(threading.enumerate()) - before
    loader.close()
    assert not thread.is_alive()


def trained(pool, cache, folder, *overrides):
    """Losses and masters of a run over two domains that replays."""
    overrides = (
        *(f"data.domains=[{domain('a')}, {domain('b')}]", "phases.steps=3"),
        *("batch.micro=2", "methods.replay={sequences: 24, share: 0.5}", *overrides),
    )
    result = pool.run(cases.train, 1, str(cache), "zero2", overrides, str(folder))[0]
    return result["losses"], cases.masters(folder)


def domain(name):
    sizes = "{train_tokens: 4000, validation_tokens: 400, num_symbols: 8}"
    return f"{{name: {name}, source: synthetic, synthetic: {sizes}}}"


@pytest.mark.dist
def test_a_run_does_not_know_how_it_is_read(pool, shared_cache, tmp_path):
    losses, masters = trained(pool, shared_cache, tmp_path / "0", "speed.prefetch=0")
    others, other_masters = trained(pool, shared_cache, tmp_path / "3", "speed.prefetch=3")
    assert len(losses) == 6 and losses == others
    assert all((masters[name] == other_masters[name]).all() for name in masters)
