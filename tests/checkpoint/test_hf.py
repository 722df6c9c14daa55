"""Checkpoints as GPT-2 of transformers and back; GPT-2 and nanoGPT as a start; hostile files."""

import json
import os
import random
import struct
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from sparsecl.checkpoint import hf_tokenizer, start
from sparsecl.checkpoint.entries import entries
from sparsecl.checkpoint.hf_import import read_model
from sparsecl.checkpoint.nanogpt import read_nanogpt
from sparsecl.checkpoint.reader import Reader
from sparsecl.data import tokenizer_training
from sparsecl.data.tokenizer import BytesTokenizer, SentencePieceTokenizer
from sparsecl.errors import DataError, MissingInputError, UserError
from sparsecl.model.shapes import layer_shapes
from sparsecl.programs.convert import main
from tests.analysis.made_run import load, make_run
from tests.data.test_tokenizer import HARD

PREFIX = "transformer."


def real_text():
    root = Path(sysconfig.get_path("stdlib"))
    names = ("json/decoder.py", "heapq.py", "gzip.py", "textwrap.py", "this.py")
    return [(root / name).read_text() for name in names]


@pytest.fixture(scope="module")
def trained():
    return tokenizer_training.train(real_text(), 500)


@pytest.fixture(scope="module")
def made(tmp_path_factory, shared_cache, trained):
    """(run folder, its model, folder of its export)."""
    folder = tmp_path_factory.mktemp("hf")
    trained.save(folder)
    words = f"tokenizer={{kind: sentencepiece, model: {folder}/tokenizer.model}}"
    config = load(shared_cache, words)
    model = make_run(folder / "run", config)
    assert main(["hf-export", str(folder / "run"), str(folder / "out")]) == 0
    return folder / "run", model, folder / "out"


def copy_of(made, target, *, weights=None, **config):
    """The exported folder with other tensors or config values."""
    target.mkdir()
    old = json.loads((made[2] / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**old, **config}))
    tensors = load_file(made[2] / "model.safetensors")
    save_file({**tensors, **(weights or {})}, target / "model.safetensors", {"format": "pt"})
    return target


@torch.no_grad()
def test_logits_of_transformers_are_ours(made):
    _, model, out = made
    theirs, info = transformers.GPT2LMHeadModel.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info
    assert theirs.lm_head.weight.data_ptr() == theirs.transformer.wte.weight.data_ptr()
    tokens = torch.randint(500, (4, 16), generator=torch.Generator().manual_seed(1))
    ours = model.eval().embedding(model.features(tokens))
    found = theirs.eval()(tokens).logits
    assert found.shape == (4, 16, 500) and ours.shape[-1] == 512
    assert ours[..., :500].std() > 0.05  # not a comparison of zeros
    torch.testing.assert_close(found, ours[..., :500], rtol=0, atol=1e-5)


def texts(tokenizer):
    """Hard, real, and random texts; the random ones are made of pieces, and of few letters."""
    rng = random.Random(0)
    lines = [line for text in real_text() for line in text.splitlines(keepends=True)]
    if isinstance(tokenizer, SentencePieceTokenizer):
        ids = range(258, tokenizer.vocab_size)
        pieces = [tokenizer.decode(np.array([i])) for i in ids]
    else:
        pieces = ["a", "\u00e9", "\U0001f600", " "]
    few = [" ", "  ", "\t", "\n", "\r\n", "se", "e", "ee", "\u2581", "\0", "<unk>", "\u00e9", "10"]
    for parts in (pieces, few):
        lines += ["".join(rng.choices(parts, k=rng.randint(1, 12))) for _ in range(2000)]
    return HARD + lines + real_text()


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_ids_of_autotokenizer_are_ours(kind, trained, made, tmp_path):
    ours = BytesTokenizer() if kind == "bytes" else trained
    (tmp_path / "config.json").write_text((made[2] / "config.json").read_text())
    assert hf_tokenizer.write_tokenizer(ours, tmp_path, context=16) is None
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (len(theirs), theirs.eos_token_id) == (ours.vocab_size, ours.eot_id)
    lines = texts(ours)
    found = theirs(lines)["input_ids"]
    for line, ids in zip(lines, found, strict=True):
        assert ids == ours.encode(line).tolist(), line
    for line, ids in zip(lines, found, strict=True):
        assert theirs.decode(ids) == line
    assert theirs.decode([*found[5], ours.eot_id], skip_special_tokens=True) == lines[5]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda proto: setattr(proto.trainer_spec, "model_type", 1), "is no BPE"),
        (lambda proto: setattr(proto.normalizer_spec, "add_dummy_prefix", True), "normalises text"),
        (lambda proto: setattr(proto.pieces[300], "type", 4), "user-defined"),
        (lambda proto: setattr(proto.pieces[260], "score", proto.pieces[259].score), "same score"),
    ],
)
def test_a_tokenizer_that_cannot_be_expressed_is_said(trained, tmp_path, change, reason):
    proto = hf_tokenizer._parse(hf_tokenizer.model_bytes(trained))
    change(proto)
    other = SentencePieceTokenizer(proto.SerializeToString())
    note = hf_tokenizer.write_tokenizer(other, tmp_path, context=16)
    assert note is not None and reason in note
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.model"]


