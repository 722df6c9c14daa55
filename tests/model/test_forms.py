"""Forms of the model: each is what transformers computes, and gpt is what it was."""

import hashlib
import sysconfig
from pathlib import Path

import pytest
import torch
import transformers

from sparsecl import config as configs
from sparsecl import dist
from sparsecl.engine.run_config import RunConfig
from sparsecl.errors import UserError
from sparsecl.model.build import build_gpt
from sparsecl.model.config import ModelConfig, check_tensor_parallel, config_of
from sparsecl.model.init import draw
from sparsecl.model.shapes import layer_shapes, parts
from sparsecl.sparse.registry import sparse_parameters
from sparsecl.topology.config import TopologyConfig

VOCAB = 257
SIZES = {"preset": None, "layers": 2, "width": 64, "heads": 8, "context": 48}
FORMS = {
    "gpt": {},
    "gpt2": {"form": "gpt2"},
    "llama": {"form": "llama", "kv_heads": 2, "norm_eps": 1e-6},
    "llama tied": {"form": "llama", "kv_heads": 2, "tied": True},
    "llama 500k": {"form": "llama", "kv_heads": 2, "rope_theta": 500_000.0},
    "llama all heads": {"form": "llama"},
    "qwen2": {"form": "llama", "kv_heads": 4, "qkv_bias": True, "rope_theta": 1e6},
}


def build(form, density=0.3, storage="masked", sequence=False, **fields):
    """This rank's share of a model whose biases and gains are not those that it begins with."""
    config = ModelConfig(**{**SIZES, **FORMS[form], "init_std": 0.1, **fields})
    topology = TopologyConfig(density=density, storage=storage)
    model = build_gpt(config, topology, vocab_size=VOCAB, seed=5, sequence=sequence)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and not hasattr(parameter, "dense_shape"):
                split = getattr(parameter, "partition_dim", -1) >= 0
                size = len(parameter) * (dist.tp_size() if split else 1)
                noise = torch.from_numpy(draw(name, (size,), seed=1, std=0.1))
                parameter += noise.chunk(dist.tp_size())[dist.tp_rank()] if split else noise
    return model


def real_text(num_tokens=48):
    """Bytes of Python's own sources, int64 [4, num_tokens + 1]."""
    root = Path(sysconfig.get_path("stdlib"))
    names = ("heapq.py", "textwrap.py", "gzip.py", "this.py")
    return torch.tensor([list((root / name).read_bytes()[: num_tokens + 1]) for name in names])


def transformers_twin(model):
    """The same function in transformers, filled by hand and not by our exporter."""
    shape, ours = model.shape, model.state_dict()
    common = {"vocab_size": VOCAB, "attn_implementation": "eager"}
    if shape.form != "llama":
        twin = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                n_embd=shape.width,
                n_layer=shape.layers,
                n_head=shape.heads,
                n_positions=shape.context,
                activation_function="gelu_new" if shape.form == "gpt2" else "gelu",
                **common,
            )
        )
        outside = {"embedding": "wte", "positions": "wpe", "norm": "ln_f"}
        inside = {"norm1": "ln_1", "norm2": "ln_2", "attention.o": "attn.c_proj"}
        inside |= {"mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}
        inside |= {f"attention.{kind}": f"attn.c_attn.{kind}" for kind in "qkv"}
        prefix, block = "transformer", "h"
    else:
        kinds = (transformers.LlamaForCausalLM, transformers.LlamaConfig)
        if shape.qkv_bias:
            kinds = (transformers.Qwen2ForCausalLM, transformers.Qwen2Config)
        twin = kinds[0](
            kinds[1](
                hidden_size=shape.width,
                intermediate_size=shape.mlp,
                num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads,
                num_key_value_heads=shape.kv_heads,
                max_position_embeddings=shape.context,
                rms_norm_eps=shape.norm_eps,
                rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
                tie_word_embeddings=shape.tied,
                **common,
            )
        )
        outside = {"embedding": "embed_tokens", "norm": "norm"}
        inside = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"}
        inside |= {f"attention.{kind}": f"self_attn.{kind}_proj" for kind in "qkvo"}
        inside |= {f"mlp.{kind}": f"mlp.{kind}_proj" for kind in ("gate", "up", "down")}
        prefix, block = "model", "layers"
    theirs = {}
    for name, value in ours.items():
        module, _, leaf = name.rpartition(".")
        value = value[:VOCAB] if module in ("embedding", "head") else value
        if module == "head":
            theirs["lm_head.weight"] = value
        elif module in outside:
            theirs[f"{prefix}.{outside[module]}.{leaf}"] = value
        else:
            index, _, part = module.removeprefix("layers.").partition(".")
            linear = shape.form != "llama" and value.dim() == 2
            theirs[f"{prefix}.{block}.{index}.{inside[part]}.{leaf}"] = value.T if linear else value
    if shape.form != "llama":
        for index in range(shape.layers):
            for leaf in ("weight", "bias") if shape.biases else ("weight",):
                key = f"{prefix}.{block}.{index}.attn.c_attn"
                found = [theirs.pop(f"{key}.{kind}.{leaf}") for kind in "qkv"]
                theirs[f"{key}.{leaf}"] = torch.cat(found, dim=-1)
    missing, unexpected = twin.load_state_dict(theirs, strict=False)
    biases = shape.form == "gpt"  # GPT-2 has them; they begin at zero
    left = [name for name in missing if not (biases and name.endswith(".bias"))]
    assert not unexpected and left in ([], ["lm_head.weight"]), (missing, unexpected)
    twin.tie_weights()
    return twin.eval()


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_logits_are_those_of_transformers_on_real_text(form):
    model, tokens = build(form).eval(), real_text()[:, :-1]
    ours = model.logits(tokens)[..., :VOCAB]
    theirs = transformers_twin(model)(tokens).logits
    assert ours.std() > 0.1  # not a comparison of zeros
    print(f"{form}: {(ours - theirs).abs().max():.2e}")
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_transformers(form):
    model, text = build(form, density=1.0), real_text()
    twin = transformers_twin(model)
    model(text[:, :-1], text[:, 1:])[0].mean().backward()
    logits = twin(text[:, :-1]).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten()).backward()
    mine = sum(float(p.grad.double().square().sum()) for p in model.parameters())
    zero = ".bias" if form == "gpt" else "nothing"
    found = {n: p.grad for n, p in twin.named_parameters() if not n.endswith(zero)}
    assert mine == pytest.approx(sum(float(g.double().square().sum()) for g in found.values()))


