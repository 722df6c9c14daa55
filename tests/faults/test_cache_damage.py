"""A campaign: flips, cuts and swaps all over a data cache. None changes what is trained on.

Each damage is drawn from its seed, put into a whole cache, and the cache is opened as a run opens
it. It must be refused with 65, or what comes out must be what came out before.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsecl.data.config import DataConfig, DomainConfig, SyntheticConfig, TokenizerConfig
from sparsecl.data.prepare import prepare
from sparsecl.errors import UserError
from tests.data.stores import all_tokens

TOKENIZERS = {"bytes": TokenizerConfig(kind="bytes"), "pieces": TokenizerConfig(vocab_size=300)}
NUM_DAMAGES = 120  # for each tokenizer


def opened(cache: Path, tokenizer: str) -> tuple[Any, ...]:
    """All that a run takes from the cache."""
    synthetic = [
        SyntheticConfig(kind=kind, train_tokens=3000, validation_tokens=400)
        for kind in ("markov", "grammar")
    ]
    domains = tuple(
        DomainConfig(name=name, source="synthetic", synthetic=law)
        for name, law in zip("ab", synthetic, strict=True)
    )
    data = DataConfig(domains=domains, cache_dir=str(cache))
    found = prepare(data, TOKENIZERS[tokenizer], context=16, seed=0)
    stores = [store for domain in found.domains for store in (domain.train, domain.validation)]
    return (
        found.fingerprint,
        found.tokenizer.digest,
        found.tokenizer.bytes_per_token.tolist(),
        [domain.entropy_rate for domain in found.domains],
        [(store.num_bytes, store.num_documents) for store in stores],
        [all_tokens(store).tolist() for store in stores],
    )


def damage(cache: Path, seed: int) -> str:
    """Do one thing to it; returns what it was."""
    rng = np.random.default_rng([seed, 7])
    if rng.random() < 0.5:  # so that tokens have to be made of the text again
        shutil.rmtree(cache / "tokens")
    if rng.random() < 0.3:
        shutil.rmtree(cache / "tokenizers")
    # Files are drawn by kind first: there are more manifests and locks than anything else.
    files = sorted(path for path in cache.rglob("*") if path.is_file())
    names = sorted({path.name if path.suffix != ".lock" else "lock" for path in files})
    name = names[rng.integers(len(names))]
    path = Path(rng.choice([str(p) for p in files if p.name == name or name == p.suffix[1:]]))
    kind = rng.choice(["flip", "flip", "cut", "longer", "zeros", "swap", "swap", "copy"])
    content = bytearray(path.read_bytes())
    place = int(rng.integers(max(1, len(content))))
    if kind == "swap":  # of two entries
        entries = sorted(p for p in cache.glob(f"{path.relative_to(cache).parts[0]}/[!.]*"))
        one, two = entries[0], entries[-1]
        for old, new in ((one, "spare"), (two, one.name), (one.with_name("spare"), two.name)):
            if old.exists():
                old.rename(old.with_name(new))
    elif kind == "copy":  # the same file of another entry, or any file
        same = [p for p in files if p.name == path.name and p != path] or files
        path.write_bytes(same[rng.integers(len(same))].read_bytes())
    elif kind == "flip" and content:
        content[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
    elif kind == "cut":
        os.truncate(path, place)
    elif kind == "longer":
        os.truncate(path, len(content) + int(rng.integers(1, 100)))
    else:
        path.write_bytes(content[:place] + bytes(len(content) - place))
    return f"{kind} {path.relative_to(cache)} at {place}"


@pytest.mark.fault("H8")
@pytest.mark.parametrize("tokenizer", list(TOKENIZERS))
def test_damage_anywhere_in_a_cache_changes_nothing_unseen(tmp_path, tokenizer):
    whole, cache = tmp_path / "whole", tmp_path / "cache"
    before = opened(whole, tokenizer)
    counts = {"refused": 0, "equal": 0}
    for seed in range(NUM_DAMAGES):
        shutil.copytree(whole, cache)
        what = damage(cache, seed)
        try:
            after = opened(cache, tokenizer)
        except UserError as error:
            assert error.exit_code == 65 and str(error).isprintable(), (what, error)
            assert str(cache) in str(error) and "delete" in str(error), (what, error)
            counts["refused"] += 1
        else:
            assert after == before, what
            counts["equal"] += 1
        shutil.rmtree(cache)
    print(counts)
    assert counts["refused"] > NUM_DAMAGES // 3 and counts["equal"] > 5
