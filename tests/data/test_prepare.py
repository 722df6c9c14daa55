"""From a config to tokens: the whole way, and what happens when it is disturbed."""

import json
import math
import multiprocessing
import os
import signal
from dataclasses import replace

import numpy as np
import pytest

from sparsecl.data import tokenize
from sparsecl.data.config import DataConfig, DomainConfig, SyntheticConfig, TokenizerConfig
from sparsecl.data.prepare import find_inputs, prepare
from sparsecl.data.text_store import TextWriter
from sparsecl.data.token_store import dtype_name
from sparsecl.errors import DataError, MissingInputError
from tests.data.stores import all_tokens, reseal
from tests.events import HANG

BYTES = TokenizerConfig(kind="bytes")
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_corpus(name, count=300):
    """Word salad of `name`, `count` documents."""
    rng = np.random.default_rng(sum(map(ord, name)))
    words = ["".join(rng.choice(list("abcdefghij\u00e9 "), size=5)) for _ in range(200)]
    with open(f"{name}.jsonl", "w") as file:
        for i in range(count):
            text = f"{name} {i}: " + " ".join(rng.choice(words, size=20))
            file.write(json.dumps({"text": text}) + "\n")
    return DomainConfig(name=name, source="files", train=(f"{name}.jsonl",))


def config(*domains, **options):
    return DataConfig(domains=domains, cache_dir="cache", validation_share=0.2, **options)


def run(data, tokenizer=BYTES, **options):
    return prepare(data, tokenizer, **({"context": 16, "seed": 0} | options))


@pytest.mark.parametrize("tokenizer", [BYTES, TokenizerConfig(vocab_size=400)])
def test_tokens_are_the_documents_and_an_end_of_text_after_each(tokenizer):
    prepared = run(config(write_corpus("one")), tokenizer)
    (domain,) = prepared.domains
    vocabulary = prepared.tokenizer
    documents = [json.loads(line)["text"] for line in open("one.jsonl")]
    found = []
    for store in (domain.train, domain.validation):
        tokens = all_tokens(store)
        ends = np.flatnonzero(tokens == vocabulary.eot_id)
        parts = np.split(tokens, ends + 1)
        assert len(parts.pop()) == 0 and len(parts) == store.num_documents
        found += [vocabulary.decode(part) for part in parts]
        assert vocabulary.bytes_per_token[tokens].sum() == store.num_bytes
    assert sorted(found) == sorted(documents)
    assert domain.validation.num_documents > 20
    assert domain.entropy_rate is None


def test_a_second_call_reads_what_the_first_has_built(monkeypatch):
    data = config(write_corpus("one"), write_corpus("two"))
    first = run(data, TokenizerConfig(vocab_size=400))
    monkeypatch.setattr("sparsecl.data.cache._build", None)  # a build would fail
    again = run(data, TokenizerConfig(vocab_size=400))
    assert again.fingerprint == first.fingerprint
    assert again.tokenizer.digest == first.tokenizer.digest


def test_the_fingerprint_is_of_content_alone(here):
    one, two = write_corpus("one"), write_corpus("two")
    fingerprint = run(config(one, two)).fingerprint
    os.utime("one.jsonl", ns=(1, 1))
    assert run(config(one, two)).fingerprint == fingerprint
    elsewhere = replace(config(one, two), cache_dir="elsewhere")
    assert run(elsewhere, seed=5).fingerprint == fingerprint
    assert run(config(two, one)).fingerprint != fingerprint
    write_corpus("one", count=301)
    assert run(config(one, two)).fingerprint != fingerprint


def test_the_order_of_phases_does_not_change_the_tokenizer():
    one, two = write_corpus("one"), write_corpus("two")
    config_400 = TokenizerConfig(vocab_size=400)
    digest = run(config(one, two), config_400).tokenizer.digest
    assert run(config(two, one), config_400).tokenizer.digest == digest


def test_processes_give_the_same_tokens(monkeypatch):
    data = config(write_corpus("one"))
    alone = run(replace(data, cache_dir="alone")).fingerprint
    monkeypatch.setattr(tokenize, "_BYTES_WORTH_A_POOL", 0)
    monkeypatch.setattr(tokenize, "_SPAN_CHARACTERS", 1000)
    assert run(replace(data, workers=2)).fingerprint == alone


