"""Gradients, updates and single weights: by hand, and against what autograd and torch say."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sparsecl.analysis.functional import (
    cosines,
    domain_gradients,
    gram,
    overlaps,
    update_effects,
)
from sparsecl.analysis.live import LiveWeights, norm
from sparsecl.analysis.measure import measure_structure
from sparsecl.analysis.single_weight import mean_reach, moved_share, output_shares
from sparsecl.errors import DataError
from sparsecl.model.build import build_gpt
from sparsecl.model.config import ModelConfig
from sparsecl.sparse.backends import LinearOptions
from sparsecl.sparse.linear import ColumnParallelSparseLinear
from sparsecl.topology.config import TopologyConfig
from sparsecl.topology.layer import LayerShape, LayerTopology

VOCAB = 40


def build(**topology):
    config = ModelConfig(preset=None, layers=2, width=16, heads=2, context=8)
    given = TopologyConfig(**{"density": 0.25, **topology})
    return build_gpt(config, given, vocab_size=VOCAB, seed=3)


def domains(num_rows=3):
    rng = np.random.default_rng(0)
    return {
        "low": rng.integers(0, VOCAB // 2, (num_rows, 9)),
        "high": rng.integers(VOCAB // 4, VOCAB, (num_rows, 9)),
    }


def live_gradients(model, rows):
    weights = LiveWeights(model)
    found = domain_gradients(model, weights, rows)
    return weights, {name: one.live for name, one in found.items()}


def effects_of(model, rows, eps):
    weights, gradients = live_gradients(model, rows)
    return update_effects(model, weights, rows, gradients, eps=eps)


def vectors(*values):
    """Planted gradients of eight weights, as two layers of four."""
    tensors = [torch.tensor(value, dtype=torch.float32) for value in values]
    return [{"one": value[:4], "two": value[4:]} for value in tensors]


def test_cosines_of_planted_gradients():
    planted = vectors([1, 0, 0, 0, 0, 0, 0, 1], [1, 0, 0, 0, 0, 0, 0, -1], [2, 0, 0, 0, 0, 0, 0, 2])
    products = gram(planted)
    assert products.tolist() == [[2, 0, 4], [0, 2, 0], [4, 0, 8]]
    np.testing.assert_allclose(cosines(products), [[1, 0, 1], [0, 1, 0], [1, 0, 1]])


def test_overlap_of_the_largest_by_hand():
    planted = vectors(
        [9, -8, 1, 1, 1, 1, 1, 1], [9, 1, 1, 1, 1, 1, 1, -8], [0, 0, 1, 0, 0, 2, 0, 0]
    )
    # Two of eight in each set: one common of three, none, none.
    third = 1 / 3
    assert overlaps(planted, 0.25).tolist() == [[1, third, 0], [third, 1, 0], [0, 0, 1]]
    assert overlaps(planted, 1e-9)[0, 1] == 1  # one weight each, the same


@pytest.mark.parametrize(
    "topology", [{}, {"storage": "packed"}, {"kind": "dense"}, {"role": "update"}]
)
def test_gradients_are_those_of_the_mean_loss(topology):
    model, rows = build(**topology), domains()
    weights = LiveWeights(model)
    found = domain_gradients(model, weights, rows)
    text = torch.from_numpy(rows["high"])
    model(text[:, :-1], text[:, 1:])[0].mean().backward()
    for name, layer in weights.layers.items():
        expected = layer.weight.grad
        expected = expected.view(-1) if layer.dead is None else expected[~layer.dead]
        assert found["high"].live[name].shape == (weights.counts[name],)
        torch.testing.assert_close(found["high"].live[name], expected)
    others = {n for n, _ in model.named_parameters()} - {f"{n}.weight" for n in weights.layers}
    assert found["high"].other.keys() == others
    torch.testing.assert_close(found["high"].other["norm.weight"], model.norm.weight.grad)


def test_rows_in_several_chunks_give_the_same(monkeypatch):
    model, rows = build(), domains()
    whole, gradients = effects_of(model, rows, 1e-2), live_gradients(model, rows)[1]
    monkeypatch.setattr("sparsecl.analysis.functional.CHUNK_TOKENS", 16)  # two rows of three
    monkeypatch.setattr("sparsecl.analysis.functional.CHUNK_CELLS", 5 * VOCAB)  # five positions
    parts = effects_of(model, rows, 1e-2)
    np.testing.assert_allclose(parts.loss, whole.loss, rtol=1e-6)
    np.testing.assert_allclose(parts.kl, whole.kl, rtol=1e-3)
    for name, value in live_gradients(model, rows)[1]["low"].items():
        torch.testing.assert_close(value, gradients["low"][name])


@pytest.mark.parametrize("storage", ["masked", "packed"])
def test_a_small_step_does_what_the_gradients_say(storage):
    model, rows = build(storage=storage), domains()
    errors = []
    for eps in (1e-2, 1e-3):
        found = effects_of(model, rows, eps)
        assert (np.diag(found.loss_change) < 0).all() and (np.diag(found.predicted) < 0).all()
        errors.append(np.abs(found.loss_change - found.predicted).max())
    np.testing.assert_allclose(found.loss_change, found.predicted, rtol=0.02)
    assert errors[1] < errors[0] / 30  # the error is of second order


def test_the_step_has_the_relative_size_asked_for():
    model, rows = build(), domains()
    weights, gradients = live_gradients(model, rows)
    found = update_effects(model, weights, rows, gradients, eps=1e-2)
    # -eta g.g with eta = eps |w| / |g|: the first-order change on the domain itself.
    size = norm(weights.read())
    expected = [-1e-2 * size * norm(gradient) for gradient in gradients.values()]
    np.testing.assert_allclose(np.diag(found.predicted), expected, rtol=1e-12)
    # And it is the real step: made by hand, it has the same effect.
    gradient, start = gradients["high"], weights.read()
    eta = 1e-2 * size / norm(gradient)
    tokens = torch.from_numpy(rows["low"])

    def logits():
        with torch.no_grad():
            return model.embedding(model.features(tokens[:, :-1]))[..., :VOCAB].double()

    before = logits()
    weights.write({name: value - eta * gradient[name] for name, value in start.items()})
    after = logits()
    losses = [F.cross_entropy(x.flatten(0, 1), tokens[:, 1:].flatten()) for x in (before, after)]
    assert found.loss_change[1, 0] == pytest.approx((losses[1] - losses[0]).item(), rel=1e-4)
    kl = F.kl_div(after.log_softmax(-1), before.log_softmax(-1), log_target=True, reduction="sum")
    assert found.kl[1, 0] == pytest.approx(kl.item() / 24, rel=1e-4)
    assert found.loss[0] == pytest.approx(losses[0].item(), rel=1e-6)


@pytest.mark.parametrize("topology", [{}, {"storage": "packed", "keep_expansion": True}])
def test_weights_are_back_bit_for_bit(topology):
    model, rows = build(**topology), domains()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    text = torch.from_numpy(rows["low"])
    loss = model(text[:, :-1], text[:, 1:])[0]
    effects_of(model, rows, 0.1)
    weights = LiveWeights(model)
    mean_reach(weights, output_shares(model, rows["low"][:1]), num_weights=3, seed=0)
    with pytest.raises(RuntimeError, match="stop"), weights.restored() as start:
        weights.write({name: value + 1 for name, value in start.items()})
        raise RuntimeError("stop")
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(model(text[:, :-1], text[:, 1:])[0], loss)


def test_a_diverged_model_is_refused():
    model, rows = build(), domains()
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    with pytest.raises(DataError, match="domain low: the norm of its gradient is nan"):
        live_gradients(model, rows)


class Stack(torch.nn.Module):
    """Three square layers of 8 units, one after the other, without norms or residual paths."""

    def __init__(self, mask, storage):
        super().__init__()
        edges = np.flatnonzero(mask)
        self.layers = torch.nn.ModuleList(
            ColumnParallelSparseLinear(
                LayerShape(f"{i}", "up", 8, 8),
                LayerTopology(f"{i}", 8, 8, edges),
                options=LinearOptions(storage=storage),
            )
            for i in range(3)
        )
        generator = torch.Generator().manual_seed(0)
        for layer in self.layers:
            layer.fill(torch.rand(8, 8, generator=generator) * torch.from_numpy(mask))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("storage", ["masked", "packed"])
def test_one_weight_moves_its_own_block_only(storage):
    blocks = np.kron(np.eye(4, dtype=bool), np.ones((2, 2), dtype=bool))
    x = torch.rand(5, 8, generator=torch.Generator().manual_seed(1))
    shares = {}
    for name, mask in (("blocks", blocks), ("dense", np.ones((8, 8), dtype=bool))):
        stack = Stack(mask, storage)
        before = stack(x)
        by_weight = []

        def measure(stack=stack, before=before, by_weight=by_weight):
            by_weight.append(moved_share(before, stack(x)))
            return {"out": by_weight[-1]}

        found = mean_reach(LiveWeights(stack), measure, num_weights=1000, seed=0)
        assert found.num_weights == len(by_weight) == 3 * mask.sum()  # all of them, each once
        shares[name] = found.shares["out"]
        assert torch.equal(stack(x), before)
        # A weight of the last layer moves one unit, others all units they are followed by.
        assert sorted(set(by_weight)) == [1 / 8, 1 / 4 if name == "blocks" else 1]
    assert shares == {"blocks": pytest.approx(5 / 24), "dense": pytest.approx(17 / 24)}


def test_outputs_of_a_model_and_the_draw_of_weights():
    model, rows = build(), domains(1)
    weights, both = LiveWeights(model), np.concatenate(list(rows.values()))
    found = mean_reach(weights, output_shares(model, both), num_weights=6, seed=0)
    assert found.shares.keys() == {"hidden", "logits"}
    # Norms couple all units, so a weight reaches more logits than units of the last block.
    assert 0 < found.shares["hidden"] <= found.shares["logits"] <= 1
    assert mean_reach(weights, output_shares(model, both), num_weights=6, seed=0) == found
    assert mean_reach(weights, output_shares(model, both), num_weights=6, seed=1) != found


def test_moved_share_by_hand():
    before = torch.tensor([1.0, 1.0, -4.0, 0.0, 0.0, 100.0], dtype=torch.float64)
    change = torch.tensor([2e-6, 5e-7, -5e-6, 1e-30, 0.0, 5e-5], dtype=torch.float64)
    assert moved_share(before, before + change) == 3 / 6


def test_structure_of_an_update_only_model_is_dense():
    found = {role: measure_structure(build(role=role)) for role in ("topology", "update")}
    assert found["update"].paths_ratio_to_dense_log10 == pytest.approx(0, abs=1e-12)
    expected = np.log10(found["topology"].rho_power)
    assert expected == pytest.approx(3 * np.log10(0.25))
    assert found["topology"].paths_ratio_to_dense_log10 == pytest.approx(expected, rel=0.1)
    assert found["topology"].num_matrices == 4
    assert len(found["topology"].reach) == 2
    assert found["topology"].reach[0] >= found["topology"].reach_without_residual[0]
