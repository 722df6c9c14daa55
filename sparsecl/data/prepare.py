"""Domains of a config -> tokens on disk, one call.

Four kinds of cache entries below data.cache_dir, each keyed by what decides its content:

    text/        documents of a domain, without duplicates, parted into train and validation
    leaks/       of all domains: training documents that one of them holds out, and are left out
    tokenizers/  the tokenizer, trained on the training text of all domains
    tokens/      a domain's tokens; keyed by the text's sha256, so touching a file rebuilds nothing

A source file counts as edited if its path, size or time of change is another (the key of text/). An
edit that leaves size and time as they were is found by `check_sources` only: text/ knows the sha256
of what was read.
"""

import json
import os
import sys
from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sparsecl.command import complain
from sparsecl.data import cache, leaks, tokenizer_training
from sparsecl.data.config import DataConfig, DomainConfig, TokenizerConfig
from sparsecl.data.documents import SPLITS, write_texts
from sparsecl.data.domain_text import DomainText
from sparsecl.data.given_tokenizer import given, load
from sparsecl.data.held_file import Stamp
from sparsecl.data.identity import RULES
from sparsecl.data.sources import Source, check_apart, open_source
from sparsecl.data.sources.reads import check_reads
from sparsecl.data.token_store import TokenStore, open_store
from sparsecl.data.tokenize import write_tokens
from sparsecl.data.tokenizer import Tokenizer
from sparsecl.errors import DataError, UserError
from sparsecl.files import sha256_text


@dataclass(frozen=True)
class DomainData:
    """One domain, ready to be read.

    Attributes:
        manifest: {"text": .., "leaks": .., "tokens": ..}: source, counts and sha256 of the entries.
        entropy_rate: best possible loss in nats per token, for synthetic sources; else None.
    """

    name: str
    train: TokenStore
    validation: TokenStore
    manifest: dict[str, Any]
    entropy_rate: float | None

    @property
    def overlap(self) -> float | None:
        """Share of the 13-grams of its validation text that training text of the run has; None if
        it has none."""
        return leaks.share(self.manifest["leaks"]["overlap"])


@dataclass(frozen=True)
class PreparedData:
    """All domains of a run in the order of the phases.

    Attributes:
        fingerprint: sha256 over the names, the tokens and the tokenizer. Equal on every machine
            that prepares equal text; paths and times have no part in it.
    """

    tokenizer: Tokenizer
    domains: tuple[DomainData, ...]
    fingerprint: str

    def check(self) -> None:
        """Compare token files with their sha256, unless nobody can have written to them since that
        was done last (held_file.py). Local: every rank looks at the files that it reads.

        Raises:
            DataError: one is not what was published.
        """
        for store in self._stores():
            store.file.check()

    @property
    def stamps(self) -> frozenset[Stamp]:
        """Of the token files that are known to be whole; another process may rely on them."""
        return frozenset(store.file.sound for store in self._stores() if store.file.sound)

    def _stores(self) -> list[TokenStore]:
        return [store for domain in self.domains for store in (domain.train, domain.validation)]


def prepare(
    data: DataConfig,
    tokenizer: TokenizerConfig,
    *,
    context: int,
    seed: int,
    show_progress: bool = False,
    verify: bool = True,
    known: Collection[Stamp] = (),
    check_sources: bool = False,
) -> PreparedData:
    """Build what is not in the cache yet, then open everything.

    Any number of processes may call this at once: one builds, the others wait. A killed call is
    repeated from the first unfinished domain.

    Args:
        context: model inputs per sequence; both splits of a domain need one token more.
        seed: of the run; only synthetic sources without a seed of their own use it.
        show_progress: bars on stderr.
        verify: compare the sha256 of every token file, not only its size.
        known: stamps of token files that another process found whole (`PreparedData.stamps`).
        check_sources: compare the files that text was made of with their sha256 at that time.

    Raises:
        UserError: or one of its kinds, for whatever the user can mend.
    """
    root = Path(data.cache_dir)
    sources = find_inputs(data, tokenizer, seed=seed)
    texts = [
        _text(data, domain, source, root, show_progress)
        for domain, source in zip(data.domains, sources, strict=True)
    ]
    for text in texts if check_sources else ():
        check_reads(text.manifest["reads"], text.domain.name, text.folder)
    texts, parts = _without_leaks(texts, root, show_progress)
    vocabulary = _tokenizer(tokenizer, texts, root, show_progress)
    domains = tuple(
        _tokens(text, parts[text.domain.name], vocabulary, data.workers, root, show_progress)
        for text in texts
    )
    for domain in domains:
        _check_length(domain, context)
        for store in (domain.train, domain.validation) if verify else ():
            store.file.check(known)
    return PreparedData(vocabulary, domains, _fingerprint(domains))


