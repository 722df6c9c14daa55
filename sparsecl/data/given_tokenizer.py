"""Tokenizers that are there already: those that a config names, and those that were saved."""

import json
from pathlib import Path

from sparsecl.data.config import TokenizerConfig
from sparsecl.data.hf_tokenizer import FOLDER, read_hf
from sparsecl.data.tokenizer import (
    DESCRIPTION,
    MODEL,
    BytesTokenizer,
    Tokenizer,
    read_model,
)
from sparsecl.errors import DataError, MissingInputError, reason
from sparsecl.opening import plain


def given(config: TokenizerConfig) -> Tokenizer | None:
    """The tokenizer, where the config alone decides it; None for one that is to be trained.

    Raises:
        MissingInputError: a file is not there.
        DataError: it holds no usable tokenizer.
    """
    if config.kind == "bytes":
        return BytesTokenizer()
    if config.path is not None:
        return read_hf(Path(config.path))
    return None if config.model is None else read_model(Path(config.model))


def load(folder: Path) -> Tokenizer:
    """Read a saved tokenizer.

    Raises:
        MissingInputError: if the folder holds none.
        DataError: if its files do not belong together.
    """
    path = folder / DESCRIPTION
    try:
        with open(path, "rb", opener=plain) as file:
            description = json.loads(file.read(1 << 16))
        kind, digest = description["kind"], description["digest"]
    except FileNotFoundError:
        raise MissingInputError(f"{path}: missing; {folder} holds no tokenizer") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: no tokenizer description ({reason(error)})") from error
    if kind == "bytes":
        tokenizer: Tokenizer = BytesTokenizer()
    elif kind == "sentencepiece":
        tokenizer = read_model(folder / MODEL, opener=plain)
    elif kind == "hf":
        tokenizer = read_hf(folder / FOLDER, opener=plain)
    else:
        raise DataError(f"{path}: kind={kind!r} is none of bytes, sentencepiece, hf")
    if tokenizer.digest != digest:
        raise DataError(
            f"{folder}: digest is {tokenizer.digest[:12]}, {DESCRIPTION} says {str(digest)[:12]}"
        )
    return tokenizer