def test_a_given_model_is_used_as_it_is(here):
    data = config(write_corpus("one"))
    first = run(data, TokenizerConfig(vocab_size=400))
    (model,) = here.glob("cache/tokenizers/*/tokenizer.model")
    given = run(data, TokenizerConfig(model=str(model)))
    assert given.fingerprint == first.fingerprint


@pytest.mark.parametrize("kind", ["markov", "grammar"])
def test_the_rate_of_a_synthetic_domain_is_per_token(kind):
    synthetic = SyntheticConfig(kind=kind, train_tokens=3000, validation_tokens=500)
    domain = DomainConfig(name="s", source="synthetic", synthetic=synthetic)
    (data,) = run(config(domain)).domains
    assert data.train.num_documents == data.validation.num_documents == 1
    assert data.train.num_tokens == 3001  # one end-of-text, the last token
    assert data.entropy_rate == data.manifest["text"]["entropy_per_byte"]
    assert data.entropy_rate is not None and 0 < data.entropy_rate < math.log(62)
    pieces = run(config(domain), TokenizerConfig(vocab_size=300)).domains[0]
    assert pieces.entropy_rate is not None and pieces.entropy_rate > data.entropy_rate


@pytest.mark.fault("T3")
@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        (300, {"context": 10**6}, r"domain one: train has \d+ tokens, .* needs 1000001"),
        (10, {"context": 600}, r"domain one: validation has \d+ tokens, .* context 600 needs 601"),
        (
            2,
            {},
            "domain one: (train|validation) has no documents .2 in all"
            "(?!.*max_document_bytes).* a separator",
        ),
    ],
)
def test_short_domains_are_named(size, options, message):
    with pytest.raises(DataError, match=message):
        run(config(write_corpus("one", size)), **options)


def test_what_was_passed_over_is_said_once_and_kept(capsys):
    domain = replace(write_corpus("one"), train=("*.jsonl",), separator="|", on_bad_row="skip")
    with open("one.jsonl", "a") as file:
        file.write('{"text": null}\n' * 3)
    open("two.jsonl", "w").close()
    said = [
        "bad rows left out: 3, the first: one.jsonl:301: field 'text' must be text, got NoneType",
        "files without text passed over: 1, the first: two.jsonl",
        "separator: '|' never occurs in its plain text files",
    ]
    first = run(config(domain)).domains[0].manifest["text"]
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"sparsecl: warning: domain one: {line}" for line in said]
    assert first["remarks"] == {"bad_rows": 3, "empty_files": 1, "warnings": said}
    again = run(config(domain)).domains[0].manifest["text"]
    assert again == first and not capsys.readouterr().err


@pytest.mark.parametrize("second_name", ["one.jsonl", "./*.jsonl", "link.jsonl", "hard.jsonl"])
def test_a_file_on_both_sides_is_named_before_any_work(here, second_name):
    domain = replace(write_corpus("one"), validation=(second_name,))
    os.symlink("one.jsonl", "link.jsonl")
    os.link("one.jsonl", "hard.jsonl")
    with pytest.raises(DataError, match="domain one: train: .*one.jsonl is its validation too"):
        run(config(domain))
    assert not (here / "cache").exists()


def test_a_file_that_another_domain_holds_out_is_named_before_any_work(here):
    one, two = write_corpus("one"), replace(write_corpus("two"), validation=("one.jsonl",))
    for domains in ((one, two), (two, one)):
        with pytest.raises(DataError, match="domain one: train: .* is validation of domain two"):
            run(config(*domains))
    assert not (here / "cache").exists()


def test_what_is_missing_is_found_without_reading_text(monkeypatch):
    monkeypatch.setattr("sparsecl.data.sources.files.read_documents", None)
    good = write_corpus("one")
    find_inputs(config(good), BYTES, seed=0)
    gone = DomainConfig(name="two", source="files", train=("two.jsonl",))
    with pytest.raises(MissingInputError, match="domain two: train: two.jsonl: No such"):
        find_inputs(config(good, gone), BYTES, seed=0)
    with pytest.raises(MissingInputError, match="tokenizer.model=no.model: No such file"):
        find_inputs(config(good), TokenizerConfig(model="no.model"), seed=0)


