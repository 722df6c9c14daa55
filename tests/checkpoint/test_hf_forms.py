"""Models of transformers as ours and back, of each form: the same function, the same bits."""

import json

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file

from sparsecl import config as configs
from sparsecl.analysis.load import load_model
from sparsecl.checkpoint.hf_import import read_model
from sparsecl.checkpoint.manifest import verify, write_manifest
from sparsecl.checkpoint.reader import Reader
from sparsecl.engine.run import vocabulary
from sparsecl.engine.run_config import RunConfig
from sparsecl.errors import DataError, MissingInputError, UserError
from sparsecl.programs.convert import main
from tests.analysis.made_run import load, make_run
from tests.data.test_hf_tokenizer import END, build
from tests.model.test_forms import real_text

LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 48,
}
MODELS = {
    "gpt2": ("GPT2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 48}),
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "llama tied": ("Llama", {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "llama 500k": (
        "Llama",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}},
    ),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
}


def make(form, folder, vocab_size=257, **save):
    """A model of transformers with random weights, biases and gains, saved in `folder`."""
    family, fields = MODELS[form]
    fields = {**(LLAMA if family != "GPT2" else {}), **fields, "vocab_size": vocab_size}
    config = getattr(transformers, f"{family}Config")(**fields)
    head = "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
    torch.manual_seed(3)
    model = getattr(transformers, head)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder, **save)
    return model.eval()


def tool(*words):
    return main([str(word) for word in words])


def opened(run):
    """The model of an import, in fp32."""
    config = configs.load(RunConfig, run / "config.yaml")
    step = run / "checkpoints" / "step_0"
    return config, load_model(step, config.model, config.topology, vocab_size=257, seed=0).eval()


def tensors_of(folder):
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        if file.name != "topology.safetensors":
            found |= load_file(file)
    return found


@torch.no_grad()
@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("form", MODELS)
def test_import_is_the_function_and_export_the_weights(form, shards, tmp_path):
    save = {"max_shard_size": "50KB"} if shards else {}
    theirs, tokens = make(form, tmp_path / "in", **save), real_text()[:, :-1]
    assert (tmp_path / "in" / "model.safetensors.index.json").exists() is shards
    assert tool("hf-import", tmp_path / "in", tmp_path / "run") == 0
    config, ours = opened(tmp_path / "run")
    assert config.model.form == ("gpt2" if form == "gpt2" else "llama")
    logits = theirs(tokens).logits
    found = ours.logits(tokens)[..., :257]
    assert logits.std() > 0.1  # not a comparison of zeros
    print(f"{form}: {(logits - found).abs().max():.2e}")
    torch.testing.assert_close(found, logits, rtol=0, atol=1e-5)

    assert tool("hf-export", tmp_path / "run", tmp_path / "out") == 0
    before, after = tensors_of(tmp_path / "in"), tensors_of(tmp_path / "out")
    if config.model.resolved().tied:
        before.pop("lm_head.weight", None)
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.equal(value.view(torch.int32), after[key].view(torch.int32)), key
    again, info = type(theirs).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    assert torch.equal(again.eval()(tokens).logits, logits)


RUNS = {
    "gpt2": ("model.form=gpt2",),
    "llama": ("model.form=llama", "model.kv_heads=2", "model.norm_eps=1.0e-6"),
    "qwen2": ("model.form=llama", "model.kv_heads=2", "model.qkv_bias=true", "model.tied=true"),
}


@pytest.mark.parametrize("form", RUNS)
def test_a_sparse_run_goes_out_and_comes_back(form, tmp_path, shared_cache):
    model = make_run(tmp_path / "run", load(shared_cache, *RUNS[form])).eval()
    assert tool("hf-export", tmp_path / "run", tmp_path / "out") == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokens = real_text(16)[:, :-1]
    ours = model.logits(tokens)[..., :257]
    assert ours.std() > 0.02
    print(f"{form}: export {(theirs(tokens).logits - ours).abs().max():.2e}")
    torch.testing.assert_close(theirs(tokens).logits, ours, rtol=0, atol=1e-5)
    assert tool("hf-import", tmp_path / "out", tmp_path / "back") == 0
    (old,) = (tmp_path / "run" / "checkpoints").glob("step_*")
    before, after = Reader(old), Reader(tmp_path / "back" / "checkpoints" / "step_0")
    assert after.manifest.parameters == before.manifest.parameters
    for name in before.manifest.parameters:
        assert torch.equal(before.read("master", name), after.read("master", name)), name
    assert {n: t.digest for n, t in after.topologies.items()} == {
        n: t.digest for n, t in before.topologies.items()
    }
    assert tool("verify", tmp_path / "back" / "checkpoints" / "step_0") == 0


