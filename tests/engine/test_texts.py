"""Which validation text a run scores, by hand."""

from types import SimpleNamespace

import pytest

from sparsecl.engine.run_config import EvalConfig
from sparsecl.engine.texts import all_text, evaluation_texts, text_digest, text_sizes
from tests.data.stores import token_store

END = 999


@pytest.fixture
def domain_of(tmp_path):
    def make(lengths, name="a"):
        """Documents of so many tokens, the end-of-text counted."""
        tokens = [token for n in lengths for token in (*range(n - 1), END)]
        return SimpleNamespace(name=name, validation=token_store(tmp_path / name, tokens))

    return make


def texts(domain, **config):
    return evaluation_texts(EvalConfig(**config), [domain], context=3)


def test_documents_windows_and_tokens_are_counted(domain_of):
    """Ten documents of 6 tokens: windows of 3 predict 1-3, 4-6, 7-9, .. up to 58-59."""
    found = texts(domain_of([6] * 10), tokens=12, end_tokens=30)["a"]
    # Windows 2, 7, 12, 17 predict 7-9 (document 1), 22-24 (3, 4), 37-39 (6), 52-54 (8, 9).
    assert found.inside.chosen.tolist() == [2, 7, 12, 17]
    sizes = text_sizes(found, END)
    assert sizes["inside"] == {"documents": 6, "windows": 4, "tokens": 12}
    assert sizes["ends"] == {"documents": 10, "windows": 10, "tokens": 29}  # the last is cut
    assert sizes["all"] == {"documents": 10, "windows": 20, "tokens": 59}


def test_a_document_of_several_windows_counts_once(domain_of, monkeypatch):
    monkeypatch.setattr("sparsecl.engine.texts.SCANNED", 7)  # read in pieces
    found = texts(domain_of([40, 2, 2, 16]), tokens=12, end_tokens=None)["a"]
    # Windows 2, 7, 12 lie in the first document, 17 predicts 52-54 of the last.
    assert text_sizes(found, END)["inside"] == {"documents": 2, "windows": 4, "tokens": 12}
    assert text_sizes(found, END)["ends"]["documents"] == 4


def test_scores_that_results_stand_on_have_no_less_text(domain_of):
    domain = domain_of([6] * 10)
    assert len(texts(domain, tokens=30, end_tokens=3)["a"].ends) == 10
    assert all_text(texts(domain, tokens=None, end_tokens=3))
    assert not all_text(texts(domain, tokens=30, end_tokens=None))
    assert all_text(texts(domain, tokens=59, end_tokens=59))


def test_the_digest_tells_other_windows(domain_of):
    domain = domain_of([6] * 10)
    one = text_digest(texts(domain, tokens=12, end_tokens=30))
    assert one == text_digest(texts(domain, tokens=10, end_tokens=29))  # the same windows
    assert one != text_digest(texts(domain, tokens=13, end_tokens=30))
    assert one != text_digest(texts(domain, tokens=12, end_tokens=31))
    assert one != text_digest(texts(domain_of([6] * 11), tokens=12, end_tokens=30))
