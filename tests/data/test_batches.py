"""Which tokens a step reads, and which an evaluation predicts."""

import numpy as np
import pytest

from sparsecl.data.batches import (
    NO_TARGET,
    PhaseStream,
    evaluation_windows,
    sample_indices,
    spread,
    whole_windows,
)
from sparsecl.errors import DataError
from tests.data.stores import token_store


@pytest.fixture
def store_of(tmp_path):
    def make(tokens, vocab_size=1000):
        return token_store(tmp_path / "train.tokens", tokens, vocab_size)

    return make


def phase_stream(store, context=3, seed=0, phase=0):
    return PhaseStream(store, context=context, seed=seed, phase=phase, domain_name="d")


def test_chunks_overlap_by_one_token(store_of):
    rows = phase_stream(store_of(range(8))).rows(np.arange(2))
    # 8 tokens, context 3: chunks 0..3 and 3..6; token 7 is left out.
    assert sorted(rows.tolist()) == [[0, 1, 2, 3], [3, 4, 5, 6]]
    assert rows.dtype == np.int64


def test_an_epoch_predicts_each_token_once_and_the_next_has_another_order(store_of):
    stream = phase_stream(store_of(range(301)))
    first, second = (stream.rows(np.arange(100) + start) for start in (0, 100))
    for epoch in (first, second):
        assert sorted(epoch[:, 1:].ravel().tolist()) == list(range(1, 301))
    assert (first != second).any()


def test_the_order_depends_on_seed_phase_and_nothing_else(store_of):
    store = store_of(range(301))
    indices = np.arange(150)
    rows = phase_stream(store).rows(indices)
    assert (phase_stream(store).rows(indices[::-1])[::-1] == rows).all()
    assert (phase_stream(store, seed=1).rows(indices) != rows).any()
    assert (phase_stream(store, phase=1).rows(indices) != rows).any()


@pytest.mark.fault("T3")
def test_one_chunk_is_repeated_for_ever(store_of):
    rows = phase_stream(store_of(range(4))).rows(np.array([0, 1, 10**12]))
    assert rows.tolist() == [[0, 1, 2, 3]] * 3


@pytest.mark.fault("T3")
@pytest.mark.parametrize("num_tokens", [1, 3])
def test_less_than_one_sequence_is_refused(store_of, num_tokens):
    with pytest.raises(DataError, match=f"domain d: train has {num_tokens} tokens.*needs 4"):
        phase_stream(store_of(range(num_tokens)))


def test_a_token_outside_the_vocabulary_is_named(store_of):
    store = store_of([1, 2, 700, 3], vocab_size=256)
    with pytest.raises(DataError, match="train.tokens: token id 700 >= vocab_size 256"):
        phase_stream(store).rows(np.array([0]))


def test_indices_by_hand():
    # 8 sequences a step, 2 ranks, 2 rows each: two micro-steps of 4.
    args = {"sequences": 8, "micro": 2, "dp_size": 2}
    assert sample_indices(0, dp_rank=0, micro_step=0, **args).tolist() == [0, 1]
    assert sample_indices(0, dp_rank=1, micro_step=0, **args).tolist() == [2, 3]
    assert sample_indices(0, dp_rank=0, micro_step=1, **args).tolist() == [4, 5]
    assert sample_indices(3, dp_rank=1, micro_step=1, **args).tolist() == [30, 31]


