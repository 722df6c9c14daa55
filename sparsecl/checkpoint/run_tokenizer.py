"""The tokenizer of a run, from what its checkpoint says of it.

A run folder holds no tokenizer: it lies in the data cache of the run, in a folder named after what
it was trained on. The checkpoint knows its digest, which is how it is found and how it is known to
be the right one.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sparsecl.checkpoint.canonical import config_part
from sparsecl.data.config import DataConfig
from sparsecl.data.given_tokenizer import load
from sparsecl.data.hf_tokenizer import read_hf
from sparsecl.data.tokenizer import BytesTokenizer, Tokenizer, read_model
from sparsecl.errors import UserError


def find_tokenizer(state: Mapping[str, Any], cache: Path | None = None) -> Tokenizer | None:
    """The tokenizer whose digest a checkpoint's `state` holds; None if it cannot be found.

    Looked at are the bytes tokenizer, what the config names, and the data cache. A
    candidate that is broken or another one is passed over.

    Args:
        cache: data cache folder in place of the one in the config, which may be relative to
            the folder in which the run was started.
    """
    digest = state.get("tokenizer")
    if digest is None:
        return None
    for candidate in _candidates(state, cache):
        if candidate.digest == digest:
            return candidate
    return None


def _candidates(state: Mapping[str, Any], cache: Path | None) -> Iterator[Tokenizer]:
    yield BytesTokenizer()
    for key, read in (("model", read_model), ("path", read_hf)):
        named = config_part(state, "tokenizer").get(key)
        if named is not None:
            with contextlib.suppress(UserError):
                yield read(Path(str(named)))
    root = cache or Path(str(config_part(state, "data").get("cache_dir", DataConfig().cache_dir)))
    for path in sorted(root.glob("tokenizers/*/tokenizer.json")):
        with contextlib.suppress(UserError):
            yield load(path.parent)
