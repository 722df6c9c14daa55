"""Token stores made by hand, and manifests sealed again after a change."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsecl.data import cache
from sparsecl.data.held_file import HeldFile
from sparsecl.data.token_store import TokenStore


def token_store(path: Path, tokens: Sequence[int], vocab_size: int = 1000) -> TokenStore:
    """A store of these tokens, uint16, in the file `path`."""
    raw = np.asarray(tokens, dtype="<u2").tobytes()
    path.write_bytes(raw)
    file = HeldFile(path, size=len(raw), sha256=hashlib.sha256(raw).hexdigest())
    return TokenStore(file, np.dtype("<u2"), vocab_size, len(tokens), 0, 1)


def all_tokens(store: TokenStore) -> np.ndarray:
    """Every token of a store, int64."""
    return store.take(np.array([0]), store.num_tokens)[0]


def reseal(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a manifest as somebody does who knows how it vouches for itself."""
    manifest = json.loads(path.read_text())
    made_for = manifest.pop("made_for")
    del manifest["sha256"]
    change(manifest)
    path.write_text(json.dumps(cache.sealed(manifest, made_for)))