def find_inputs(data: DataConfig, tokenizer: TokenizerConfig, *, seed: int) -> list[Source]:
    """The sources of the domains, none read yet: what of them is missing or cannot be is found.

    Raises:
        UserError: as `prepare` would say it, before any work.
    """
    limit = data.max_document_bytes
    sources = [open_source(domain, seed=seed, max_document_bytes=limit) for domain in data.domains]
    check_apart({d.name: s.files for d, s in zip(data.domains, sources, strict=True)})
    given(tokenizer)
    return sources


def _text(
    data: DataConfig, domain: DomainConfig, source: Source, root: Path, show_progress: bool
) -> DomainText:
    limit = data.max_document_bytes
    key: dict[str, Any] = {
        "source": source.key,
        "max_train_bytes": domain.max_train_bytes,
        "identity": RULES,
    }
    if not source.has_validation:
        key["validation_share"] = data.validation_share
    if not source.atomic:
        key["max_document_bytes"] = limit

    def build(folder: Path) -> dict[str, Any]:
        with closing(_bar(f"{domain.name}: text", None, show_progress)) as progress:
            written = write_texts(
                source,
                folder,
                validation_share=data.validation_share,
                max_document_bytes=limit,
                max_train_bytes=domain.max_train_bytes,
                progress=progress,
            )
        for warning in source.remarks.warnings():
            complain(f"warning: domain {domain.name}: {warning}")
        return {
            **written,
            "key": key,
            "reads": source.reads,
            "remarks": source.remarks.summary(),
            "entropy_per_byte": source.entropy_rate,
        }

    text = DomainText(domain, *cache.open_entry(root, "text", domain.name, key, build))
    text.check()
    return text


def _without_leaks(
    texts: list[DomainText], root: Path, show_progress: bool
) -> tuple[list[DomainText], dict[str, dict[str, Any]]]:
    """The texts without what one of them holds out, and what is known of each."""

    def build(folder: Path) -> dict[str, Any]:
        total = sum(text.manifest[split]["bytes"] for text in texts for split in SPLITS)
        with closing(_bar("validation text in training text", total, show_progress)) as progress:
            return leaks.write_leaks(texts, folder, progress)

    key = [RULES, leaks.key(texts)]
    return leaks.read_leaks(texts, *cache.open_entry(root, "leaks", "run", key, build))


def _tokenizer(
    config: TokenizerConfig, texts: list[DomainText], root: Path, show_progress: bool
) -> Tokenizer:
    """The run's tokenizer."""
    ready = given(config)
    if ready is not None:
        key: Any = ready.digest
    else:
        # Sorted by content: the order of the phases must not change the tokenizer.
        texts = sorted(texts, key=lambda text: text.digest)
        key = [config.vocab_size, config.train_bytes, [text.digest for text in texts]]

    def build(folder: Path) -> dict[str, Any]:
        trained = ready or _train(config, texts, show_progress)
        trained.save(folder)
        for note in trained.notes:
            complain(f"warning: tokenizer {note}")
        return {"kind": trained.kind, "digest": trained.digest, "key": key}

    entry, manifest = cache.open_entry(root, "tokenizers", config.kind, key, build)
    try:
        found = load(entry)
    except UserError as error:
        raise DataError(f"{error}; delete {entry}") from error
    if found.digest != manifest.get("digest"):
        raise DataError(f"{entry}: holds another tokenizer than was made; delete it")
    return found


