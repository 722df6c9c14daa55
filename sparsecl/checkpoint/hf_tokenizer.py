"""Our tokenizers as a tokenizer.json of Hugging Face's `tokenizers`, with the same ids.

One that came from there goes out as it came. Both other kinds are byte-pair encodings there:
SentencePiece's with the merges that its pieces allow, in the order of their scores, and `bytes`
without any merge. Characters that are no piece fall back to byte pieces in both libraries.

Differs from the converters of transformers: spaces are kept as spaces in the vocabulary, not as
U+2581. No normalizer is needed then, and a U+2581 of the text is not taken for a space; we encode
it as bytes too. Special tokens are not looked for in text, because nothing of ours encodes to
end-of-text.

SentencePiece takes the leftmost of two places where the same piece can be made, `tokenizers` the
pair that comes first in the list. The two could differ only where [X][Y][Z] with XY = YZ, in
characters, is met with all three as tokens; pieces of a trained model that lead there are not
known, and the tests look for them.
"""

import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparsecl.data.hf_tokenizer import HfTokenizer
from sparsecl.data.tokenizer import BytesTokenizer, SentencePieceTokenizer, Tokenizer
from sparsecl.files import atomic_open, write_json
from sparsecl.opening import plain_input, read_plain

MODEL = "tokenizer.model"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
_SPACE_MARK = "\u2581"
_EOT = "<|endoftext|>"  # of kind bytes, where the token has no text of its own

# Types of pieces in a SentencePiece model, and of models (sentencepiece_model.proto).
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
_BPE = 2


def write_tokenizer(tokenizer: Tokenizer, folder: Path, *, context: int) -> str | None:
    """Write tokenizer files for AutoTokenizer, and tokenizer.model if there is one.

    Args:
        folder: exists.
        context: longest sequence of the model, in tokens.

    Returns:
        None, or why there is no tokenizer.json: the tokenizer cannot be expressed exactly.
    """
    if isinstance(tokenizer, HfTokenizer):
        tokenizer.write_files(folder)
        return None
    if isinstance(tokenizer, SentencePieceTokenizer):
        model = model_bytes(tokenizer)
        with atomic_open(folder / MODEL, "wb") as file:
            file.write(model)
        proto = _parse(model)
        reason = _obstacle(proto)
        if reason:
            return reason
        vocabulary, specials = _pieces(proto)
        merges = _merges(proto)
    else:
        assert isinstance(tokenizer, BytesTokenizer)
        vocabulary, specials, merges = _byte_pieces(), [_EOT], []
    write_json(folder / TOKENIZER, _tokenizer_json(vocabulary, specials, merges))
    names = {token_id: token for token, token_id in vocabulary.items()}
    eot = names[tokenizer.eot_id]
    unknown = next((token for token in specials if token != eot), None)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "bos_token": None,
        "eos_token": eot,
        "pad_token": eot,
        "padding_side": "left",  # a causal model goes on at the right end
        "unk_token": unknown,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    write_json(folder / TOKENIZER_CONFIG, config)
    return None


def is_bytes(folder: Path) -> bool:
    """True if the tokenizer.json of a folder is what is written here for kind bytes."""
    try:
        found = json.loads(read_plain(folder / TOKENIZER, plain_input))
    except (OSError, ValueError, RecursionError):
        return False
    return found == _bytes_json()


def obstacle(tokenizer: SentencePieceTokenizer) -> str | None:
    """Why `tokenizers` cannot do the same; None if it can."""
    return _obstacle(_parse(model_bytes(tokenizer)))


def model_bytes(tokenizer: SentencePieceTokenizer) -> bytes:
    """The content of its .model file."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        return (Path(folder) / MODEL).read_bytes()


def _byte_pieces() -> dict[str, int]:
    return {f"<0x{byte:02X}>": byte for byte in range(256)} | {_EOT: 256}


def _bytes_json() -> dict[str, Any]:
    return _tokenizer_json(_byte_pieces(), [_EOT], [])


def _parse(model: bytes) -> Any:
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = getattr(sentencepiece_model_pb2, "ModelProto")()  # noqa: B009 (made at import)
    proto.ParseFromString(model)
    return proto


def _obstacle(proto: Any) -> str | None:
    """What `tokenizers` would do otherwise than SentencePiece; None if nothing."""
    if proto.trainer_spec.model_type != _BPE:
        return "the SentencePiece model is no BPE"
    rules = proto.normalizer_spec
    if rules.precompiled_charsmap or rules.add_dummy_prefix or rules.remove_extra_whitespaces:
        return "the SentencePiece model normalises text"
    if any(piece.type not in (_NORMAL, _UNKNOWN, _CONTROL, _BYTE) for piece in proto.pieces):
        return "the SentencePiece model has user-defined pieces"
    scores = [score for _, score in _mergeable(proto)]
    if len(set(scores)) < len(scores):
        return "two pieces of the SentencePiece model have the same score"
    return None


def _text(piece: Any) -> str:
    return piece.piece.replace(_SPACE_MARK, " ") if piece.type == _NORMAL else piece.piece


def _pieces(proto: Any) -> tuple[dict[str, int], list[str]]:
    """Id by token, and the tokens that no text encodes to."""
    vocabulary = {_text(piece): token_id for token_id, piece in enumerate(proto.pieces)}
    assert len(vocabulary) == len(proto.pieces)
    return vocabulary, [p.piece for p in proto.pieces if p.type in (_UNKNOWN, _CONTROL)]


def _mergeable(proto: Any) -> Iterator[tuple[str, float]]:
    """Pieces of several characters with their scores."""
    for piece in proto.pieces:
        if piece.type == _NORMAL and len(piece.piece) > 1:
            yield _text(piece), piece.score


def _merges(proto: Any) -> list[list[str]]:
    """All pairs of pieces that make a piece, best score first.

    SentencePiece merges any two neighbours that together are a piece; so every way to cut a piece
    in two pieces is a merge.
    """
    known = {_text(piece) for piece in proto.pieces if piece.type == _NORMAL}
    ordered = sorted(_mergeable(proto), key=lambda item: -item[1])
    pairs = ([[text[:k], text[k:]] for k in range(1, len(text))] for text, _ in ordered)
    return [
        pair
        for pair in itertools.chain.from_iterable(pairs)
        if pair[0] in known and pair[1] in known
    ]


def _tokenizer_json(
    vocabulary: dict[str, int], specials: list[str], merges: list[list[str]]
) -> dict[str, Any]:
    """The format of tokenizers' Tokenizer.to_str."""
    added = [
        {
            "id": vocabulary[token],
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token in specials
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": sorted(added, key=lambda token: token["id"]),
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }
