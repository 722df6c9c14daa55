"""Sizes of a domain's text if they are known without reading any: when it lies in the cache."""

from sparsecl.data.cache import NotBuiltError, only_published
from sparsecl.data.config import DataConfig, TokenizerConfig
from sparsecl.data.prepare import prepare
from sparsecl.errors import UserError


def known_tokens(
    data: DataConfig, tokenizer: TokenizerConfig, *, seed: int
) -> dict[str, tuple[int, int]]:
    """Domain -> tokens of its training and its validation text; empty if the text of one is not
    prepared yet. Nothing is built, and what is wrong with the data is left to who reads it."""
    try:
        with only_published():
            found = prepare(data, tokenizer, context=1, seed=seed, verify=False)
    except (NotBuiltError, UserError):
        return {}
    return {d.name: (d.train.num_tokens, d.validation.num_tokens) for d in found.domains}
