"""tools/bench.py --vs nanogpt: against a small model.py with nanoGPT's names and interface."""

import json
from pathlib import Path

import numpy as np
import pytest

from sparsecl.benchmarks import nanogpt
from sparsecl.errors import DataError
from sparsecl.model.build import build_gpt
from sparsecl.model.config import ModelConfig
from sparsecl.programs import bench
from sparsecl.topology.config import TopologyConfig
from tests.launch.starter import run_script

ROOT = Path(__file__).resolve().parents[2]

MODEL = """
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        width, bias = c.n_embd, c.bias
        self.heads = c.n_head
        self.ln_1, self.ln_2 = (nn.LayerNorm(width, bias=bias) for _ in range(2))
        self.attn = nn.ModuleDict({
            "c_attn": nn.Linear(width, 3 * width, bias=bias),
            "c_proj": nn.Linear(width, width, bias=bias),
        })
        self.mlp = nn.ModuleDict({
            "c_fc": nn.Linear(width, 4 * width, bias=bias),
            "c_proj": nn.Linear(4 * width, width, bias=bias),
        })

    def forward(self, x):
        qkv = self.attn["c_attn"](self.ln_1(x)).chunk(3, dim=2)
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in qkv)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn["c_proj"](y.transpose(1, 2).flatten(2))
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class GPT(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(c.vocab_size, c.n_embd),
            "wpe": nn.Embedding(c.block_size, c.n_embd),
            "h": nn.ModuleList(Block(c) for _ in range(c.n_layer)),
            "ln_f": nn.LayerNorm(c.n_embd, bias=c.bias),
        })
        self.lm_head = nn.Linear(c.n_embd, c.vocab_size, bias=False)
        self.transformer["wte"].weight = self.lm_head.weight
        print("a model that talks")

    def forward(self, idx, targets=None):
        t = self.transformer
        x = t["wte"](idx) + t["wpe"](torch.arange(idx.shape[1]))
        for block in t["h"]:
            x = block(x)
        logits = self.lm_head(t["ln_f"](x))
        return logits, F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        groups = [
            {"params": [p for p in self.parameters() if p.dim() > 1], "weight_decay": weight_decay},
            {"params": [p for p in self.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas)
"""

SIZES = "--layers 2 --width 32 --heads 2 --context 16 --vocab 130 --sequences 4 --micro 2".split()
ROUNDS = "--rounds 3 --warmup 1 --threads 1".split()


def checkout(folder, text=MODEL):
    (folder / "model.py").write_text(text)
    return folder


def test_the_same_steps_from_the_same_weights(server, tmp_path):
    folder, out = checkout(tmp_path), tmp_path / "out.json"
    words = ["--vs", "nanogpt", str(folder), *SIZES, *ROUNDS, "--out", str(out)]
    process = run_script(ROOT / "tools" / "bench.py", words, cwd=tmp_path)
    assert process.code == 0, process.err
    result = json.loads(out.read_text())
    assert result["mode"] == "nanogpt" and len(result["sha256"]) == 64
    arms = result["arms"]
    assert list(arms) == ["dense", "nanogpt", "nanogpt_fused"]
    # 130 ids are padded to 256 rows of ours; positions, norms and linears are the same.
    rest = (16 + 2 * 2 + 1) * 32 + 2 * 12 * 32 * 32
    assert result["weights"] == {
        "ours": 256 * 32 + rest,
        "theirs": 130 * 32 + rest,
        "differ": {"token embedding": [256 * 32, 130 * 32]},
    }
    assert result["losses"]["ours"] == pytest.approx(result["losses"]["theirs"], abs=1e-5)
    # Four steps of the same optimizer at the same rate.
    last = [arm["last_loss"] for arm in arms.values()]
    assert last == pytest.approx([last[0]] * 3, abs=1e-5)
    assert last[0] != pytest.approx(result["losses"]["ours"], abs=1e-3)
    assert [order[0] for order in result["orders"]] == ["nanogpt", "nanogpt_fused", "dense"]
    dense = arms["dense"]["seconds"]["step"]
    for arm in arms.values():
        q1, median, q3 = np.percentile(np.divide(dense, arm["seconds"]["step"]), (25, 50, 75))
        assert arm["dense_over_it"] == pytest.approx({"median": median, "q1": q1, "q3": q3})
        assert set(arm["seconds"]) == {"step", "forward", "backward", "update"}
    assert "talks" not in process.out and "the same (limit 1e-05)" in process.out
    assert f"{arms['nanogpt']['dense_over_it']['median']:.4f} (" in process.out


