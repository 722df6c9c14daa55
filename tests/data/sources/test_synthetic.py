"""Synthetic sources: the rate that is claimed is the rate of the text."""

import collections
import math

import numpy as np
import pytest

from sparsecl.data.config import DomainConfig, SyntheticConfig
from sparsecl.data.sources import open_source
from sparsecl.data.sources.synthetic import Grammar, Markov, stationary
from sparsecl.errors import UserError
from sparsecl.seeding import stream


def source(seed=0, name="d", **values):
    config = SyntheticConfig(**values)
    domain = DomainConfig(name=name, source="synthetic", synthetic=config)
    return open_source(domain, seed=seed, max_document_bytes=1000)


def test_a_two_letter_chain_by_hand():
    # P(a -> b) = 1/4, P(b -> a) = 1/2: stationary (2/3, 1/3).
    rows = np.array([[0.75, 0.25], [0.5, 0.5]])
    assert stationary(rows, 1) == pytest.approx([2 / 3, 1 / 3], abs=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_stationary_distribution_stays(order):
    law = Markov(SyntheticConfig(num_symbols=4, order=order), stream(0, "law"))
    moved = np.zeros_like(law.stationary)
    for context, row in enumerate(law.rows):
        for symbol, p in enumerate(row):
            moved[(context * 4 + symbol) % 4**order] += law.stationary[context] * p
    assert moved == pytest.approx(law.stationary, abs=1e-11)
    assert 0 < law.entropy_rate < math.log(4)


@pytest.mark.parametrize("order", [1, 2])
def test_the_true_law_has_the_claimed_loss_on_the_text(order):
    law = Markov(SyntheticConfig(num_symbols=5, order=order), stream(0, "law"))
    text = law.draw(200_000, stream(0, "text"))
    ids = np.array([ord(c) - ord("a") for c in text])
    contexts = sum(ids[i : len(ids) - order + i] * 5 ** (order - 1 - i) for i in range(order))
    losses = -np.log(law.rows[contexts, ids[order:]])
    # Standard error of the mean is about 0.002 to 0.004 with the chain's correlation.
    assert losses.mean() == pytest.approx(law.entropy_rate, abs=0.015)


def test_the_grammar_has_the_claimed_rate():
    law = Grammar(SyntheticConfig(kind="grammar", num_symbols=6), stream(0, "law"))
    text = law.draw(400_000, stream(0, "text"))
    sentences = text.splitlines()[:-1]
    counts = collections.Counter(sentences)
    shares = np.array(list(counts.values())) / len(sentences)
    # Empirical entropy of a sentence over its mean length; at most 6**3 sentences, so the
    # downward bias (kinds - 1) / (2 n) is below 0.005 nats per sentence.
    rate = -(shares * np.log(shares)).sum() / np.mean([len(s) + 1 for s in sentences])
    assert rate == pytest.approx(law.entropy_rate, rel=0.02)
    assert all(len(s.split()) == 3 and s.endswith(".") for s in sentences)


def test_lengths_and_repeatability():
    one, again = (
        source(train_tokens=1000, validation_tokens=100),
        source(train_tokens=1000, validation_tokens=100),
    )
    (train,), (validation,) = list(one.texts("train")), list(one.texts("validation"))
    assert (len(train), len(validation)) == (1000, 100)
    assert list(again.texts("train")) == [train] and train[:100] != validation
    assert one.atomic and one.has_validation


def test_the_run_seed_counts_only_where_asked_for():
    assert source(seed=1).key == source(seed=2).key
    config = SyntheticConfig(seed=None)
    domain = DomainConfig(name="d", source="synthetic", synthetic=config)
    keys = [open_source(domain, seed=s, max_document_bytes=1).key["seed"] for s in (1, 2)]
    assert keys == [1, 2]


def test_domains_of_other_names_are_other_sources():
    assert source(name="a").entropy_rate != source(name="b").entropy_rate


def test_a_chain_that_hardly_moves_is_refused():
    stuck = np.array([[1 - 1e-5, 1e-5], [3e-5, 1 - 3e-5]])
    with pytest.raises(UserError, match="synthetic.concentration is so small"):
        stationary(stuck, 1)