def test_the_card_says_what_the_model_is(tmp_path, shared_cache):
    make_run(tmp_path / "run", load(shared_cache, *RUNS["llama"]))
    (step,) = (tmp_path / "run" / "checkpoints").glob("step_*")
    manifest = verify(step)
    rows = [[5.5, 5.5], [2.0, 4.25]]
    manifest.state["matrix"] = {"loss": rows, "bits_per_byte": [[8.0, 8.0], [3.0, None]]}
    write_manifest(step, manifest)
    assert tool("hf-export", tmp_path / "run", tmp_path / "out") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    for text in (
        "architecture of Llama: 2 layers of width 32, 4 heads (2 of keys and values)",
        "| kind | er_fixed |",
        "| density of the masked matrices | 0.25 |",
        "one after the other: a, b.",
        "| a | 2.0000 | 3.0000 |",
        "| b | 4.2500 | unknown |",
        "licence of the data, and so of the weights, is unknown",
        "AutoTokenizer.from_pretrained",
    ):
        assert text in card, card
    head, front, _ = card.split("---\n", 2)
    assert not head and yaml.safe_load(front)["license"] == "unknown"
    live = sum(int((value != 0).sum()) for value in tensors_of(tmp_path / "out").values())
    assert f"| live parameters | {live:,} |" in card
    assert tool("hf-import", tmp_path / "out", tmp_path / "back") == 0
    assert tool("hf-export", tmp_path / "back", tmp_path / "again") == 0
    again = (tmp_path / "again" / "README.md").read_text()
    assert "What they were trained on is not known" in again and "one after" not in again


@torch.no_grad()
def test_a_model_with_its_tokenizer_comes_in_and_goes_out(tmp_path):
    theirs = make("qwen2", tmp_path / "in", vocab_size=1000)
    build("qwen2").save(str(tmp_path / "in" / "tokenizer.json"))
    (tmp_path / "in" / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}))
    assert tool("hf-import", tmp_path / "in", tmp_path / "run") == 0
    config = configs.load(RunConfig, tmp_path / "run" / "config.yaml")
    assert (config.tokenizer.kind, vocabulary(config)) == ("hf", 1000)
    assert tool("hf-export", tmp_path / "run", tmp_path / "out") == 0
    name = "tokenizer.json"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "in" / name).read_bytes()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokens = tokenizer("def heap(x):\n    return x", return_tensors="pt")["input_ids"]
    assert torch.equal(again(tokens).logits, theirs(tokens).logits)
    # Another tokenizer's ids are not those of the weights.
    (tmp_path / "other").mkdir()
    build("gpt2").save(str(tmp_path / "other" / "tokenizer.json"))
    (tmp_path / "other" / "special_tokens_map.json").write_text(json.dumps({"eos_token": END}))
    words = ("--tokenizer", tmp_path / "other")
    assert tool("hf-import", tmp_path / "in", tmp_path / "no", *words) == 64


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, UserError, "rope_scaling='lla"),
        ({"rope_parameters": {"rope_type": "yarn"}}, UserError, "rope_parameters='yarn'"),
        ({"rope_parameters": 3}, DataError, "rope_parameters=3 is no mapping"),
        ({"sliding_window": 16}, UserError, "sliding_window=16"),
        ({"layer_types": ["sliding_attention"]}, UserError, "layer_types='sliding_attention'"),
        ({"head_dim": 16}, UserError, "head_dim=16"),
        ({"attention_bias": True}, UserError, "attention_bias=True"),
        ({"mlp_bias": True}, UserError, "mlp_bias=True"),
        ({"hidden_act": "gelu"}, UserError, "hidden_act='gelu'"),
        ({"quantization_config": {"bits": 4}}, UserError, "before they were quantised"),
        ({"num_key_value_heads": 3}, DataError, "num_key_value_heads=3"),
        ({"hidden_size": "64"}, DataError, "hidden_size='64'"),
        ({"num_hidden_layers": 1 << 19}, DataError, "are no 524288 layers"),
        ({"num_hidden_layers": 1 << 60}, DataError, "is not a number in"),
        ({"num_hidden_layers": 3}, DataError, "holds no model.layers.2"),
        ({"num_hidden_layers": 1}, DataError, "is not a tensor of the model"),
        ({"rms_norm_eps": None}, DataError, "rms_norm_eps=None"),
        ({"tie_word_embeddings": True}, DataError, "lm_head.weight differs"),
        ({"intermediate_size": 95}, DataError, "its config says"),
    ],
)
def test_what_is_not_computed_here_is_refused_by_name(change, error, message, tmp_path):
    make("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(error, match=message) as caught:
        found = read_model(tmp_path, trusted=False, approximate=True)
        found.read("layers.0.mlp.up.weight")
    assert "\n" not in str(caught.value)


def test_an_index_names_files_that_are_there(tmp_path):
    make("llama", tmp_path, max_shard_size="50KB")
    index = tmp_path / "model.safetensors.index.json"
    shard = sorted(tmp_path.glob("model-*.safetensors"))[0]
    shard.rename(tmp_path / "other")
    with pytest.raises(MissingInputError, match=f"{shard.name}: not there"):
        read_model(tmp_path, trusted=False, approximate=False)
    for content, message in (
        ('{"weight_map": {"a": "../model.safetensors"}}', "names 'model.safetensors'"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "names 'passwd'"),
        ('{"weight_map": 3}', "has no weight_map"),
    ):
        index.write_text(content)
        with pytest.raises(DataError, match=message):
            read_model(tmp_path, trusted=False, approximate=False)
