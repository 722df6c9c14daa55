"""Sizes of text are known where it is prepared, and nothing is built to know them."""

from sparsecl.data.config import DataConfig, DomainConfig, SyntheticConfig, TokenizerConfig
from sparsecl.data.known import known_tokens
from sparsecl.data.prepare import prepare


def test_sizes_are_those_of_the_cache(tmp_path):
    source = SyntheticConfig(train_tokens=300, validation_tokens=50)
    domain = DomainConfig(name="a", source="synthetic", synthetic=source)
    data = DataConfig(domains=(domain,), cache_dir=str(tmp_path / "cache"))
    bytes_ = TokenizerConfig(kind="bytes")
    assert known_tokens(data, bytes_, seed=0) == {}
    assert not (tmp_path / "cache").exists()
    prepare(data, bytes_, context=8, seed=0)
    assert known_tokens(data, bytes_, seed=0) == {"a": (301, 51)}
    missing = DomainConfig(name="b", source="files", train=(str(tmp_path / "none.txt"),))
    other = DataConfig(domains=(missing,), cache_dir=str(tmp_path / "cache"))
    assert known_tokens(other, bytes_, seed=0) == {}
