"""Weights taken out of a checkpoint: one dense file, one sparse file, and the tokenizer."""

import json
import re
from pathlib import Path

import numpy as np
import torch
import yaml
from pytest import fixture, mark, raises
from safetensors.torch import load_file

from sparsecl.checkpoint import sparse_file
from sparsecl.checkpoint.consolidate import CONFIG_FILE, DTYPES, MODEL_FILE, consolidate
from sparsecl.checkpoint.reader import Reader
from sparsecl.checkpoint.run_tokenizer import find_tokenizer
from sparsecl.checkpoint.sparse_file import export_sparse
from sparsecl.data.given_tokenizer import load
from sparsecl.data.tokenizer import BytesTokenizer
from sparsecl.errors import CannotCreateError, DataError
from tests.checkpoint import made


@fixture(scope="module")
def folder(tmp_path_factory):
    return made.save(tmp_path_factory.mktemp("checkpoints"))


def masters() -> dict[str, torch.Tensor]:
    return {name: value for (state, name), value in made.matrices().items() if state == "master"}


@mark.parametrize("dtype", ["fp32", "bf16"])
def test_one_dense_file(folder, tmp_path, dtype):
    out = tmp_path / "model"
    config = {"name": "x", "model": {"layers": 1}, "tokenizer": {"kind": "bytes"}}
    consolidate(Reader(folder), out, dtype=dtype, config=config, tokenizer=BytesTokenizer())
    found = load_file(out / MODEL_FILE)
    assert found.keys() == masters().keys()
    for name, value in masters().items():
        assert torch.equal(found[name], value.to(DTYPES[dtype])), name
    assert yaml.safe_load((out / CONFIG_FILE).read_text()) == {
        "model": {"layers": 1},
        "tokenizer": {"kind": "bytes"},
    }
    assert load(out).kind == "bytes"


def test_a_weight_too_large_for_the_dtype_is_refused(folder, tmp_path):
    with raises(DataError, match=r"norm.weight holds a weight of 3e\+38, .*float16 ends at 65504"):
        consolidate(Reader(folder), tmp_path / "out", dtype="fp16")
    assert list(tmp_path.iterdir()) == []


def reader_of_the_docstring():
    """The very text that users are told to copy."""
    lines = sparse_file.__doc__.split("A reader in numpy alone:")[1].splitlines()
    code = "\n".join(line.removeprefix("    ") for line in lines)
    body = re.search(r"def read_weights.*", code, re.DOTALL)[0].strip().splitlines()[1:]
    assert len(body) <= 11  # ten lines and the return
    assert "sparsecl" not in code and "torch" not in code and "safetensors" not in code
    found: dict = {}
    exec(code, found)
    return found["read_weights"]


def test_the_documented_reader_gives_the_canonical_tensors(folder, tmp_path):
    path = tmp_path / "live.safetensors"
    sizes = export_sparse(Reader(folder), path)
    found = reader_of_the_docstring()(path)
    assert found.keys() == masters().keys()
    for name, value in masters().items():
        assert found[name].dtype == np.float32 and found[name].shape == value.shape
        assert (found[name].view(np.int32) == value.numpy().view(np.int32)).all(), name
    live = sum(topology.num_live for topology in made.topologies().values())
    # 32 embedding, 3 norm and 16 update weights as they are; value and index for the live ones.
    assert (sizes.live, sizes.cells) == (live, 64)
    assert sizes.num_bytes == 4 * (32 + 3 + 16) + 8 * live
    assert sizes.dense_bytes == 4 * (32 + 3 + 16 + 64)
    stored = load_file(path)
    assert stored["a.up.weight.indices"].dtype == torch.int32
    assert "a.up.weight" not in stored and "b.up.weight" in stored
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with raises(CannotCreateError, match="is there already"):
        export_sparse(Reader(folder), path)


@mark.parametrize("export", [consolidate, export_sparse])
def test_one_tensor_is_held_at_a_time(folder, tmp_path, export):
    source, done = made.Counted(folder), []
    export(source, tmp_path / "out", advance=done.append)
    assert (source.num_read, source.most) == (5, 1)
    assert sum(done) == 4 * (32 + 3 + 16 + 64)


def test_a_checkpoint_without_weights(tmp_path):
    some = {key: value for key, value in made.matrices().items() if key[0] != "master"}
    reader = Reader(made.save(tmp_path / "run", some))
    for export in (consolidate, export_sparse):
        with raises(DataError, match="holds no weights of embedding.weight"):
            export(reader, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_tokenizer_is_found_by_its_digest(tmp_path):
    digest = BytesTokenizer().digest
    assert find_tokenizer({"tokenizer": digest}).kind == "bytes"
    assert find_tokenizer({}) is None
    other = {"tokenizer": "0" * 64, "config": {"data": {"cache_dir": str(tmp_path)}}}
    broken = tmp_path / "tokenizers" / "sentencepiece-1" / "tokenizer.json"
    broken.parent.mkdir(parents=True)
    broken.write_text(json.dumps({"kind": "sentencepiece", "digest": "0" * 64}))
    assert find_tokenizer(other) is None  # a folder without its model
    hostile = {"tokenizer": "x", "config": {"tokenizer": {"model": "/dev/null"}, "data": "no"}}
    assert find_tokenizer(hostile, Path(tmp_path)) is None


def test_a_trained_tokenizer_in_the_cache(tmp_path):
    from sparsecl.data.tokenizer_training import train

    texts = [f"alpha beta {n} gamma delta {n * n}" for n in range(400)]
    tokenizer = train(iter(texts), 300)
    place = tmp_path / "tokenizers" / "sentencepiece-abc"
    place.mkdir(parents=True)
    tokenizer.save(place)
    state = {
        "tokenizer": tokenizer.digest,
        "config": {"data": {"cache_dir": str(tmp_path)}, "tokenizer": {"model": None}},
    }
    assert find_tokenizer(state).digest == tokenizer.digest
    state["config"]["data"]["cache_dir"] = str(tmp_path / "moved")
    assert find_tokenizer(state) is None
    assert find_tokenizer(state, tmp_path).vocab_size == tokenizer.vocab_size
