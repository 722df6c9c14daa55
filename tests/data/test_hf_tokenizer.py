"""Tokenizers of Hugging Face: the byte law, the ids of transformers, and files that are not one."""

import json
import pickle
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import transformers
from tokenizers import decoders, normalizers, pre_tokenizers, processors

from sparsecl.checkpoint.hf_tokenizer import write_tokenizer
from sparsecl.data import given_tokenizer
from sparsecl.data.config import TokenizerConfig
from sparsecl.data.hf_tokenizer import read_hf
from sparsecl.data.tokenizer import check_document
from sparsecl.errors import DataError, MissingInputError, UserError
from tests.data.test_tokenizer import HARD

END = "<|endoftext|>"
KINDS = ("gpt2", "qwen2", "llama2", "metaspace")


def real_text():
    root = Path(sysconfig.get_path("stdlib"))
    names = ("json/decoder.py", "heapq.py", "gzip.py", "textwrap.py", "this.py")
    return [(root / name).read_text() for name in names]


def build(kind):
    """A tokenizer as that family has it, trained on Python's own sources."""
    over_bytes = kind in ("gpt2", "qwen2")
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE(byte_fallback=not over_bytes, unk_token=None if over_bytes else "<u>")
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet() if over_bytes else []
    specials = [END, "<|im_start|>"]
    if not over_bytes:
        specials = ["<u>", *specials, *(f"<0x{byte:02X}>" for byte in range(256))]
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind == "gpt2":
        made.pre_tokenizer = level
    elif kind == "qwen2":
        made.normalizer = normalizers.NFC()
        made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), level])
    elif kind == "llama2":
        parts = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        made.normalizer = normalizers.Sequence(parts)
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=900, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(real_text(), trainer)
    if over_bytes:
        made.decoder = decoders.ByteLevel()
        made.post_processor = processors.ByteLevel(trim_offsets=False)
        made.add_tokens(["<tool>"])  # a token of its own, and no special one
    else:
        spec = json.loads(made.to_str())
        # Training takes the byte pieces for special ones, which nothing encodes to.
        spec["added_tokens"] = [t for t in spec["added_tokens"] if not t["content"][:3] == "<0x"]
        made = tokenizers.Tokenizer.from_str(json.dumps(spec))
        made.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
    return made


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        build(kind).save(str(folder / "tokenizer.json"))
        settings = {"eos_token": END, "tokenizer_class": "PreTrainedTokenizerFast"}
        settings["auto_map"] = {"AutoTokenizer": ["code.py", None]}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        found[kind] = folder
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_text_comes_back_byte_for_byte(folders, kind):
    found = read_hf(folders[kind])
    for text in [*HARD, *real_text(), f"a{END}b<|im_start|> <tool> <0x41>", "\u2581 \u2581\u2581"]:
        ids = found.encode(text)
        check_document(found, ids, len(text.encode()))
        assert found.decode(ids) == text
        assert found.eot_id not in ids
    assert found.decode(np.array([found.eot_id])) == ""
    assert found.bytes_per_token[found.eot_id] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_transformers(folders, kind):
    found = read_hf(folders[kind])
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folders[kind] / "tokenizer.json"), eos_token=END
    )
    assert found.eot_id == theirs.eos_token_id
    for text in real_text():
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        if kind == "llama2":  # theirs puts a space before the text
            assert ids == found.encode(" " + text).tolist()
        else:
            assert ids == found.encode(text).tolist()
    notes = {"llama2": "a space before each text", "qwen2": "NFC"}
    assert [note for note in found.notes if notes.get(kind, "none") in note] == list(found.notes)
    assert bool(found.notes) is (kind in notes)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_kept_and_goes_out_as_it_came(folders, kind, tmp_path):
    first = read_hf(folders[kind])
    first.save(tmp_path)
    again = given_tokenizer.load(tmp_path)
    named = given_tokenizer.given(TokenizerConfig(kind="hf", path=str(folders[kind])))
    copy = pickle.loads(pickle.dumps(first))  # as a process that encodes has it
    text = f"{real_text()[0]}{END}"
    for other in (again, named, copy):
        assert other is not None and other.digest == first.digest
        assert other.encode(text).tolist() == first.encode(text).tolist()
    (tmp_path / "out").mkdir()
    assert write_tokenizer(first, tmp_path / "out", context=16) is None
    name = "tokenizer.json"
    assert (tmp_path / "out" / name).read_bytes() == (folders[kind] / name).read_bytes()
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert settings["eos_token"] == END and "auto_map" not in settings


