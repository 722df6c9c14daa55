"""Runs of 13 words that two texts have."""

import numpy as np
import pytest

from sparsecl.data import ngrams
from sparsecl.data.ngrams import Sample, occurring, runs


def text(first, count):
    return " ".join(f"w{n}" for n in range(first, first + count))


def overlap(held_out, training, **sizes):
    sample = Sample(held_out, sum(len(document) for document in held_out))
    found = sample.counts(occurring(sample.hashes, training))
    assert found["every"] == 1
    return found["runs"], found["found"], found["documents"]


def test_by_hand():
    # 20 words have 8 runs; the training text has 15 of the words, 3 runs, and parts of others.
    held_out = [text(0, 20), text(100, 13), text(200, 12)]
    assert overlap(held_out, [text(0, 15), text(15, 5), text(200, 12)]) == (9, 3, 1)
    assert overlap(held_out, [text(90, 30)]) == (9, 1, 1)
    assert overlap(held_out, [text(-5, 40) + " " + text(95, 30)]) == (9, 9, 2)
    assert overlap(held_out, []) == (9, 0, 0)
    assert overlap([text(0, 12)], [text(0, 12)]) == (0, 0, 0)


def test_case_and_punctuation_make_no_difference_and_order_does():
    held_out = text(0, 13)
    assert overlap([held_out], [held_out.upper().replace(" ", ",\n ")]) == (1, 1, 1)
    assert overlap([held_out], [" ".join(reversed(held_out.split()))]) == (1, 0, 0)
    assert overlap([held_out], [held_out.replace("w3 w4", "w4 w3")]) == (1, 0, 0)


def test_a_run_lies_inside_one_document():
    assert overlap([text(0, 13)], [text(0, 7), text(7, 6)]) == (1, 0, 0)
    assert overlap([text(0, 7), text(7, 6)], [text(0, 13)]) == (0, 0, 0)


@pytest.mark.parametrize("batch", [1, 50, 10**6])
def test_batches_change_nothing(monkeypatch, batch):
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("ab"), size=n)) for n in rng.integers(1, 60, size=80)]
    plain = [
        (tuple(words[i : i + 13]), number)
        for number, words in enumerate(t.split() for t in texts)
        for i in range(len(words) - 12)
    ]
    monkeypatch.setattr(ngrams, "_BATCH_WORDS", batch)
    found = [
        (int(value), int(number))
        for part in runs(texts)
        for value, number in zip(part.hashes, part.documents, strict=True)
    ]
    assert [number for _, number in found] == [number for _, number in plain]
    pairs = {(run, value) for (run, _), (value, _) in zip(plain, found, strict=True)}
    assert len(pairs) == len({run for run, _ in plain}) == len({value for value, _ in found})


def test_of_much_text_an_even_sample_is_looked_for(monkeypatch):
    monkeypatch.setattr(ngrams, "MAX_LOOKED_FOR", 100)
    held_out = [text(1000 * n, 100) for n in range(20)]
    sample = Sample(held_out, sum(map(len, held_out)))
    found = sample.counts(occurring(sample.hashes, held_out[:5]))
    assert sample.every > 1 and 20 <= found["runs"] <= 100
    assert found["found"] / found["runs"] == pytest.approx(0.25, abs=0.03)
    assert found["documents"] == 5
