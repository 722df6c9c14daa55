"""Data configs: defaults, and the messages of mistakes."""

import pytest

from sparsecl.data.config import DataConfig, DomainConfig, SyntheticConfig, TokenizerConfig


def test_the_default_domains_are_the_five_installed_ones():
    names = [domain.name for domain in DataConfig().domains]
    assert names == ["code", "math", "manual", "legal", "dialogue"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"source": "installed", "train": ("a.txt",)},
            "train has no meaning with source: installed",
        ),
        ({"source": "synthetic", "path": "x"}, "path has no meaning with source: synthetic"),
        (
            {"source": "files", "train": ("a",), "split": "b"},
            "split has no meaning with source: files",
        ),
        ({"source": "files"}, "train is empty: domain code needs at least one file"),
        ({"source": "hf"}, "path is missing: domain code needs a hub id"),
        (
            {"source": "hf", "path": "p", "validation_split": "train"},
            "validation_split='train' is the training split; name another",
        ),
        ({"source": "installed", "name": "cooking"}, "name='cooking' is no installed domain"),
        ({"source": "installed", "name": "a/b"}, "name must be letters"),
        ({"source": "installed", "name": ".."}, "name must be letters"),
        ({"source": "installed", "max_train_bytes": 0}, "max_train_bytes must be >= 1"),
    ],
)
def test_domain_mistakes_name_the_key(values, message):
    with pytest.raises(ValueError, match="^" + message):
        DomainConfig(**({"name": "code"} | values))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DataConfig(domains=()), "domains is empty"),
        (lambda: DataConfig(domains=DataConfig().domains * 2), "domains has the name 'code' twice"),
        (lambda: DataConfig(validation_share=1.0), "validation_share must be > 0 and < 1"),
        (
            lambda: DataConfig(max_document_bytes=10),
            "max_document_bytes must be >= 1000 and <= 1",
        ),
        (lambda: DataConfig(workers=-1), "workers must be >= 0 and <= 256"),
        (lambda: DataConfig(cache_dir=""), "cache_dir is empty"),
        (lambda: TokenizerConfig(vocab_size=258), "vocab_size must be >= 259"),
        (lambda: TokenizerConfig(kind="bytes", model="m"), "model='m' has no meaning"),
        (lambda: TokenizerConfig(train_bytes=0), "train_bytes must be >= 1"),
        (lambda: SyntheticConfig(num_symbols=1), "num_symbols must be >= 2 and <= 62"),
        (lambda: SyntheticConfig(order=0), "order must be >= 1"),
        (lambda: SyntheticConfig(order=4), "order=4 with num_symbols=16 has 65536 contexts"),
        (lambda: SyntheticConfig(kind="grammar", order=2), "order=2 has no meaning"),
        (lambda: SyntheticConfig(concentration=0.0), "concentration must be > 0"),
        (lambda: SyntheticConfig(train_tokens=1), "train_tokens must be >= 2"),
    ],
)
def test_other_mistakes_name_the_key(make, message):
    with pytest.raises(ValueError, match="^" + message):
        make()
