"""Many sequences at once: those that the model writes one by one."""

import numpy as np
import pytest
import torch

from sparsecl.errors import InvariantError
from sparsecl.model import generate as module
from sparsecl.model.build import build_gpt
from sparsecl.model.choice import ChoiceConfig
from sparsecl.model.generate import generate, sample_rows
from tests.distributed import cases


@pytest.fixture(scope="module")
def model():
    config = cases.load("unused", ("model.init_std=0.3",))
    return build_gpt(config.model, config.topology, vocab_size=257, seed=0).eval()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_rows_are_what_is_written_one_by_one(model, monkeypatch, temperature):
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 4)
    uniform = np.random.default_rng(0).random((6, 16))
    prompts = np.array([[k, 256] for k in range(6)])
    rows = sample_rows(model, prompts, uniform[:, :15], temperature)
    assert rows.shape == (6, 17) and rows.dtype == np.int64
    assert (rows[:, :2] == prompts).all()
    for row, u in zip(rows, uniform, strict=True):
        alone = generate(model, row[:2].tolist(), u[:15], ChoiceConfig(temperature=temperature))
        assert row[2:].tolist() == list(alone.tokens)
    assert len(np.unique(rows)) > 20


def test_logits_that_are_not_finite_end_it(model):
    broken = build_gpt(
        *(getattr(cases.load("unused", ()), part) for part in ("model", "topology")),
        vocab_size=257,
        seed=0,
    ).eval()
    with torch.no_grad():
        broken.norm.weight.fill_(torch.nan)
    with pytest.raises(InvariantError, match="a logit of the model is not finite"):
        sample_rows(broken, np.zeros((2, 1), np.int64), np.zeros((2, 3)), 1.0)
