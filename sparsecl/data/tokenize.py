"""Text entry -> token entry: encode documents in order, by several processes where it pays."""

import hashlib
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sparsecl.data import text_store, tokenizer
from sparsecl.data.documents import SPLITS
from sparsecl.data.token_store import DTYPES, dtype_name

_SPAN_BYTES = 1 << 20

# Starting a process costs about as much as encoding this many bytes in this one.
_BYTES_WORTH_A_POOL = 16 << 20

Span = tuple[int, NDArray[np.int64]]


def write_tokens(
    texts: Path, tokenizer_folder: Path, folder: Path, *, workers: int, progress: tqdm
) -> dict[str, Any]:
    """Encode the text entry `texts` into `folder` (format: token_store).

    The result does not depend on the number of workers. Memory: a few MiB per worker.

    Returns:
        dtype, tokenizer digest, and per split {tokens, bytes, documents, max_token, sha256}.

    Raises:
        DataError: if the tokenizer does not keep the byte law on some document.
    """
    vocabulary = tokenizer.load(tokenizer_folder)
    manifest: dict[str, Any] = {
        "dtype": dtype_name(vocabulary.vocab_size),
        "tokenizer": vocabulary.digest,
        "vocab_size": vocabulary.vocab_size,
    }
    total = sum(int(text_store.lengths(texts, split).sum(dtype=np.int64)) for split in SPLITS)
    if workers > 1 and total >= _BYTES_WORTH_A_POOL:
        # spawn: a fork of a process with threads (OpenMP, gRPC) may hang.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            workers, context, initializer=_start_worker, initargs=(tokenizer_folder,)
        ) as pool:
            for split in SPLITS:
                spans = text_store.spans(texts, split, _SPAN_BYTES)
                encoded = _encode_in_pool(pool, texts, split, spans, 2 * workers)
                manifest[split] = _write(folder, split, encoded, manifest["dtype"], progress)
        return manifest
    for split in SPLITS:
        spans = text_store.spans(texts, split, _SPAN_BYTES)
        encoded = (_encode_span(vocabulary, texts, split, span) for span in spans)
        manifest[split] = _write(folder, split, encoded, manifest["dtype"], progress)
    return manifest


def _write(
    folder: Path, split: str, encoded: Iterator[tuple[Span, bytes]], dtype: str, progress: tqdm
) -> dict[str, Any]:
    digest = hashlib.sha256()
    counts = {"tokens": 0, "bytes": 0, "documents": 0, "max_token": -1}
    with open(folder / f"{split}.tokens", "wb") as file:
        for (_, sizes), raw in encoded:
            ids = np.frombuffer(raw, dtype=DTYPES[dtype])
            file.write(raw)
            digest.update(raw)
            counts["tokens"] += len(ids)
            counts["bytes"] += int(sizes.sum())
            counts["documents"] += len(sizes)
            counts["max_token"] = max(counts["max_token"], int(ids.max()))
            progress.update(int(sizes.sum()))
        file.flush()
        os.fsync(file.fileno())
    return {**counts, "sha256": digest.hexdigest()}


def _encode_span(
    vocabulary: tokenizer.Tokenizer, texts: Path, split: str, span: Span
) -> tuple[Span, bytes]:
    """Ids of a span's documents, each closed by end-of-text, as bytes of the stored type."""
    offset, sizes = span
    parts: list[NDArray[np.int64]] = []
    end = np.array([vocabulary.eot_id], dtype=np.int64)
    documents = text_store.read_span(texts, split, offset, sizes)
    for document, size in zip(documents, sizes, strict=True):
        ids = vocabulary.encode(document)
        tokenizer.check_document(vocabulary, ids, int(size))
        parts += [ids, end]
    stored = DTYPES[dtype_name(vocabulary.vocab_size)]
    return span, np.concatenate(parts).astype(stored).tobytes()


def _encode_in_pool(
    pool: ProcessPoolExecutor, texts: Path, split: str, spans: Iterator[Span], ahead: int
) -> Iterator[tuple[Span, bytes]]:
    """Like `_encode_span` over `spans`, in their order, with `ahead` spans in flight."""
    waiting: deque[Future[tuple[Span, bytes]]] = deque()
    for span in spans:
        waiting.append(pool.submit(_encode_in_worker, texts, split, span))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


_encode_here: Callable[[Path, str, Span], tuple[Span, bytes]] | None = None
"""Set in a worker process, once."""


def _start_worker(tokenizer_folder: Path) -> None:
    global _encode_here
    vocabulary = tokenizer.load(tokenizer_folder)

    def encode(texts: Path, split: str, span: Span) -> tuple[Span, bytes]:
        return _encode_span(vocabulary, texts, split, span)

    _encode_here = encode
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    # A parent that is killed cannot tell its workers; without this they would wait for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode_in_worker(texts: Path, split: str, span: Span) -> tuple[Span, bytes]:
    assert _encode_here is not None, "the pool's initializer has not run"
    return _encode_here(texts, split, span)