def test_export_and_import_is_the_identity(made, tmp_path, shared_cache):
    run, _, out = made
    assert main(["hf-import", str(out), str(tmp_path / "back")]) == 0
    before = Reader(run / "checkpoints" / "step_3")
    after = Reader(tmp_path / "back" / "checkpoints" / "step_0")
    assert after.manifest.parameters == before.manifest.parameters
    assert after.manifest.state["weights_only"] is True
    assert {n: t.digest for n, t in after.topologies.items()} == {
        n: t.digest for n, t in before.topologies.items()
    }
    for name in before.manifest.parameters:
        old, new = before.read("master", name), after.read("master", name)
        assert torch.equal(old.view(torch.int32), new.view(torch.int32)), name
    # Also as files: what is exported from the import is the export.
    assert main(["hf-export", str(tmp_path / "back"), str(tmp_path / "again")]) == 0
    for path in out.iterdir():
        if path.name == "README.md":
            continue  # an import knows nothing of the training
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_bf16_rounds_and_keeps_the_absent_weights_zero(made, tmp_path):
    assert main(["hf-export", str(made[0]), str(tmp_path / "o"), "--dtype", "bf16"]) == 0
    full, half = (load_file(f / "model.safetensors") for f in (made[2], tmp_path / "o"))
    assert all(torch.equal(half[key], value.to(torch.bfloat16)) for key, value in full.items())
    assert json.loads((tmp_path / "o" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_row_parallel_kinds_are_those_of_the_model(made):
    shape = made[1].shape
    found = entries(shape, 512, frozenset())
    assert list(found) == [name for name, _ in made[1].named_parameters()]
    for layer in layer_shapes(shape):
        assert found[f"{layer.name}.weight"].partition_dim == layer.split_dim


def test_a_weight_that_lives_but_should_not_is_refused(made, tmp_path):
    full = {f"{PREFIX}h.0.mlp.c_fc.weight": torch.ones(32, 128)}
    folder = copy_of(made, tmp_path / "in", weights=full)
    (folder / "topology.safetensors").write_bytes((made[2] / "topology.safetensors").read_bytes())
    assert main(["hf-import", str(folder), str(tmp_path / "back"), "--tokenizer", "bytes"]) == 64
    assert main(["hf-import", str(folder), str(tmp_path / "back")]) == 65
    assert not (tmp_path / "back").exists()


def test_largest_weights_by_hand():
    values = np.array([0.5, 0.1, 0.5, 0.9, 0.0, 0.5, 0.2, 0.3], dtype=np.float32)
    assert start._largest(values, 1).tolist() == [3]
    assert start._largest(values, 3).tolist() == [0, 2, 3]  # of equal ones the first
    assert start._largest(values, 5).tolist() == [0, 2, 3, 5, 7]
    assert start._largest(values, 8).tolist() == list(range(8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": {f"{PREFIX}h.1.ln_2.bias": torch.full((32,), 0.5)}}, "up to 0.5"),
    ],
)
def test_what_we_have_not_is_refused_or_left_out_by_wish(made, tmp_path, changes, message):
    folder = copy_of(made, tmp_path / "in", **changes)
    with pytest.raises(UserError, match=message) as caught:
        read_model(folder, trusted=False, approximate=False)
    assert "\n" not in str(caught.value) and "--approximate" in str(caught.value)
    found = read_model(folder, trusted=False, approximate=True)
    assert len(found.notes) == 1 and message in found.notes[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mistral"}, "only gpt2, llama, qwen2"),
        ({"layer_norm_epsilon": "1e-5"}, "layer_norm_epsilon='1e-5'"),
        ({"activation_function": "relu"}, "has GELU only"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ({"n_head": "4"}, "n_head='4'"),
        ({"n_head": 5}, "5 heads do not divide"),
        ({"weights": {"lm_head.weight": torch.zeros(500, 32)}}, "always tied"),
        ({"weights": {f"{PREFIX}h.7.ln_1.weight": torch.ones(32)}}, "h.7.ln_1.weight is not"),
        ({"weights": {f"{PREFIX}h.1.attn.c_attn.weight": torch.zeros(32, 64)}}, "does not fit"),
        ({"weights": {f"{PREFIX}wte.weight": torch.zeros(3)}}, "no matrix"),
    ],
)
def test_no_gpt2_of_ours(made, tmp_path, changes, message):
    folder = copy_of(made, tmp_path / "in", **changes)
    with pytest.raises(UserError, match=message) as caught:
        found = read_model(folder, trusted=False, approximate=True)
        [found.read(name) for name in entries(found.shape, found.vocab_size, frozenset())]
    assert "\n" not in str(caught.value)


# ---- nanoGPT -----------------------------------------------------------------------------------


def nanogpt_checkpoint(made):
    """What nanoGPT's train.py saves of the exported weights, after torch.compile."""
    state = {}
    for key, value in load_file(made[2] / "model.safetensors").items():
        if key.endswith(".bias"):
            continue
        is_linear = ".c_" in key
        state[f"_orig_mod.{key}"] = value.T.contiguous() if is_linear else value
    state["_orig_mod.lm_head.weight"] = state["_orig_mod.transformer.wte.weight"]
    sizes = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 16, "bias": False}
    more = {"iter_num": 3, "best_val_loss": torch.tensor(1.0), "optimizer": {"state": {}}}
    return {"model": state, "model_args": {**sizes, "vocab_size": 500}, "config": {}, **more}


def test_nanogpt_has_our_weights(made, tmp_path):
    torch.save(nanogpt_checkpoint(made), tmp_path / "ckpt.pt")
    found = read_nanogpt(tmp_path / "ckpt.pt", trusted=True, approximate=False)
    assert (found.shape, found.vocab_size) == (made[1].shape, 500)
    for name, param in made[1].named_parameters():
        wanted = param.detach()[:500] if name == "embedding.weight" else param.detach()
        assert torch.equal(found.read(name), wanted), name
    assert len(found.notes) == 1 and "restricted unpickler" in found.notes[0]


@pytest.mark.parametrize("wrapped", ["", "module.", "_orig_mod.module.", "module._orig_mod."])
@pytest.mark.parametrize("kind", ["nanogpt", "gpt2"])
def test_what_wraps_a_model_does_not_matter(made, tmp_path, wrapped, kind):
    if kind == "gpt2":
        folder = copy_of(made, tmp_path / "in")
        tensors = load_file(folder / "model.safetensors")
        tensors = {wrapped + key: value for key, value in tensors.items()}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        found = read_model(folder, trusted=False, approximate=False)
    else:
        checkpoint = nanogpt_checkpoint(made)
        state = checkpoint["model"]
        names = {key: wrapped + key.removeprefix("_orig_mod.") for key in state}
        checkpoint["model"] = {names[key]: value for key, value in state.items()}
        torch.save(checkpoint, tmp_path / "ckpt.pt")
        found = read_nanogpt(tmp_path / "ckpt.pt", trusted=True, approximate=False)
    name = "layers.1.mlp.up.weight"
    assert torch.equal(found.read(name), dict(made[1].named_parameters())[name].detach())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"transformer.": "model.gpt."}, "its names begin with 'model.gpt.', those of a GPT-2"),
        ({"wte": "tok"}, r"holds no wte.weight, but .*transformer\..*; it is no GPT-2"),
    ],
)
def test_other_names_are_shown(made, tmp_path, names, message):
    checkpoint = nanogpt_checkpoint(made)
    ((old, new),) = names.items()
    state = {key.replace(old, new): value for key, value in checkpoint["model"].items()}
    checkpoint["model"] = {k: v for k, v in state.items() if "lm_head" not in k}
    torch.save(checkpoint, tmp_path / "ckpt.pt")
    with pytest.raises(DataError, match=message):
        read_nanogpt(tmp_path / "ckpt.pt", trusted=True, approximate=False)


