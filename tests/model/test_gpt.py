"""The model in one process: against a plain reference, and the laws of its outputs."""

import math

import pytest
import torch

from sparsecl.model.build import build_gpt
from sparsecl.model.config import ModelConfig
from sparsecl.sparse.registry import sparse_parameters
from sparsecl.topology.config import TopologyConfig
from tests.reference import ReferenceGPT

VOCAB = 100


def build(density=0.3, role="topology", kind="er_fixed", **fields):
    config = ModelConfig(preset=None, layers=2, width=32, heads=4, context=16, **fields)
    topology = TopologyConfig(kind=kind, density=density, role=role)
    return build_gpt(config, topology, vocab_size=VOCAB, seed=5)


def batch(num_tokens=16):
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(VOCAB, (3, num_tokens + 1), generator=generator)
    targets = text[:, 1:].clone()
    targets[0, :5] = -1
    targets[2, -1] = -1
    return text[:, :-1], targets


def reference_of(model):
    masks = {name: ~entry.dead for name, entry in sparse_parameters(model).items()}
    return ReferenceGPT(model.state_dict(), masks, heads=4, vocab_size=VOCAB)


@pytest.mark.parametrize("kind", ["er_fixed", "er_bernoulli", "dense"])
@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_loss_and_gradients_equal_the_reference(kind, activation_checkpointing):
    model = build(kind=kind, activation_checkpointing=activation_checkpointing)
    reference = reference_of(model)
    tokens, targets = batch()
    loss, correct = model(tokens, targets)
    assert correct is None
    mean = loss.sum() / (targets >= 0).sum()
    mean.backward()
    expected = reference.loss(tokens, targets)
    expected.backward()
    torch.testing.assert_close(mean, expected, rtol=1e-6, atol=1e-6)
    for name, parameter in model.named_parameters():
        mine = parameter.grad[:VOCAB] if name == "embedding.weight" else parameter.grad
        torch.testing.assert_close(mine, reference.params[name].grad, rtol=1e-4, atol=1e-7)
    for name, entry in sparse_parameters(model).items():
        assert (dict(model.named_parameters())[name].grad[entry.dead] == 0).all()
    assert (model.embedding.weight.grad[VOCAB:] == 0).all()


def test_all_live_mask_gives_the_bits_of_a_dense_model():
    tokens, targets = batch()
    results = []
    for model in (build(kind="dense"), build(density=1.0)):
        loss, _ = model(tokens, targets)
        loss.sum().backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    for dense, masked in zip(*results, strict=True):
        assert torch.equal(dense, masked)


def test_outputs():
    model = build().eval()
    tokens, targets = batch()
    loss, correct = model(tokens, targets)
    assert loss.shape == correct.shape == targets.shape
    assert (loss.dtype, correct.dtype) == (torch.float32, torch.bool)
    assert (loss[targets < 0] == 0).all()
    assert (loss[targets >= 0] > 0).all()
    assert not correct[targets < 0].any()
    # At the start all tokens are about equally likely.
    assert loss[targets >= 0].mean().item() == pytest.approx(math.log(VOCAB), rel=0.02)
    best = reference_of(model).logits(tokens).argmax(-1)
    assert torch.equal(correct, (best == targets) & (targets >= 0))
    # And with targets that the model would choose, all of them are correct.
    assert model(tokens, best)[1].all()


def test_padding_takes_no_probability():
    model = build()
    tokens, targets = batch()
    loss, _ = model(tokens, targets)
    with torch.no_grad():
        model.embedding.weight[VOCAB:] = 100.0
    assert torch.equal(model(tokens, targets)[0], loss)
    logits = model.embedding(model.features(tokens))
    probability = logits.softmax(-1)
    assert (probability[..., VOCAB:] == 0).all()


def test_the_future_does_not_matter():
    model = build().eval()
    tokens, targets = batch()
    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % VOCAB
    before, after = model(tokens, targets)[0], model(changed, targets)[0]
    torch.testing.assert_close(before[:, :9], after[:, :9])
    assert (before[:, 9] != after[:, 9]).any()


def test_short_sequences():
    model = build().eval()
    tokens, targets = batch()
    whole = model(tokens, targets)[0]
    torch.testing.assert_close(model(tokens[:, :7], targets[:, :7])[0], whole[:, :7])
    with pytest.raises(AssertionError):
        model(tokens.repeat(1, 2), targets.repeat(1, 2))


def test_bf16_weights_give_fp32_losses():
    tokens, targets = batch()
    exact = build()(tokens, targets)[0]
    model = build().to(torch.bfloat16)
    loss, _ = model(tokens, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.05, atol=0.05)
    loss.sum().backward()
    for name, entry in sparse_parameters(model).items():
        gradient = dict(model.named_parameters())[name].grad
        assert gradient.dtype == torch.bfloat16
        assert (gradient[entry.dead] == 0).all()
        assert (gradient[~entry.dead] != 0).any()


def test_absent_weights_and_moments_stay_zero():
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    tokens, targets = batch()
    first = last = 0.0
    for step in range(10):
        optimizer.zero_grad()
        loss = model(tokens, targets)[0].mean()
        loss.backward()
        optimizer.step()
        first, last = (loss.item(), loss.item()) if step == 0 else (first, loss.item())
    assert last < 0.8 * first
    parameters = dict(model.named_parameters())
    for name, entry in sparse_parameters(model).items():
        moments = optimizer.state[parameters[name]]
        for tensor in (parameters[name], moments["exp_avg"], moments["exp_avg_sq"]):
            assert (tensor[entry.dead] == 0).all()
            assert (tensor[~entry.dead] != 0).any()


def test_role_update_trains_the_topology_only():
    model = build(role="update")
    start = {name: value.clone() for name, value in model.state_dict().items()}
    tokens, targets = batch()
    # No weight decay: it would move the frozen weights, and undoing that is the optimizer's part.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    model(tokens, targets)[0].mean().backward()
    optimizer.step()
    for name, entry in sparse_parameters(model).items():
        value = model.state_dict()[name]
        assert torch.equal(value[entry.dead], start[name][entry.dead])
        assert (value[~entry.dead] != start[name][~entry.dead]).all()


def test_parameter_names():
    names = {"embedding.weight", "positions.weight", "norm.weight"}
    for i in range(2):
        names |= {f"layers.{i}.norm1.weight", f"layers.{i}.norm2.weight"}
        names |= {f"layers.{i}.attention.{kind}.weight" for kind in "qkvo"}
        names |= {f"layers.{i}.mlp.{kind}.weight" for kind in ("up", "down")}
    model = build()
    assert {name for name, _ in model.named_parameters()} == names
    assert set(model.state_dict()) == names
    split = {name: p.partition_dim for name, p in model.named_parameters()}
    assert split["embedding.weight"] == split["layers.0.attention.q.weight"] == 0
    assert split["layers.1.attention.o.weight"] == split["layers.1.mlp.down.weight"] == 1
    assert split["norm.weight"] == split["positions.weight"] == split["layers.0.norm1.weight"] == -1