@pytest.mark.fault("T2")
def test_a_truncated_or_changed_token_file_is_refused(here):
    data = config(write_corpus("one"))
    run(data)
    (path,) = here.glob("cache/tokens/*/train.tokens")
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    with pytest.raises(DataError, match=r"train.tokens: \d+ bytes, the manifest says \d+; delete"):
        run(data)
    path.write_bytes(b"\1\1" + good[2:])
    run(data, verify=False)  # the size is right: only the full check can tell
    with pytest.raises(DataError, match="train.tokens: its sha256 is not the manifest's"):
        run(data)
    path.unlink()
    with pytest.raises(DataError, match="train.tokens: missing"):
        run(data)


@pytest.mark.fault("T2", "T5")
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokenizer", "0" * 64, "tokens are of tokenizer 000000000000, the run has"),
        ("dtype", "object", "the manifest lacks 'object'"),
        ("train", {}, "the manifest lacks 'tokens'"),
    ],
)
def test_a_changed_manifest_is_refused(here, key, value, message):
    data = config(write_corpus("one"))
    run(data)
    (path,) = here.glob("cache/tokens/*/manifest.json")
    reseal(path, lambda manifest: manifest.update({key: value}))
    with pytest.raises(DataError, match=message):
        run(data)


@pytest.mark.fault("T5")
def test_ids_beyond_the_vocabulary_are_refused_at_open(here):
    data = config(write_corpus("one"))
    run(data)
    (path,) = here.glob("cache/tokens/*/manifest.json")
    reseal(path, lambda manifest: manifest["train"].update(max_token=257))
    with pytest.raises(DataError, match="train.tokens: token id 257 >= vocab_size 257"):
        run(data)


def test_the_stored_type_fits_the_vocabulary():
    assert [dtype_name(n) for n in (257, 65536, 65537)] == ["uint16", "uint16", "uint32"]


def prepare_here(folder, result):
    os.chdir(folder)
    domains = [DomainConfig(name=n, source="files", train=(f"{n}.jsonl",)) for n in ("one", "two")]
    prepared = prepare(config(*domains), TokenizerConfig(vocab_size=400), context=16, seed=0)
    result.put(prepared.fingerprint)


def prepare_until_two(folder, held):
    """Come as far as some text of the second domain, and wait to be killed."""
    real = TextWriter.append

    def append(writer, document, *marks):
        real(writer, document, *marks)
        if document.startswith(b"two 99:"):
            held.set()
            signal.pause()

    TextWriter.append = append
    prepare_here(folder, None)


def test_two_processes_at_once_give_one_result(here):
    write_corpus("one")
    write_corpus("two")
    result = SPAWN.Queue()
    processes = [SPAWN.Process(target=prepare_here, args=(here, result)) for _ in range(2)]
    for process in processes:
        process.start()
    fingerprints = {result.get(timeout=HANG) for _ in processes}
    for process in processes:
        process.join(HANG)
        assert process.exitcode == 0
    assert len(fingerprints) == 1
    for name in ("one", "two"):
        assert len(list(here.glob(f"cache/tokens/{name}-*"))) == 1
    assert not list(here.rglob("*.tmp"))


def test_a_killed_preparation_starts_again_where_it_was(here):
    write_corpus("one", 300)
    write_corpus("two", 300)
    result, held = SPAWN.Queue(), SPAWN.Event()
    process = SPAWN.Process(target=prepare_until_two, args=(here, held))
    process.start()
    assert held.wait(HANG)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    (kept,) = here.glob("cache/text/one-*")
    assert list(here.glob("cache/text/.two-*.tmp")) and not list(here.glob("cache/text/two-*"))
    before = kept.stat().st_mtime_ns
    prepare_here(here, result)
    assert kept.stat().st_mtime_ns == before
    again = replace(config(write_domain("one"), write_domain("two")), cache_dir="other")
    assert run(again, TokenizerConfig(vocab_size=400)).fingerprint == result.get(timeout=HANG)


def write_domain(name):
    return DomainConfig(name=name, source="files", train=(f"{name}.jsonl",))
