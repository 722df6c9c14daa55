"""A tokenizer of Hugging Face: tokenizer.json, run by its own library `tokenizers`.

Only data is read: no code of a model, no pickle, nothing from the net. What is not byte-pair
encoding over bytes, or with bytes to fall back on, cannot keep the byte law and is refused.

Differs from transformers' AutoTokenizer: text is never changed. So a normaliser to NFC, and a space
that would be put before a text, are left out, and said; ids differ only in text that is not in NFC
and, with such a space, in the first token. Special tokens in a text are text: only a document's end
becomes end-of-text.
"""

import functools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsecl.data.tokenizer import MAX_MODEL_BYTES, Tokenizer
from sparsecl.errors import DataError, MissingInputError
from sparsecl.files import atomic_open, sha256_text, write_json
from sparsecl.opening import Opener, plain_input

TOKENIZER, SETTINGS, SPECIALS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
CONFIG = "config.json"
FOLDER = "hf"  # in a folder of `Tokenizer.save`, whose own file is a tokenizer.json too
MAX_IDS = 1 << 22  # far above any vocabulary

_MARK = "\u2581"  # stands for a space in vocabularies that come from SentencePiece
_LOSSLESS = ("Replace", "Sequence")
_LEFT_OUT = {
    "NFC": "NFC: text stays as it is written",
    "Prepend": "a space before each text",
}


class HfTokenizer(Tokenizer):
    """A tokenizer.json with what the files beside it say of its special tokens.

    Args:
        files: content by name of TOKENIZER, and of SETTINGS, SPECIALS and CONFIG where they exist.
        name: how messages call it.

    Raises:
        DataError: a file is broken, no end-of-text token is named, or text could be lost.
    """

    kind = "hf"
    remedy = "take a tokenizer over bytes (ByteLevel), or with byte_fallback and no other rules"

    def __init__(self, files: Mapping[str, bytes], *, name: str) -> None:
        self.files, self.name = dict(files), name
        described = {key: _object(content, f"{name}/{key}") for key, content in files.items()}
        spec, self.notes = _exact(described[TOKENIZER], name)
        self._tokenizer = _build(spec, name)
        self.eot_id = _end_of_text(described, self._tokenizer, name)
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = frozenset(i for i, token in added.items() if token.special)
        if self.eot_id not in self._special:
            raise DataError(
                f"{name}: end-of-text is id {self.eot_id}, which text can encode to; it must be "
                f"one of the special added_tokens of {TOKENIZER}"
            )
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        size = described.get(CONFIG, {}).get("vocab_size")
        # A model may have rows for more ids than the tokenizer has; no text encodes to those.
        padded = size if isinstance(size, int) and not isinstance(size, bool) else 0
        self.vocab_size = max(max(vocabulary.values(), default=0) + 1, padded)
        if self.vocab_size > MAX_IDS:
            raise DataError(f"{name}: {self.vocab_size} ids; at most {MAX_IDS} are supported")
        by_level = _has(described[TOKENIZER], "ByteLevel")
        to_bytes = _level_bytes if by_level else _piece_bytes
        self._bytes = [b""] * self.vocab_size
        for token, token_id in vocabulary.items():
            if token_id in added:
                content = b"" if token_id in self._special else added[token_id].content.encode()
                self._bytes[token_id] = content
            else:
                self._bytes[token_id] = to_bytes(token)
        # As SentencePiece does, such a vocabulary writes spaces as U+2581; one that is in the text
        # is told from them by its three bytes.
        self._mark_ids = [] if by_level else [self._byte_id(b, name) for b in _MARK.encode()]
        self.bytes_per_token = np.array([len(b) for b in self._bytes], dtype=np.int32)
        text = json.dumps([files[TOKENIZER].hex(), self.eot_id, self.vocab_size])
        self.digest = sha256_text("hf " + text)

    def __reduce__(self) -> Any:
        return _again, (self.files, self.name)

    def encode(self, text: str) -> NDArray[np.int64]:
        ids: list[int] = []
        for number, part in enumerate(text.split(_MARK) if self._mark_ids else (text,)):
            ids += self._mark_ids if number else []
            ids += self._tokenizer.encode(part, add_special_tokens=False).ids
        return np.array(ids, dtype=np.int64)

    def decode(self, ids: NDArray[np.integer[Any]]) -> str:
        return b"".join(self._bytes[i] for i in np.asarray(ids).tolist()).decode(errors="replace")

    def save(self, folder: Path) -> None:
        (folder / FOLDER).mkdir()
        self.write_whole(folder / FOLDER)
        super().save(folder)

    def write_whole(self, folder: Path) -> None:
        """All that `read_hf` needs, into an existing folder."""
        self.write_files(folder)
        config = {"vocab_size": self.vocab_size, "eos_token_id": self.eot_id}
        write_json(folder / CONFIG, config)

    def write_files(self, folder: Path) -> None:
        """The files that it was read from, but the model's config.json; into an existing folder.
        Settings lose the code that they may name."""
        with atomic_open(folder / TOKENIZER, "wb") as file:
            file.write(self.files[TOKENIZER])
        for key in (SETTINGS, SPECIALS):
            if key in self.files:
                found = _object(self.files[key], key)
                found.pop("auto_map", None)
                write_json(folder / key, found)

    def _byte_id(self, byte: int, name: str) -> int:
        found = self._tokenizer.token_to_id(f"<0x{byte:02X}>")
        if found is None:
            raise DataError(f"{name}: it says byte_fallback and has no token for byte {byte}")
        return found


