"""Text <-> token ids, exactly: every id stands for a known number of UTF-8 bytes.

Law: for any text, bytes_per_token[encode(text)].sum() == len(text.encode()), and
decode(encode(text)) == text. Bits per byte is a fair unit across tokenizers only because of it.
"""

import abc
import os
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from sparsecl.errors import DataError, MissingInputError
from sparsecl.files import atomic_open, sha256_text, write_json
from sparsecl.opening import Opener, plain_input

DESCRIPTION = "tokenizer.json"
MODEL = "tokenizer.model"

MAX_MODEL_BYTES = 256 << 20
"""A model of a million pieces has a tenth of it."""

# SentencePiece writes a space as U+2581 and cannot tell it from a U+2581 of the text.
_SPACE_MARK = "\u2581"
_SPACE_MARK_BYTES = _SPACE_MARK.encode()


class Tokenizer(abc.ABC):
    """One tokenizer of three kinds.

    Attributes:
        kind: `bytes`, `sentencepiece` or `hf`.
        remedy: what to do if the byte law does not hold.
        vocab_size: ids are 0..vocab_size-1.
        eot_id: the end-of-text token that closes every document; no text encodes to it.
        bytes_per_token: UTF-8 bytes of each id, int32 [vocab_size]; 0 for markers.
        digest: sha256 of all that decides the mapping.
    """

    kind: str
    remedy: str = "report it"
    notes: tuple[str, ...] = ()
    """What it does otherwise than where it comes from, a line each."""
    vocab_size: int
    eot_id: int
    bytes_per_token: NDArray[np.int32]
    digest: str

    @abc.abstractmethod
    def encode(self, text: str) -> NDArray[np.int64]:
        """Ids [n] of `text`, without an end-of-text token."""

    @abc.abstractmethod
    def decode(self, ids: NDArray[np.integer[Any]]) -> str:
        """Text of `ids`; markers are left out, bytes that are no UTF-8 become U+FFFD."""

    def save(self, folder: Path) -> None:
        """Write the tokenizer into an existing folder."""
        description = {"kind": self.kind, "digest": self.digest, "vocab_size": self.vocab_size}
        write_json(folder / DESCRIPTION, description)


class BytesTokenizer(Tokenizer):
    """256 byte values, then end-of-text."""

    kind = "bytes"

    def __init__(self) -> None:
        self.vocab_size = 257
        self.eot_id = 256
        self.bytes_per_token = np.array([1] * 256 + [0], dtype=np.int32)
        self.digest = sha256_text("bytes: 0..255 are byte values, 256 is end-of-text")

    def encode(self, text: str) -> NDArray[np.int64]:
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)

    def decode(self, ids: NDArray[np.integer[Any]]) -> str:
        ids = np.asarray(ids)
        return ids[ids < 256].astype(np.uint8).tobytes().decode(errors="replace")


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model that changes no text: see tokenizer_training for its settings.

    Args:
        model: the serialized model (a protocol buffer: data, never code).
        name: how messages call it.

    Raises:
        DataError: if the model is broken, lacks an end-of-sentence piece or byte pieces.
    """

    kind = "sentencepiece"
    remedy = (
        "train it with normalization_rule_name=identity, add_dummy_prefix=false, "
        "remove_extra_whitespaces=false, byte_fallback=true"
    )

    def __init__(self, model: bytes, *, name: str = "tokenizer") -> None:
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, ValueError, TypeError) as error:
            raise DataError(f"{name}: no SentencePiece model ({error})") from error
        self._model = model
        self.vocab_size = self._processor.get_piece_size()
        self.eot_id = self._processor.eos_id()
        if self.vocab_size < 1:
            raise DataError(f"{name}: no SentencePiece model (it has no pieces)")
        if self.eot_id < 0:
            raise DataError(f"{name}: the model has no end-of-sentence piece; train with eos_id=1")
        try:
            self._bytes = [self._bytes_of(i) for i in range(self.vocab_size)]
        except ValueError:
            raise DataError(f"{name}: a piece that should be a byte is none") from None
        self.bytes_per_token = np.array([len(b) for b in self._bytes], dtype=np.int32)
        self._mark_ids = [self._byte_id(byte, name) for byte in _SPACE_MARK_BYTES]
        self.digest = _model_digest(model)

    def encode(self, text: str) -> NDArray[np.int64]:
        ids: list[int] = []
        for number, part in enumerate(text.split(_SPACE_MARK)):
            if number:
                ids.extend(self._mark_ids)
            ids.extend(self._processor.encode(part, out_type=int))
        return np.array(ids, dtype=np.int64)

    def decode(self, ids: NDArray[np.integer[Any]]) -> str:
        return b"".join(self._bytes[i] for i in np.asarray(ids).tolist()).decode(errors="replace")

    def save(self, folder: Path) -> None:
        with atomic_open(folder / MODEL, "wb") as file:
            file.write(self._model)
        super().save(folder)

    def _bytes_of(self, token_id: int) -> bytes:
        piece = self._processor.id_to_piece(token_id)
        if self._processor.is_byte(token_id):  # written <0x41>
            return bytes([int(piece[3:5], 16)])
        if self._processor.is_control(token_id) or self._processor.is_unknown(token_id):
            return b""
        return piece.replace(_SPACE_MARK, " ").encode()

    def _byte_id(self, byte: int, name: str) -> int:
        token_id = self._processor.piece_to_id(f"<0x{byte:02X}>")
        if not self._processor.is_byte(token_id):
            raise DataError(f"{name}: the model has no byte pieces; train with byte_fallback=true")
        return token_id


def _model_digest(model: bytes) -> str:
    return sha256_text("sentencepiece " + model.hex())


def check_document(tokenizer: Tokenizer, ids: NDArray[np.int64], num_bytes: int) -> None:
    """Check the byte law for one document of `num_bytes` UTF-8 bytes.

    Raises:
        DataError: if it fails; a given model then normalises text or adds a prefix.
    """
    counted = int(tokenizer.bytes_per_token[ids].sum())
    if counted != num_bytes:
        raise DataError(
            f"tokenizer.{'path' if tokenizer.kind == 'hf' else 'model'} changes text ({num_bytes} "
            f"bytes became {counted}): {tokenizer.remedy}"
        )


def read_model(path: Path, *, opener: Opener = plain_input) -> SentencePieceTokenizer:
    """Read a .model file that the user gave.

    Raises:
        MissingInputError: if the file is absent, a folder, or unreadable.
        DataError: if it is no usable model.
    """
    try:
        with open(path, "rb", opener=opener) as file:
            if os.fstat(file.fileno()).st_size > MAX_MODEL_BYTES:
                raise DataError(f"tokenizer.model={path}: larger than {MAX_MODEL_BYTES} bytes")
            model = file.read()
    except OSError as error:
        raise MissingInputError(f"tokenizer.model={path}: {error.strerror or error}") from error
    if not model:
        raise DataError(f"tokenizer.model={path}: the file is empty")
    return SentencePieceTokenizer(model, name=f"tokenizer.model={path}")
