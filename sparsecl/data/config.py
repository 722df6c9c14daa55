"""What a user may say about data and tokenizer.

A domain is one source of text; the order of `domains` is the order of the phases.
"""

import re
from dataclasses import dataclass, fields
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from sparsecl.bounds import check_bounds
from sparsecl.config import younger

INSTALLED_DOMAINS = ("code", "math", "manual", "legal", "dialogue")
"""Text that every installation has (sources/installed.py)."""

_TEXT_KEYS = ("text_field", "columns", "encoding_errors", "on_bad_row", "max_train_bytes")

# The keys of a source beside name and source; a key that no source has here belongs to all.
SOURCE_KEYS: dict[str, tuple[str, ...]] = {
    "files": ("train", "validation", "separator", *_TEXT_KEYS),
    "hf": (
        *("path", "config_name", "split", "validation_split", "revision", "streaming"),
        *("data_files", *_TEXT_KEYS),
    ),
    "installed": ("max_train_bytes",),
    "synthetic": ("synthetic",),
}


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """How text becomes token ids; one tokenizer serves all domains of a run."""

    kind: Literal["bytes", "sentencepiece", "hf"] = "sentencepiece"
    """bytes: 256 byte values and end-of-text. sentencepiece: BPE trained on the run's domains. hf:
    one of Hugging Face, from the folder `path`."""

    vocab_size: int = 4096
    """Number of token ids to train (sentencepiece without `model`; ignored otherwise)."""

    path: str | None = younger(None)
    """hf: folder with tokenizer.json and the files beside it that name its special tokens."""

    model: str | None = None
    """A trained SentencePiece .model file to use as it is, instead of training one."""

    train_bytes: Annotated[int, Ge(1)] = 20_000_000
    """Bytes of training text taken from each domain to train it, spread over the domain."""

    def __post_init__(self) -> None:
        check_bounds(self)
        # 256 byte pieces, unknown and end-of-text are always there.
        if self.kind == "sentencepiece" and self.vocab_size < 259:
            raise ValueError(
                f"vocab_size must be >= 259 (256 bytes, 2 markers, 1 piece), got {self.vocab_size}"
            )
        if self.model is not None and self.kind != "sentencepiece":
            raise ValueError(
                f"model={self.model!r} has no meaning with kind: {self.kind}; leave it out"
            )
        if self.kind == "hf" and not self.path:
            raise ValueError("path is missing: kind: hf needs the folder of a tokenizer.json")
        if self.path is not None and self.kind != "hf":
            raise ValueError(
                f"path={self.path!r} has no meaning with kind: {self.kind}; it belongs to kind: hf"
            )


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """A random source whose entropy rate is known exactly."""

    kind: Literal["markov", "grammar"] = "markov"
    """markov: chain over single letters. grammar: sentences of three dependent random words."""

    num_symbols: Annotated[int, Ge(2), Le(62)] = 16
    """Letters of the chain (2 to 62), or words to choose from at each place of the grammar."""

    order: Annotated[int, Ge(1)] = 1
    """Number of earlier letters that the next one depends on (markov only)."""

    concentration: Annotated[float, Gt(0)] = 0.3
    """Dirichlet parameter of every conditional distribution; smaller is more predictable."""

    train_tokens: Annotated[int, Ge(2), Le(100_000_000)] = 200_000
    """Characters of training text; one character is one token under kind: bytes."""

    validation_tokens: Annotated[int, Ge(2), Le(100_000_000)] = 20_000
    """Characters of validation text."""

    seed: int | None = 0
    """Seed of the source, joined with the domain's name; null: the seed of the run."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.kind == "grammar" and self.order != 1:
            raise ValueError(f"order={self.order} has no meaning with kind: grammar; leave it out")
        # The stationary distribution needs a table row for each context.
        if self.num_symbols**self.order > 4_096:
            raise ValueError(
                f"order={self.order} with num_symbols={self.num_symbols} has "
                f"{self.num_symbols**self.order} contexts; at most 4096 are supported"
            )


@dataclass(frozen=True, kw_only=True)
class DomainConfig:
    """One source of text. A key that has no meaning for `source` is an error."""

    name: str
    """Name in tables and file names: letters, digits, `_`, `-`, `.`."""

    source: Literal["installed", "files", "hf", "synthetic"]
    """Where the text comes from; installed asks for one of the five built-in names."""

    train: tuple[str, ...] = ()
    """files: paths or globs, absolute or relative to the current folder; ~ is the home folder."""

    validation: tuple[str, ...] = ()
    """files: paths or globs held out; without any, documents are split by their hash."""

    text_field: str = "text"
    """files, hf: the field or column that holds the text; `a.b` is the field b inside of a."""

    columns: tuple[str, ...] = ()
    """files, hf: several fields, joined by a newline, in place of `text_field`."""

    separator: str = ""
    """files: what parts the documents inside a plain text file; empty: one file, one document."""

    encoding_errors: Literal["strict", "replace"] = "strict"
    """files, hf: what no text can hold (bytes that are not UTF-8, NUL) is an error, or becomes
    U+FFFD."""

    on_bad_row: Literal["error", "skip"] = "error"
    """files, hf: a row that cannot be used (not JSON, no such field, null) ends the preparation, or
    is left out and counted."""

    path: str | None = None
    """hf: id on the hub, or a local folder in any layout that `datasets` loads."""

    config_name: str | None = None
    """hf: the dataset's configuration."""

    split: str = "train"
    """hf: split to train on, for example `train` or `train[:10%]`."""

    validation_split: str | None = None
    """hf: split held out; without one, documents are split by their hash."""

    revision: str | None = None
    """hf: commit or tag of a dataset on the hub; required there, because a branch moves."""

    streaming: bool = False
    """hf: read without a local copy of the whole dataset."""

    data_files: tuple[str, ...] = ()
    """hf: files inside the dataset to read, instead of all that belong to the split."""

    synthetic: SyntheticConfig | None = None
    """synthetic: the source's parameters; null: the defaults."""

    max_train_bytes: Annotated[int | None, Ge(1)] = None
    """Stop reading after this many bytes of training text; null: read all of it."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", self.name) or self.name.strip(".") == "":
            raise ValueError(
                f"name must be letters, digits, _ - . (100 at most), got {self.name!r}"
            )
        for field in fields(self):
            allowed = [source for source, keys in SOURCE_KEYS.items() if field.name in keys]
            if (
                allowed
                and self.source not in allowed
                and getattr(self, field.name) != field.default
            ):
                raise ValueError(
                    f"{field.name} has no meaning with source: {self.source}; "
                    f"it belongs to source: {' or '.join(allowed)}"
                )
        self._check_source()
        check_bounds(self)

    def _check_source(self) -> None:
        if "train" in SOURCE_KEYS[self.source] and not self.train:
            raise ValueError(f"train is empty: domain {self.name} needs at least one file or glob")
        if self.source == "hf" and not self.path:
            raise ValueError(f"path is missing: domain {self.name} needs a hub id or a folder")
        if self.source == "hf" and self.split == self.validation_split:
            raise ValueError(f"validation_split={self.split!r} is the training split; name another")
        if self.source == "installed" and self.name not in INSTALLED_DOMAINS:
            raise ValueError(
                f"name={self.name!r} is no installed domain; choose from "
                f"{', '.join(INSTALLED_DOMAINS)}"
            )


def _installed() -> tuple[DomainConfig, ...]:
    return tuple(DomainConfig(name=name, source="installed") for name in INSTALLED_DOMAINS)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The domains of a run and how their text is prepared."""

    domains: tuple[DomainConfig, ...] = _installed()
    """In the order of the phases."""

    cache_dir: str = ".cache/sparsecl"
    """Folder for prepared data, relative to the current folder; safe to delete or to share."""

    validation_share: Annotated[float, Gt(0), Lt(1)] = 0.05
    """Share of documents held out where a domain gives no validation text of its own; of a domain
    of one document, of its bytes: the tail."""

    # A lower bound keeps the cut from falling inside a word; the upper one fits uint32 lengths.
    max_document_bytes: Annotated[int, Ge(1_000), Le(1_000_000_000)] = 1_000_000
    """Longer documents are cut at a line end; each piece counts as a document, all of them lie on
    one side."""

    workers: Annotated[int, Ge(0), Le(256)] = 0
    """Processes that tokenise; 0: as many as the CPU cores, at most 4."""

    def __post_init__(self) -> None:
        if not self.domains:
            raise ValueError("domains is empty; leave it out for the five installed domains")
        names = [domain.name for domain in self.domains]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"domains has the name {repeated[0]!r} twice; names must differ")
        if not self.cache_dir:
            raise ValueError("cache_dir is empty; give a folder")
        check_bounds(self)
