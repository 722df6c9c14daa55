"""Text entry -> token entry: encode documents in order, by several processes where it pays."""

import hashlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sparsecl.data.documents import SPLITS
from sparsecl.data.domain_text import DomainText
from sparsecl.data.token_store import DTYPES, dtype_name
from sparsecl.data.tokenizer import Tokenizer, check_document
from sparsecl.errors import WorkerLostError
from sparsecl.opening import plain

_SPAN_CHARACTERS = 1 << 20

# Starting a process costs about as much as encoding this many bytes in this one.
_BYTES_WORTH_A_POOL = 16 << 20


class Encoded(NamedTuple):
    """Some documents as tokens."""

    ids: bytes
    """Of the stored type; end-of-text after each document."""

    num_bytes: int
    num_documents: int


def write_tokens(
    texts: DomainText,
    vocabulary: Tokenizer,
    folder: Path,
    *,
    workers: int,
    progress: tqdm,
) -> dict[str, Any]:
    """Encode the text of a domain into `folder` (format: token_store).

    The result does not depend on the number of workers. Memory: a few MiB per worker.

    Returns:
        dtype, tokenizer digest, and per split {tokens, bytes, documents, max_token, sha256}.

    Raises:
        DataError: if the text was changed, or the tokenizer does not keep the byte law on it.
        WorkerLostError: if a process was killed.
    """
    dtype = dtype_name(vocabulary.vocab_size)
    manifest: dict[str, Any] = {
        "dtype": dtype,
        "tokenizer": vocabulary.digest,
        "vocab_size": vocabulary.vocab_size,
    }
    spans = {split: _spans(texts.documents(split)) for split in SPLITS}
    total = sum(texts.manifest[split]["bytes"] for split in SPLITS)
    if workers > 1 and total >= _BYTES_WORTH_A_POOL:
        with _Pool(vocabulary, workers) as pool:
            for split in SPLITS:
                encoded = pool.encode(spans[split])
                manifest[split] = _write(folder, split, encoded, dtype, progress)
        return manifest
    for split in SPLITS:
        encoded = (_encode(vocabulary, span) for span in spans[split])
        manifest[split] = _write(folder, split, encoded, dtype, progress)
    return manifest


def _spans(documents: Iterator[str]) -> Iterator[list[str]]:
    """Runs of documents, in order, each of about _SPAN_CHARACTERS."""
    span: list[str] = []
    size = 0
    for document in documents:
        if span and size + len(document) > _SPAN_CHARACTERS:
            yield span
            span, size = [], 0
        span.append(document)
        size += len(document)
    if span:
        yield span


def _write(
    folder: Path, split: str, encoded: Iterator[Encoded], dtype: str, progress: tqdm
) -> dict[str, Any]:
    digest = hashlib.sha256()
    counts = {"tokens": 0, "bytes": 0, "documents": 0, "max_token": -1}
    with open(folder / f"{split}.tokens", "xb", opener=plain) as file:
        for part in encoded:
            ids = np.frombuffer(part.ids, dtype=DTYPES[dtype])
            file.write(part.ids)
            digest.update(part.ids)
            counts["tokens"] += len(ids)
            counts["bytes"] += part.num_bytes
            counts["documents"] += part.num_documents
            counts["max_token"] = max(counts["max_token"], int(ids.max()))
            progress.update(part.num_bytes)
        file.flush()
        os.fsync(file.fileno())
    return {**counts, "sha256": digest.hexdigest()}


def _encode(vocabulary: Tokenizer, documents: list[str]) -> Encoded:
    parts: list[NDArray[np.int64]] = []
    end = np.array([vocabulary.eot_id], dtype=np.int64)
    num_bytes = 0
    for document in documents:
        ids, size = vocabulary.encode(document), len(document.encode())
        check_document(vocabulary, ids, size)
        parts += [ids, end]
        num_bytes += size
    stored = DTYPES[dtype_name(vocabulary.vocab_size)]
    return Encoded(np.concatenate(parts).astype(stored).tobytes(), num_bytes, len(documents))


class _Pool:
    """Processes that encode; use as a context manager."""

    def __init__(self, vocabulary: Tokenizer, workers: int) -> None:
        # spawn: a fork of a process with threads (OpenMP, gRPC) may hang.
        self._pool = ProcessPoolExecutor(
            workers,
            multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(vocabulary,),
        )
        self._ahead = 2 * workers
        self._others = set(multiprocessing.active_children())
        self._workers: set[BaseProcess] = set()

    def encode(self, spans: Iterator[list[str]]) -> Iterator[Encoded]:
        """Each span encoded, in order, with some of them in flight."""
        waiting: deque[Future[Encoded]] = deque()
        for span in spans:
            waiting.append(self._pool.submit(_encode_in_worker, span))
            # The pool starts a process when it needs one, and forgets those that died.
            self._workers.update(multiprocessing.active_children())
            if len(waiting) >= self._ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._pool.shutdown(cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise _lost([worker.exitcode for worker in self._workers - self._others]) from None


def _lost(codes: list[int | None]) -> WorkerLostError:
    """What became of a process of the pool, which ends the others with SIGTERM."""
    ended = [code for code in codes if code and code != -signal.SIGTERM] or [-signal.SIGTERM]
    how = f"with code {ended[0]}"
    if ended[0] < 0:
        how = f"by {signal.Signals(-ended[0]).name}"
    return WorkerLostError(
        f"a process that makes tokens was ended {how}. If memory is short, take fewer "
        f"data.workers; the same command goes on."
    )


_vocabulary: Tokenizer | None = None
"""Set in a worker process, once."""


def _start_worker(vocabulary: Tokenizer) -> None:
    global _vocabulary
    _vocabulary = vocabulary
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    # A parent that is killed cannot tell its workers; without this they would wait for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode_in_worker(documents: list[str]) -> Encoded:
    assert _vocabulary is not None, "the pool's initializer has not run"
    return _encode(_vocabulary, documents)