def test_one_tensor_under_two_names_is_refused(made, tmp_path):
    checkpoint = nanogpt_checkpoint(made)
    name = "transformer.wte.weight"
    checkpoint["model"][name] = checkpoint["model"][f"_orig_mod.{name}"] + 1
    torch.save(checkpoint, tmp_path / "ckpt.pt")
    with pytest.raises(DataError, match=f"_orig_mod.{name} and {name} are the same tensor"):
        read_nanogpt(tmp_path / "ckpt.pt", trusted=True, approximate=False)


def test_a_folder_of_links_as_the_hub_keeps_models(made, tmp_path):
    blobs = copy_of(made, tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for number, name in enumerate(("config.json", "model.safetensors")):
        (blobs / name).rename(blobs / f"3af{number}")
        (tmp_path / "snapshot" / name).symlink_to(blobs / f"3af{number}")
    for path in (tmp_path / "snapshot", tmp_path / "snapshot" / "model.safetensors"):
        assert read_model(path, trusted=False, approximate=False).shape == made[1].shape


def test_the_tokenizer_pads_where_generation_does_not_go_on(made):
    tokenizer = transformers.AutoTokenizer.from_pretrained(made[2])
    assert tokenizer.padding_side == "left"
    padded = tokenizer(["a", "a longer one"], padding=True)
    assert padded["attention_mask"][0][0] == 0 and padded["attention_mask"][0][-1] == 1


# ---- hostile files -----------------------------------------------------------------------------


class Canary:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.fault("C14")
@pytest.mark.parametrize("name", ["pytorch_model.bin", "ckpt.pt"])
@pytest.mark.parametrize("trusted", [False, True])
def test_a_pickle_is_never_executed(made, tmp_path, name, trusted):
    canary = tmp_path / "canary"
    (tmp_path / "config.json").write_text((made[2] / "config.json").read_text())
    torch.save({"model": {"x": Canary(canary)}, "model_args": {}}, tmp_path / name)
    read = read_model if name.endswith(".bin") else read_nanogpt
    path = tmp_path if name.endswith(".bin") else tmp_path / name
    error = DataError if trusted else UserError
    with pytest.raises(error, match="restricted unpickler" if trusted else "--trust-checkpoint"):
        read(path, trusted=trusted, approximate=False)
    assert not canary.exists()


def test_the_canary_sings_where_nothing_stops_it(tmp_path):
    torch.save(Canary(tmp_path / "canary"), tmp_path / "x.pt")
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert (tmp_path / "canary").exists()


def bomb(header, length=None):
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    return struct.pack("<Q", len(text) if length is None else length) + text


TERABYTE = {"wte.weight": {"dtype": "F32", "shape": [1 << 28, 1024], "data_offsets": [0, 1 << 40]}}
OVERLAP = {
    name: {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]} for name in ("wte.weight", "b")
}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        bomb({}, length=1 << 60),
        bomb(TERABYTE),
        bomb(OVERLAP) + b"1234",
        bomb(b"[" * 100_000),
        bomb({"a": {"dtype": "F32", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 0]}}),
    ],
    ids=["empty", "length", "long header", "terabyte", "overlap", "deep", "overflow"],
)
@pytest.mark.parametrize("name", ["model.safetensors", "topology.safetensors"])
def test_header_bombs_are_refused(made, tmp_path, content, name, capsys):
    folder = copy_of(made, tmp_path / "in")
    (folder / name).write_bytes(content)
    assert main(["hf-import", str(folder), str(tmp_path / "out")]) == 65
    assert not (tmp_path / "out").exists()
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    "text", ["", "[]", "{" * 100_000, '{"activation_function": "gelu", "n_head": NaN}', "\xff"]
)
def test_a_config_that_is_none(made, tmp_path, text):
    folder = copy_of(made, tmp_path / "in")
    (folder / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match="config.json"):
        read_model(folder, trusted=False, approximate=False)


def test_missing_files(tmp_path, made):
    with pytest.raises(MissingInputError, match="no such folder"):
        read_model(tmp_path / "none", trusted=False, approximate=False)
    with pytest.raises(MissingInputError, match=r"holds no model\.safetensors"):
        read_model(tmp_path, trusted=False, approximate=False)
    folder = copy_of(made, tmp_path / "in")
    (folder / "config.json").unlink()
    with pytest.raises(MissingInputError, match="n_head"):
        read_model(folder / "model.safetensors", trusted=False, approximate=False)
    with pytest.raises(MissingInputError, match=r"ckpt\.pt"):
        read_nanogpt(tmp_path / "ckpt.pt", trusted=True, approximate=False)