def _again(files: Mapping[str, bytes], name: str) -> HfTokenizer:
    """For a process that encodes: the library's own state loses a setting on the way."""
    return HfTokenizer(files, name=name)


def read_hf(folder: Path, *, opener: Opener = plain_input) -> HfTokenizer:
    """The tokenizer in a folder of a model, with the settings beside it.

    Raises:
        MissingInputError: there is no tokenizer.json.
        DataError: it is no usable tokenizer.
    """
    files = {}
    for name in (TOKENIZER, SETTINGS, SPECIALS, CONFIG):
        try:
            with open(folder / name, "rb", opener=opener) as file:
                if os.fstat(file.fileno()).st_size > MAX_MODEL_BYTES:
                    raise DataError(f"{folder / name}: larger than {MAX_MODEL_BYTES} bytes")
                files[name] = file.read()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise MissingInputError(f"{folder / name}: {error.strerror or error}") from error
    if TOKENIZER not in files:
        raise MissingInputError(
            f"tokenizer.path={folder}: holds no {TOKENIZER}; give the folder of a model of Hugging "
            "Face with a fast tokenizer"
        )
    return HfTokenizer(files, name=str(folder))


@functools.cache
def hf_vocab_size(path: str) -> int:
    """Ids of the tokenizer in a folder. Errors as `read_hf`."""
    return read_hf(Path(path)).vocab_size


