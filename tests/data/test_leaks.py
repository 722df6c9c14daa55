"""Nothing that one domain holds out is trained on in any domain, and what is left is counted."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sparsecl.data import tokenizer_training
from sparsecl.data.config import DataConfig, DomainConfig, TokenizerConfig
from sparsecl.data.identity import document_digest
from sparsecl.data.prepare import prepare
from sparsecl.errors import DataError
from tests.data.stores import all_tokens

BYTES = TokenizerConfig(kind="bytes")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name, texts):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    Path(name).write_text(lines)
    return (name,)


def domain(name, train, validation=()):
    return DomainConfig(
        name=name,
        source="files",
        train=write(f"{name}.jsonl", train),
        validation=write(f"{name}.held.jsonl", validation) if validation else (),
    )


def run(*domains, tokenizer=BYTES, **options):
    values = {"cache_dir": "cache", "max_document_bytes": 1000} | options
    found = prepare(DataConfig(domains=domains, **values), tokenizer, context=4, seed=0)
    return {part.name: part for part in found.domains}


def texts(store):
    """Documents of a store of kind bytes."""
    parts = bytes(token if token < 256 else 0 for token in all_tokens(store)).split(b"\0")
    return [part.decode() for part in parts if part]


def texts_of(name, count=40):
    return [f"{name} document number {n}" for n in range(count)]


def test_what_another_domain_holds_out_is_not_trained_on():
    shared = ["Shared text one", "Shared text two."]
    one = domain("one", [*texts_of("one"), "shared  TEXT, one", "own held out!"], ["Own held out"])
    two = domain("two", [*texts_of("two"), "shared text two"], [*shared, "held out of two"])
    found = run(one, two)
    assert texts(found["one"].train) == texts_of("one")
    assert texts(found["two"].train) == texts_of("two")
    assert texts(found["two"].validation) == [*shared, "held out of two"]
    parts = {name: part.manifest["leaks"]["left_out"] for name, part in found.items()}
    assert (parts["one"]["documents"], parts["one"]["by"]) == (2, {"one": 1, "two": 1})
    assert (parts["two"]["documents"], parts["two"]["by"]) == (1, {"two": 1})


def test_domains_that_are_parted_by_digest():
    # The same 300 documents, in another order and case: in one's validation are two's too.
    common = texts_of("common", 300)
    one = domain("one", [*common, *texts_of("one")])
    two = domain("two", [text.upper() + " !" for text in reversed(common)] + texts_of("two"))
    three = domain("three", [f"{text}." for text in common[:50]] + texts_of("three"), ["held out"])
    found = run(one, two, three)
    held_out = {document_digest(t) for part in found.values() for t in texts(part.validation)}
    trained = {document_digest(t) for part in found.values() for t in texts(part.train)}
    assert not held_out & trained
    assert found["three"].manifest["leaks"]["left_out"]["documents"] > 0
    assert found["one"].manifest["leaks"]["left_out"]["documents"] == 0  # equal digest, equal side


def long_text(name, lines):
    return "".join(f"line {line} of {name}\n" for line in range(lines))


def test_a_long_document_is_left_out_however_it_is_cut():
    document = long_text("a book", 120)
    one = domain("one", [*texts_of("one"), "  \n" * 60 + document], ["held out"])
    two = domain("two", texts_of("two"), [document])
    found = run(one, two)
    assert texts(found["one"].train) == texts_of("one")
    # A piece that is trained on by itself is left out too.
    (first, *_) = texts(found["two"].validation)
    found = run(domain("one", [*texts_of("one"), first], ["held out"]), two)
    assert texts(found["one"].train) == texts_of("one")


def test_a_piece_on_both_sides_of_one_domain_is_not_trained_on():
    same = long_text("the same beginning", 36)
    books = [same + long_text(f"book {n}", 30) for n in range(40)]
    part = run(domain("one", books))["one"]
    assert not set(texts(part.train)) & set(texts(part.validation))
    assert part.manifest["leaks"]["left_out"]["by"] == {"one": 1}


def test_the_tokenizer_does_not_see_what_is_left_out(monkeypatch):
    seen = []
    real = tokenizer_training.train

    def train(found, vocab_size):
        seen.extend(found)
        return real(seen, vocab_size)

    monkeypatch.setattr(tokenizer_training, "train", train)
    one = domain("one", [*texts_of("one"), "secret words"], ["held out"])
    run(
        one,
        domain("two", texts_of("two"), ["Secret words."]),
        tokenizer=TokenizerConfig(vocab_size=290),
    )
    assert len(seen) == 80 and "secret words" not in seen


def test_the_order_of_the_domains_changes_nothing(here):
    one = domain("one", [*texts_of("one"), "shared"], ["held out"])
    two = domain("two", texts_of("two"), ["Shared!"])
    first = run(one, two, tokenizer=TokenizerConfig(vocab_size=290))
    entries = sorted(here.glob("cache/*/[!.]*"))
    again = run(two, one, tokenizer=TokenizerConfig(vocab_size=290))
    assert sorted(here.glob("cache/*/[!.]*")) == entries
    assert {name: part.manifest for name, part in again.items()} == {
        name: part.manifest for name, part in first.items()
    }


def test_a_domain_that_changes_leaves_the_others_text_and_tokens(here):
    one = domain("one", [*texts_of("one"), "shared"], ["held out"])
    two = domain("two", texts_of("two"), ["held out of two"])
    run(one, two)
    run(one, domain("two", texts_of("two"), ["held out of two", "and more"]))
    for group in ("text", "tokens"):
        assert len(list(here.glob(f"cache/{group}/one-*"))) == 1
    found = run(one, domain("two", texts_of("two"), ["SHARED"]))
    assert len(list(here.glob("cache/text/one-*"))) == 1
    assert len(list(here.glob("cache/tokens/one-*"))) == 2
    assert "shared" not in texts(found["one"].train)
    # Alone it is trained on everything again.
    assert "shared" in texts(run(one)["one"].train)


def test_a_domain_of_which_nothing_is_left_is_named():
    two = domain("two", texts_of("two"), [f"{text}." for text in texts_of("one")])
    with pytest.raises(DataError, match="domain one: every document of train .*40 of domain two"):
        run(domain("one", texts_of("one"), ["held out"]), two)


def test_overlap_is_with_the_training_text_of_all_domains():
    words = [f"w{n}" for n in range(40)]
    one = domain("one", texts_of("one"), [" ".join(words[:30]), "short"])
    two = domain("two", [*texts_of("two"), "before " + " ".join(words[10:])], ["held out"])
    found = run(one, two)
    part = found["one"].manifest["leaks"]["overlap"]
    assert part == {"every": 1, "runs": 18, "found": 8, "documents": 1}
    assert found["one"].overlap == pytest.approx(8 / 18)
    assert found["two"].overlap is None
    alone = run(one)["one"]
    assert alone.overlap == 0.0


def test_plain_text_without_separator_is_a_domain():
    Path("a.txt").write_text(long_text("a play", 500))
    single = DomainConfig(name="play", source="files", train=("a.txt",))
    part = run(single, validation_share=0.1)["play"]
    assert "".join(texts(part.train) + texts(part.validation)) == long_text("a play", 500)
    assert (
        0.1 <= part.validation.num_bytes / (part.train.num_bytes + part.validation.num_bytes) < 0.11
    )
    assert part.manifest["leaks"]["left_out"]["documents"] == 0
    capped = run(replace(single, max_train_bytes=4000))["play"]
    assert 3800 <= capped.train.num_bytes < 5000