@pytest.mark.parametrize("form", FORMS)
def test_the_table_of_parts_is_the_model(form):
    model = build(form)
    found = [
        (name, tuple(value.shape), value.partition_dim) for name, value in model.named_parameters()
    ]
    table = parts(model.shape, model.embedding.num_embeddings)
    assert [(part.name, part.shape, part.partition_dim) for part in table] == found
    assert [part.layer for part in table if part.layer] == layer_shapes(model.shape)
    assert set(model.state_dict()) == {part.name for part in table}
    live = {f"{layer.name}.weight" for layer in layer_shapes(model.shape)}
    assert sparse_parameters(model).keys() == live


@pytest.mark.parametrize("form", FORMS)
def test_recomputed_blocks_and_the_future(form):
    text = real_text()
    results = []
    for recompute in (False, True):
        model = build(form, activation_checkpointing=recompute)
        loss, _ = model(text[:, :-1], text[:, 1:])
        loss.mean().backward()
        results.append([loss, *(parameter.grad for parameter in model.parameters())])
    for plain, again in zip(*results, strict=True):
        assert torch.equal(plain, again)
    changed = text.clone()
    changed[:, 20] = (changed[:, 20] + 1) % VOCAB
    model = build(form).eval()
    before, after = (model(t[:, :-1], text[:, 1:])[0] for t in (text, changed))
    torch.testing.assert_close(before[:, :20], after[:, :20])
    assert (before[:, 20:] != after[:, 20:]).any()


@pytest.mark.parametrize("form", FORMS)
def test_bf16_is_near_fp32(form):
    text = real_text()
    exact = build(form)(text[:, :-1], text[:, 1:])[0]
    found = build(form).to(torch.bfloat16)(text[:, :-1], text[:, 1:])[0]
    assert found.dtype == torch.float32
    assert (found - exact).abs().mean() < 0.02 * exact.mean()


# ---- the form of before ------------------------------------------------------------------------


def test_gpt_begins_with_the_bits_that_it_always_had():
    config = ModelConfig(preset=None, layers=2, width=32, heads=4, context=16)
    model = build_gpt(config, TopologyConfig(density=0.3), vocab_size=100, seed=5)
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().numpy().tobytes())
    assert digest.hexdigest() == "daf85b96a2b382d6a51646293e97cd47d3769406b742b6ab1373148dc882a4a6"


def test_configs_that_name_no_form_have_the_digest_that_they_had():
    old = "d5ff7309df5cf48d288f7fcf39b2368379d90cb855ce20a30d3adee474c2d9cc"
    assert configs.digest(RunConfig()) == old
    assert configs.digest(RunConfig(model=ModelConfig(form="gpt"))) == old
    others = [RunConfig(model=ModelConfig(form=form)) for form in ("gpt2", "llama")]
    others.append(RunConfig(model=ModelConfig(form="llama", kv_heads=2)))
    assert len({old, *map(configs.digest, others)}) == 4


# ---- sizes -------------------------------------------------------------------------------------


def test_hidden_units_of_llama_are_8_thirds_of_the_width():
    def mlp(**fields):
        return ModelConfig(form="llama", **fields).resolved().mlp

    assert mlp(preset="100m") == 2048  # 8/3 of 768
    assert mlp(preset="demo") == 384  # 341.3, rounded up to a multiple of 64
    assert mlp(preset="demo", mlp_ratio=3) == 256
    assert mlp(preset="demo", mlp=100) == 100


@pytest.mark.parametrize("form", FORMS)
def test_a_config_comes_back_from_its_shape(form):
    shape = ModelConfig(**{**SIZES, **FORMS[form]}).resolved()
    assert config_of(shape).resolved() == shape


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"kv_heads": 2}, "kv_heads=2 has no meaning with form: gpt"),
        ({"form": "gpt2", "tied": False}, "tied=False has no meaning with form: gpt2"),
        ({"form": "gpt2", "qkv_bias": True}, "qkv_bias=True has no meaning"),
        ({"rope_theta": 5e5}, "rope_theta=500000.0 has no meaning"),
        ({"form": "llama", "kv_heads": 3}, "kv_heads=3 does not divide heads=8. Use [24]"),
        ({"form": "llama", "kv_heads": 0}, "kv_heads=0 does not divide"),
        ({"form": "llama", "width": 56}, "leaves 7 features to a head"),
        ({"form": "llama", "rope_theta": 1.0}, "rope_theta must be > 1"),
        ({"norm_eps": 0.0}, "norm_eps must be in"),
    ],
)
def test_sizes_that_cannot_be(fields, problem):
    with pytest.raises(ValueError, match=problem):
        ModelConfig(**{**SIZES, **fields})


def test_heads_of_keys_are_not_cut():
    shape = ModelConfig(**{**SIZES, **FORMS["llama"]}).resolved()
    check_tensor_parallel(shape, 2)
    with pytest.raises(UserError, match="model.kv_heads=2 is not divisible by parallel.tensor=4"):
        check_tensor_parallel(shape, 4)