def _object(content: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: cannot be read as JSON ({type(error).__name__})") from None
    if not isinstance(found, dict):
        raise DataError(f"{where}: not a JSON object")
    return found


def _exact(spec: dict[str, Any], name: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The rules without those that change text, and a line for each that was left out."""
    model = spec.get("model")
    model = model if isinstance(model, dict) else {}
    kind = model.get("type")
    # Older files name no type: a model with merges is a BPE.
    if kind != "BPE" and not (kind is None and "merges" in model):
        raise DataError(f"{name}: model.type={kind!r} cannot keep every text; it must be BPE")
    if not _has(spec, "ByteLevel") and model.get("byte_fallback") is not True:
        raise DataError(
            f"{name}: it has neither ByteLevel nor byte_fallback, so some text would be lost"
        )
    notes: list[str] = []
    normalizer = _kept(spec.get("normalizer"), name, notes)
    # Decoding is done here, byte by byte; nothing is added around a text, cut or padded.
    rest = dict.fromkeys(("post_processor", "truncation", "padding", "decoder"))
    pre = _without_first_space(spec.get("pre_tokenizer"), notes)
    found = {**spec, **rest, "normalizer": normalizer, "pre_tokenizer": pre}
    return found, tuple(f"{name}: left out {note}" for note in dict.fromkeys(notes))


def _kept(rule: Any, name: str, notes: list[str]) -> Any:
    """A normaliser without its parts in _LEFT_OUT; None if nothing is left."""
    if not isinstance(rule, dict):
        return None
    kind = rule.get("type")
    if kind in _LEFT_OUT:
        notes.append(_LEFT_OUT[kind])
        return None
    if kind not in _LOSSLESS:
        raise DataError(f"{name}: normalizer {kind!r} changes text; take a tokenizer without it")
    if kind == "Sequence":
        parts = [_kept(part, name, notes) for part in rule.get("normalizers", ())]
        return {**rule, "normalizers": [part for part in parts if part is not None]}
    return rule


def _without_first_space(rule: Any, notes: list[str]) -> Any:
    """A pre-tokenizer that puts no space before a text."""
    if not isinstance(rule, dict):
        return rule
    kind = rule.get("type")
    if kind == "Sequence":
        parts = [_without_first_space(part, notes) for part in rule.get("pretokenizers", ())]
        return {**rule, "pretokenizers": parts}
    if kind == "ByteLevel" and rule.get("add_prefix_space", True):
        notes.append(_LEFT_OUT["Prepend"])
        return {**rule, "add_prefix_space": False}
    if kind == "Metaspace" and rule.get("prepend_scheme", "always") != "never":
        notes.append(_LEFT_OUT["Prepend"])
        known = ("type", "replacement", "split")  # older files say it by another key
        return {**{k: rule[k] for k in known if k in rule}, "prepend_scheme": "never"}
    return rule


def _has(spec: Mapping[str, Any], kind: str) -> bool:
    """A pre-tokenizer or decoder of this kind is among the rules."""
    return any(
        kind in _kinds(spec.get(part), below)
        for part, below in (("pre_tokenizer", "pretokenizers"), ("decoder", "decoders"))
    )


def _kinds(rule: Any, below: str) -> Iterator[Any]:
    if isinstance(rule, dict):
        yield rule.get("type")
        for part in rule.get(below, ()):
            yield from _kinds(part, below)


def _build(spec: dict[str, Any], name: str) -> Any:
    import tokenizers

    try:
        found = tokenizers.Tokenizer.from_str(json.dumps(spec))
    except Exception as error:  # the library raises no other kind
        line = (str(error).splitlines() or [""])[0][:120]
        raise DataError(f"{name}: {TOKENIZER} is no tokenizer ({line})") from None
    found.encode_special_tokens = True  # a text that spells one is text
    return found


def _end_of_text(described: Mapping[str, Any], tokenizer: Any, name: str) -> int:
    for key in (SETTINGS, SPECIALS):
        token = described.get(key, {}).get("eos_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            found = tokenizer.token_to_id(token)
            if found is None:
                raise DataError(f"{name}/{key}: eos_token={token!r:.80} is no token of {TOKENIZER}")
            return found
    ids = described.get(CONFIG, {}).get("eos_token_id")
    first = ids[0] if isinstance(ids, list) and ids else ids
    if isinstance(first, int) and not isinstance(first, bool):
        return first
    raise DataError(
        f"{name}: names no end-of-text token, which closes every document; write eos_token in "
        f"{SETTINGS}, or eos_token_id in {CONFIG}"
    )


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's table: printable bytes stand for themselves, the others for characters from 256."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {
        **{chr(byte): byte for byte in printable},
        **{chr(256 + number): byte for number, byte in enumerate(others)},
    }


def _level_bytes(token: str) -> bytes:
    table = _byte_of_character()
    if all(character in table for character in token):
        return bytes(table[character] for character in token)
    return token.encode(errors="replace")


def _piece_bytes(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            pass
    return token.replace(_MARK, " ").encode(errors="replace")
