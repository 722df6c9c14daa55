"""Every token stands for a known number of bytes, and text survives."""

import gzip
import inspect
import json
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from sparsecl.data import given_tokenizer, tokenizer, tokenizer_training
from sparsecl.errors import DataError, MissingInputError, UserError

CORPORA = Path(__file__).resolve().parents[3] / "shared" / "corpora"

HARD = [
    "",
    " ",
    "\n\n\t  x  \r\n",
    " leading and trailing  ",
    "<unk> <|endoftext|> </s> <0x41> <s>",
    "\u2581 \u2581a\u2581\u2581 b \u2581",  # SentencePiece's own mark for a space
    "\u2585 \u2047 \ufffd \ufeff \u00a0\u3000\u2028",
    "e\u0301 \u00e9 \ufb01 \u212b",  # would change under NFC or NFKC
    "caf\u00e9 \u4f60\u597d \U0001f600\U0001f468\u200d\U0001f469",
    "a\0b",
]


def real_text():
    """Source text of a few standard modules; varied, and the same for a Python version."""
    root = Path(sysconfig.get_path("stdlib"))
    return [(root / name).read_text() for name in ("json/decoder.py", "heapq.py", "gzip.py")]


@pytest.fixture(scope="module")
def trained():
    return tokenizer_training.train(real_text(), 600)


@pytest.fixture(params=["bytes", "sentencepiece"])
def any_tokenizer(request, trained):
    return tokenizer.BytesTokenizer() if request.param == "bytes" else trained


@pytest.mark.parametrize("text", HARD)
def test_hard_text_survives_and_bytes_add_up(any_tokenizer, text):
    check_law(any_tokenizer, text)


def test_real_text_survives_and_bytes_add_up(any_tokenizer):
    for text in real_text():
        check_law(any_tokenizer, text)


@pytest.mark.skipif(not CORPORA.is_dir(), reason="the shared corpora are not here")
@pytest.mark.parametrize("name", ["code", "math", "medical", "legal", "dialogue"])
def test_other_domains_survive_and_bytes_add_up(any_tokenizer, name):
    with gzip.open(CORPORA / name / "train.jsonl.gz", "rt") as file:
        for line, _ in zip(file, range(20), strict=False):
            check_law(any_tokenizer, json.loads(line)["text"])


def check_law(any_tokenizer, text):
    ids = any_tokenizer.encode(text)
    assert any_tokenizer.bytes_per_token[ids].sum() == len(text.encode())
    assert any_tokenizer.decode(ids) == text
    assert any_tokenizer.eot_id not in ids
    assert ids.dtype == np.int64 and (ids < any_tokenizer.vocab_size).all()
    tokenizer.check_document(any_tokenizer, ids, len(text.encode()))


def test_bytes_by_hand():
    plain = tokenizer.BytesTokenizer()
    assert plain.encode("a\u00e9").tolist() == [97, 0xC3, 0xA9]
    assert (plain.vocab_size, plain.eot_id, plain.bytes_per_token[256]) == (257, 256, 0)
    assert plain.decode(np.array([97, 256, 98, 0xC3])) == "ab\ufffd"


def test_markers_stand_for_no_bytes(trained):
    assert trained.bytes_per_token[trained.eot_id] == 0
    assert trained.bytes_per_token.shape == (600,)
    # Unknown and end-of-text only.
    assert (trained.bytes_per_token == 0).sum() == 2


def test_training_compresses_and_repeats_exactly(trained):
    text = real_text()[0]
    assert len(trained.encode(text)) < 0.6 * len(text.encode())
    assert tokenizer_training.train(real_text(), 600).digest == trained.digest
    assert tokenizer_training.train(real_text(), 601).digest != trained.digest


def test_save_and_load(any_tokenizer, tmp_path):
    any_tokenizer.save(tmp_path)
    again = given_tokenizer.load(tmp_path)
    assert again.digest == any_tokenizer.digest and again.kind == any_tokenizer.kind
    assert again.encode("def f(x):").tolist() == any_tokenizer.encode("def f(x):").tolist()


def test_a_vocabulary_that_does_not_fit_names_the_limit():
    texts = ["one two three " * 20]
    with pytest.raises(UserError, match=r"tokenizer.vocab_size=9000: .*use (\d+) or less") as error:
        tokenizer_training.train(texts, 9000)
    largest = int(str(error.value).split("use ")[1].split()[0])
    assert tokenizer_training.train(texts, largest).vocab_size == largest
    letters = ["".join(chr(0x4E00 + i) for i in range(500))]
    with pytest.raises(UserError, match=r"tokenizer.vocab_size=300: the characters .* need \d+"):
        tokenizer_training.train(letters, 300)
    with pytest.raises(UserError, match=r"tokenizer.vocab_size=300"):
        tokenizer_training.train([], 300)


def test_sentences_keep_all_text_in_bounded_pieces():
    text = "a line\n" * 1000 + "x" * 5000 + "\tend"
    pieces = list(tokenizer_training._sentences([text]))
    assert "".join(pieces) == text.replace("\t", "    ")
    assert max(map(len, pieces)) <= 2000


def model_bytes(**options):
    """A model trained with settings of somebody else."""
    import io

    out = io.BytesIO()
    words = [" ".join(inspect.getdoc(list.sort).split())] * 30
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words), model_writer=out, model_type="bpe", minloglevel=2, **options
    )
    return out.getvalue()


def test_a_model_that_changes_text_is_refused(tmp_path):
    path = tmp_path / "other.model"
    path.write_bytes(model_bytes(vocab_size=300, byte_fallback=True))
    prefixed = tokenizer.read_model(path)
    with pytest.raises(DataError, match="tokenizer.model changes text .5 bytes became 6."):
        tokenizer.check_document(prefixed, prefixed.encode("other"), 5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"junk" * 100, "no SentencePiece model"),
        (lambda: model_bytes(vocab_size=40), "the model has no byte pieces"),
        (
            lambda: model_bytes(vocab_size=300, byte_fallback=True, eos_id=-1),
            "the model has no end-of-sentence piece",
        ),
    ],
)
def test_unusable_models_are_named(tmp_path, content, message):
    path = tmp_path / "m.model"
    path.write_bytes(content if isinstance(content, bytes) else content())
    with pytest.raises(DataError, match=f"tokenizer.model=.*m.model: {message}"):
        tokenizer.read_model(path)


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(MissingInputError, match="tokenizer.model=.*none.model: No such file"):
        tokenizer.read_model(tmp_path / "none.model")


@pytest.mark.fault("T6")
def test_a_swapped_model_is_refused(trained, tmp_path):
    trained.save(tmp_path)
    other = tokenizer_training.train(real_text(), 601)
    (tmp_path / "tokenizer.model").write_bytes(other._model)
    with pytest.raises(DataError, match="digest is .*, tokenizer.json says"):
        given_tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[1, 2]")
    with pytest.raises(DataError, match="no tokenizer description"):
        given_tokenizer.load(tmp_path)
    with pytest.raises(MissingInputError, match="holds no tokenizer"):
        given_tokenizer.load(tmp_path / "absent")


def test_a_model_is_read_through_a_link_to_any_name(tmp_path, trained):
    trained.save(tmp_path)
    (tmp_path / "tokenizer.model").rename(tmp_path / "3af1")
    (tmp_path / "own.model").symlink_to("3af1")
    for name in ("own.model", "3af1"):  # its content tells what it is, not its name
        assert tokenizer.read_model(tmp_path / name).digest == trained.digest