def _train(config: TokenizerConfig, texts: list[DomainText], show_progress: bool) -> Tokenizer:
    def chosen() -> Any:
        with closing(_bar("tokenizer: training text", None, show_progress)) as progress:
            for text in texts:
                num_bytes = text.manifest["train"]["bytes"]
                for document in tokenizer_training.training_texts(
                    text.documents("train"), num_bytes, config.train_bytes
                ):
                    progress.update(len(document))
                    yield document

    return tokenizer_training.train(chosen(), config.vocab_size)


def _tokens(
    text: DomainText,
    leaked: dict[str, Any],
    vocabulary: Tokenizer,
    workers: int,
    root: Path,
    show_progress: bool,
) -> DomainData:
    name = text.domain.name
    num_bytes = sum(text.manifest[split]["bytes"] for split in SPLITS)
    used_workers = workers or min(4, _num_cores())

    def build(folder: Path) -> dict[str, Any]:
        with closing(_bar(f"{name}: tokens", num_bytes, show_progress)) as progress:
            return write_tokens(text, vocabulary, folder, workers=used_workers, progress=progress)

    key = [text.digest, vocabulary.digest]
    entry, manifest = cache.open_entry(root, "tokens", name, key, build)
    stores = {}
    if manifest.get("tokenizer") != vocabulary.digest:
        raise DataError(
            f"{entry}: tokens are of tokenizer {str(manifest.get('tokenizer'))[:12]}, the run has "
            f"{vocabulary.digest[:12]}; delete the folder"
        )
    for split in SPLITS:
        stores[split] = open_store(entry, split, manifest, vocab_size=vocabulary.vocab_size)
    per_byte = text.manifest["entropy_per_byte"]
    return DomainData(
        name=name,
        train=stores["train"],
        validation=stores["validation"],
        manifest={"text": text.manifest, "leaks": leaked, "tokens": manifest},
        entropy_rate=None if per_byte is None else _per_token(per_byte, stores["validation"]),
    )


def _num_cores() -> int:
    # A batch system may give fewer cores than the machine has; macOS cannot tell.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _per_token(per_byte: float, store: TokenStore) -> float:
    """Nats per token. End-of-text tokens are no symbols of the source and are not counted.

    Under kind: bytes this is exactly the rate per symbol. Otherwise it is the rate per byte
    times the mean bytes of a token: tokens and text determine each other, so no model can do
    better on average over a long text.
    """
    return per_byte * store.num_bytes / (store.num_tokens - store.num_documents)


def _check_length(domain: DomainData, context: int) -> None:
    for split, store in (("train", domain.train), ("validation", domain.validation)):
        if store.num_tokens < context + 1:
            raise DataError(
                f"domain {domain.name}: {split} has {store.num_tokens} tokens, one sequence of "
                f"context {context} needs {context + 1}; give more text or a smaller model.context"
            )


def _fingerprint(domains: tuple[DomainData, ...]) -> str:
    parts = []
    for domain in domains:
        tokens = domain.manifest["tokens"]
        digests = [tokens[split]["sha256"] for split in SPLITS]
        parts.append([domain.name, tokens["tokenizer"], tokens["dtype"], *digests])
    return sha256_text(json.dumps(parts))


def _bar(label: str, total: int | None, show: bool) -> tqdm:
    # In a log file a bar is noise, but silence on long work is worse: a state every 15 seconds.
    wait = 0.0 if sys.stderr.isatty() else 15.0
    return tqdm(
        desc=label,
        total=total,
        unit="B",
        unit_scale=True,
        disable=not show,
        leave=False,
        delay=wait,
        mininterval=max(0.1, wait),
    )
