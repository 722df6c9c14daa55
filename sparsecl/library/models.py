"""A GPT from a config, or with the weights that a run has trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsecl.analysis.load import load_model
from sparsecl.checkpoint.find import find_checkpoint
from sparsecl.checkpoint.manifest import read_manifest
from sparsecl.checkpoint.run_tokenizer import find_tokenizer
from sparsecl.conversions.hf_export import config_of
from sparsecl.engine.run import vocabulary
from sparsecl.engine.run_config import RunConfig
from sparsecl.errors import MissingInputError
from sparsecl.library.runs import ConfigLike, run_config
from sparsecl.model.build import build_gpt
from sparsecl.model.gpt import GPT


def build(config: ConfigLike) -> GPT:
    """The model of a run before its first step, on the CPU in fp32. Local.

    `model.logits(tokens)` scores token ids, int64 [B, T] -> fp32 [B, T, V].

    Args:
        config: see `run_config`. The vocabulary is `tokenizer.vocab_size`.

    Raises:
        UserError: the config is wrong.
    """
    run = run_config(config)
    return build_gpt(run.model, run.topology, vocab_size=vocabulary(run), seed=run.seed)


def load(path: Path | str, *, cache: Path | str | None = None) -> GPT:
    """The model of a checkpoint folder, or of the newest checkpoint of a run, in fp32 and in eval
    mode; on a GPU where there is one. Local.

    Args:
        cache: data cache of the run, where its tokenizer lies; None = where its config says.

    Raises:
        MissingInputError: there is no checkpoint; or its tokenizer is not in the cache.
        DataError: it is damaged.
    """
    found = find_checkpoint(Path(path))
    state = read_manifest(found.folder).state
    config = config_of(found, state)
    model = load_model(
        found.folder,
        config.model,
        config.topology,
        vocab_size=_vocabulary(config, state, Path(cache) if cache else None),
        seed=config.seed,
        shape=config.shape,
    )
    return model.eval()


def _vocabulary(config: RunConfig, state: Mapping[str, Any], cache: Path | None) -> int:
    """Token ids in use: a trained tokenizer may have fewer than were asked for."""
    if "vocab_size" in state:  # weights that came from another program
        return int(state["vocab_size"])
    tokenizer = find_tokenizer(state, cache)
    if tokenizer is None:
        raise MissingInputError(
            f"the tokenizer of the run is not in {cache or config.data.cache_dir}: give cache=, "
            "the data cache folder of the run"
        )
    return tokenizer.vocab_size