LAST = '"ln_f": nn.LayerNorm(c.n_embd)'  # with a bias, whatever the config says


def compare(folder, text):
    """Counts of both models, and whether one takes the other's weights, and their losses."""
    config = ModelConfig(preset=None, layers=1, width=16, heads=2, context=8)
    ours = build_gpt(config, TopologyConfig(kind="dense"), vocab_size=100, seed=1)
    theirs = nanogpt.make(nanogpt.load(checkout(folder, text) / "model.py"), config.resolved(), 100)
    rows = np.random.default_rng(0).integers(100, size=(2, 9))
    counts, same = nanogpt.count(ours, theirs), nanogpt.give(ours, theirs)
    return counts, nanogpt.losses(ours, theirs, rows) if same else None


def test_another_function_of_the_same_weights_is_seen(tmp_path):
    _, found = compare(tmp_path, MODEL.replace("F.gelu", "F.relu"))
    assert found is not None and abs(found["ours"] - found["theirs"]) > nanogpt.TOLERANCE


@pytest.mark.parametrize(
    ("old", "new", "kind", "counts"),
    [
        (
            'self.transformer["wte"].weight = self.lm_head.weight',
            "pass",
            "head that is not tied",
            [0, 1600],
        ),
        ('"ln_f": nn.LayerNorm(c.n_embd, bias=c.bias)', LAST, "biases", [0, 16]),
        ("c.block_size, c.n_embd", "c.block_size + 1, c.n_embd", "position embedding", [128, 144]),
    ],
)
def test_what_one_has_and_the_other_has_not_is_named(tmp_path, old, new, kind, counts):
    assert old in MODEL
    found, losses = compare(tmp_path, MODEL.replace(old, new))
    assert found["differ"].pop(kind) == counts and losses is None
    assert list(found["differ"]) == ["token embedding"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_of_this_name", "does not run: ModuleNotFoundError: No module named"),
        ("class GPT: pass", "defines no GPTConfig; it is not nanoGPT's"),
        ("GPT = GPTConfig = 1", "makes no model: TypeError: 'int' object is not callable"),
    ],
)
def test_a_file_that_is_not_nanogpts(tmp_path, text, message):
    with pytest.raises(DataError) as caught:
        compare(tmp_path, text)
    assert f"{tmp_path / 'model.py'}: {message}" in str(caught.value)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 66, "holds no model.py; is it nanoGPT?"),
        (["--precision", "fp16"], 64, "--vs nanogpt compares fp32 or bf16"),
        (["--activation_checkpointing"], 64, "it keeps all activations"),
        (["--plot", "a.png"], 64, "--vs nanogpt has no picture"),
    ],
)
def test_wrong_flags_are_one_line(tmp_path, capsys, words, code, message):
    if words:
        checkout(tmp_path)
    assert bench.main(["--vs", "nanogpt", str(tmp_path), *SIZES, *words]) == code
    err = capsys.readouterr().err
    assert err.startswith("sparsecl: --vs nanogpt") and message in err and err.count("\n") == 1


def test_no_folder_and_no_other_model(tmp_path, capsys):
    assert bench.main(["--vs", "nanogpt", str(tmp_path / "no")]) == 66
    assert "no such folder; name a nanoGPT checkout" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        bench.parser().parse_args(["--vs", "megatron", str(tmp_path)])
    assert "invalid choice: 'megatron'" in capsys.readouterr().err
    assert "model.py IS RUN" in bench.parser().format_help()