def test_rows_above_the_tokenizers_ids_are_ids_of_no_text(folders, tmp_path):
    for path in folders["gpt2"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    plain = read_hf(tmp_path)
    (tmp_path / "config.json").write_text('{"vocab_size": 1024}')
    found = read_hf(tmp_path)
    assert plain.vocab_size < found.vocab_size == len(found.bytes_per_token) == 1024
    assert found.digest != plain.digest and found.decode(np.array([1023])) == ""


@pytest.mark.parametrize(
    ("files", "id_of"),
    [
        ({"special_tokens_map.json": {"eos_token": {"content": END}}}, END),
        ({"config.json": {"eos_token_id": 1}}, "<|im_start|>"),
        ({"config.json": {"eos_token_id": [1, 0]}}, "<|im_start|>"),
    ],
)
def test_where_the_end_of_text_may_be_named(folders, tmp_path, files, id_of):
    (tmp_path / "tokenizer.json").write_bytes((folders["gpt2"] / "tokenizer.json").read_bytes())
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    found = read_hf(tmp_path)
    assert found.eot_id == tokenizers.Tokenizer.from_file(
        str(tmp_path / "tokenizer.json")
    ).token_to_id(id_of)


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({}, {}, "names no end-of-text token.*write eos_token in"),
        ({}, {"eos_token": "<none>"}, "eos_token='<none>' is no token"),
        ({}, {"eos_token": "<tool>"}, "which text can encode to"),
        ({"model": {"type": "WordPiece"}}, None, "model.type='WordPiece' cannot keep every text"),
        ({"model": 3}, None, "model.type=None"),
        ({"normalizer": {"type": "Lowercase"}}, None, "normalizer 'Lowercase' changes text"),
        ({"pre_tokenizer": None, "decoder": None}, None, "neither ByteLevel nor byte_fallback"),
        ({"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}, None, "is no tokenizer"),
    ],
)
def test_what_cannot_be_used_is_one_line(folders, tmp_path, change, settings, message):
    spec = json.loads((folders["gpt2"] / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**spec, **change}))
    settings = {"eos_token": END} if settings is None else settings
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(DataError, match=message) as caught:
        read_hf(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{" * 100_000, "\xff", "{}"])
def test_a_file_that_is_no_tokenizer(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError):
        read_hf(tmp_path)


def test_what_a_config_may_say(tmp_path):
    with pytest.raises(MissingInputError, match="holds no tokenizer.json"):
        read_hf(tmp_path)
    for fields, message in (
        ({"kind": "hf"}, "path is missing"),
        ({"kind": "bytes", "path": "x"}, "path='x' has no meaning with kind: bytes"),
        ({"kind": "hf", "path": "x", "model": "m"}, "model='m' has no meaning with kind: hf"),
    ):
        with pytest.raises(ValueError, match=message):
            TokenizerConfig(**fields)


def test_a_rule_that_loses_text_is_told_by_the_bytes(folders, tmp_path):
    spec = json.loads((folders["gpt2"] / "tokenizer.json").read_text())
    strip = {"type": "Replace", "pattern": {"String": "e"}, "content": ""}
    (tmp_path / "tokenizer.json").write_text(json.dumps({**spec, "normalizer": strip}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}))
    found = read_hf(tmp_path)
    with pytest.raises(UserError, match="tokenizer.path changes text.*byte_fallback"):
        check_document(found, found.encode("here"), 4)
