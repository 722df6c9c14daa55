"""Train SentencePiece BPE on the domains' training text.

Settings: no normalisation, no prefix, spaces kept, unknown characters as bytes, so that the byte
law of tokenizer.py holds. BPE rather than unigram: equal quality here, and 40 MB of text take
seconds instead of minutes. One thread and no sampling inside the trainer: equal text, equal model.
"""

import io
import re
from collections.abc import Iterable, Iterator

import sentencepiece

from sparsecl.data.tokenizer import SentencePieceTokenizer
from sparsecl.errors import UserError

# The trainer's unit. It drops longer ones, so text is cut below it.
_SENTENCE_CHARACTERS = 2_000

# The trainer skips sentences with NUL or U+2585, and reads U+2581 as a space and TAB as a
# boundary. Such characters are encoded as bytes, so training can do without them.
_RESERVED = str.maketrans({"\0": "\n", "\t": "    ", "\u2581": "\n", "\u2585": "\n"})


def train(texts: Iterable[str], vocab_size: int) -> SentencePieceTokenizer:
    """Train on `texts`, in the given order.

    Raises:
        UserError: if the text does not allow `vocab_size` pieces; it names the possible size.
        Exception: whatever `texts` raises.
    """
    model = io.BytesIO()
    raised: list[Exception] = []

    def sentences() -> Iterator[str]:
        try:
            yield from _sentences(texts)
        except Exception as error:  # the trainer would make words of it
            raised.append(error)
            raise

    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences(),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            byte_fallback=True,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            character_coverage=0.9995,  # SentencePiece's default; the rest is encoded as bytes
            unk_id=0,
            eos_id=1,
            bos_id=-1,
            pad_id=-1,
            eos_piece="<|endoftext|>",
            max_sentence_length=4 * _SENTENCE_CHARACTERS,  # UTF-8 needs up to 4 bytes each
            num_threads=1,
            minloglevel=2,  # errors only
        )
    except RuntimeError as error:
        if raised:
            raise raised[0] from None
        raise _vocab_error(vocab_size, str(error)) from error
    return SentencePieceTokenizer(model.getvalue())


def _vocab_error(vocab_size: int, message: str) -> Exception:
    largest = re.search(r"value <= (\d+)", message)
    if largest:
        return UserError(
            f"tokenizer.vocab_size={vocab_size}: the text has no room for so many pieces; "
            f"use {largest[1]} or less, or kind: bytes"
        )
    smallest = re.search(r"required_chars\. \d+ vs (\d+)", message)
    if smallest:
        return UserError(
            f"tokenizer.vocab_size={vocab_size}: the characters of the text alone need "
            f"{smallest[1]}; use that or more, or kind: bytes"
        )
    return UserError(f"tokenizer.vocab_size={vocab_size}: training failed: {message.strip()}")


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Cut texts at line ends into pieces that the trainer takes. Newlines stay inside them."""
    for text in texts:
        lines: list[str] = []
        size = 0
        for line in text.translate(_RESERVED).splitlines(keepends=True):
            for start in range(0, len(line), _SENTENCE_CHARACTERS):
                part = line[start : start + _SENTENCE_CHARACTERS]
                if size + len(part) > _SENTENCE_CHARACTERS:
                    yield "".join(lines)
                    lines, size = [], 0
                lines.append(part)
                size += len(part)
        if lines:
            yield "".join(lines)


def training_texts(documents: Iterable[str], num_bytes: int, max_bytes: int) -> Iterator[str]:
    """Every n-th of some documents, with the n that keeps below `max_bytes`; reads all of them.

    Args:
        num_bytes: that they have in all, at most.
    """
    stride = max(1, -(-num_bytes // max_bytes))
    left = max_bytes
    for number, text in enumerate(documents):
        if number % stride == 0 and left > 0:
            yield text[:left]  # a long single document; characters are at most as many as bytes
            left -= len(text.encode())