@pytest.mark.parametrize(("dp_size", "micro"), [(1, 16), (1, 4), (2, 2), (4, 4), (8, 1)])
def test_any_layout_reads_the_same_sequences_once(dp_size, micro):
    read = [
        index
        for micro_step in range(16 // (micro * dp_size))
        for rank in range(dp_size)
        for index in sample_indices(
            5, sequences=16, micro=micro, dp_rank=rank, dp_size=dp_size, micro_step=micro_step
        )
    ]
    assert read == list(range(80, 96))


@pytest.mark.parametrize(
    "wrong", [{"sequences": 9}, {"dp_rank": 2}, {"micro_step": 2}, {"step": -1}]
)
def test_impossible_micro_batches_are_refused(wrong):
    args = {"step": 0, "sequences": 8, "micro": 2, "dp_rank": 0, "dp_size": 2, "micro_step": 0}
    args |= wrong
    with pytest.raises(ValueError):
        sample_indices(args.pop("step"), **args)


def test_windows_by_hand(store_of):
    windows = evaluation_windows(store_of([5, 6, 7, 8, 9, 10]), context=3)
    inputs, targets = windows.rows(0, 2)
    assert len(windows) == 2
    assert inputs.tolist() == [[5, 6, 7], [8, 9, 0]]
    assert targets.tolist() == [[6, 7, 8], [9, 10, NO_TARGET]]


def test_windows_of_a_cap_are_spread_over_the_documents(store_of):
    """10 documents of 6 tokens: 60 tokens, 59 predicted, 20 windows of 3, the last one of 2."""
    store = store_of([10 * document + k for document in range(10) for k in range(6)])
    four = evaluation_windows(store, context=3, max_tokens=12)
    assert four.chosen.tolist() == [2, 7, 12, 17]  # the middles of four fifths of 20
    inputs, targets = four.rows(0, 4)
    assert inputs.tolist() == [[10, 11, 12], [33, 34, 35], [60, 61, 62], [83, 84, 85]]
    assert targets.tolist() == [[11, 12, 13], [34, 35, 40], [61, 62, 63], [84, 85, 90]]
    assert evaluation_windows(store, context=3, max_tokens=10).chosen.tolist() == [2, 7, 12, 17]
    ten = evaluation_windows(store, context=3, max_tokens=30)
    assert ten.chosen.tolist() == list(range(1, 20, 2))
    assert {token // 10 for token in ten.rows(0, 10)[1].ravel().tolist()} >= set(range(10))


@pytest.mark.parametrize("cap", [59, 60, 1000, None])
def test_a_cap_of_all_text_gives_all_windows(store_of, cap):
    windows = evaluation_windows(store_of(range(60)), context=3, max_tokens=cap)
    assert windows.chosen.tolist() == list(range(20))
    assert windows.sizes.tolist() == [3] * 19 + [2]


@pytest.mark.parametrize("max_tokens", [None, 1, 7, 40, 99, 1000])
@pytest.mark.parametrize("context", [1, 7, 99, 200])
def test_windows_predict_no_token_twice_and_in_order(store_of, context, max_tokens):
    windows = evaluation_windows(store_of(range(100)), context=context, max_tokens=max_tokens)
    found = []
    for i in range(len(windows)):
        inputs, targets = windows.rows(i, i + 1)
        kept = targets != NO_TARGET
        assert (inputs[kept] + 1 == targets[kept]).all()
        assert kept.sum() == windows.sizes[i]
        found += targets[kept].tolist()
    assert found == sorted(set(found)) and windows.sizes.sum() == len(found)
    at_once = windows.rows(0, len(windows))[1]
    assert at_once[at_once != NO_TARGET].tolist() == found
    if max_tokens is None or max_tokens >= 99:
        assert found == list(range(1, 100))
    else:
        assert len(windows) == -(-min(99, max_tokens) // context)


@pytest.mark.parametrize("total", [1, 2, 17, 100])
def test_places_are_spread_with_equal_gaps(total):
    for count in range(1, total + 3):
        places = spread(total, count)
        assert len(places) == min(total, count)
        edges = [-1, *places.tolist(), total]
        gaps = np.diff(edges)
        # No stretch as long as two neighbours are apart stays without one.
        assert gaps.min() >= 1 and gaps.max() <= -(-total // len(places))


def test_whole_windows_are_not_padded(store_of):
    store = store_of(range(32))  # ten whole windows of 3, and one token left
    rows = whole_windows(store, context=3, count=2)
    assert rows.tolist() == [[6, 7, 8, 9], [21, 22, 23, 24]]
    assert whole_windows(store, context=3, count=99)[:, 0].tolist() == list(range(0, 30, 3))
    assert whole_windows(store, context=31, count=5).shape == (1, 32)


@pytest.mark.fault("T3")
def test_windows_with_nothing_to_predict_are_refused(store_of):
    with pytest.raises(DataError, match="validation has 1 tokens"):
        evaluation_windows(store_of([3]), context=4)
    with pytest.raises(IndexError):
        evaluation_windows(store_of([3, 4]), context=4).rows(0, 2)
