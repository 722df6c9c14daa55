"""Online normalisation against the vector of the card (methods2.md 6) and plain normalisation."""

import numpy as np
import pytest
import torch

from sparsecl.methods.cl.config import EwcConfig
from sparsecl.methods.plasticity.config import CbpConfig, UpgdConfig
from sparsecl.streams import run
from sparsecl.streams.checkpoint import Saved
from sparsecl.streams.config import LearnerConfig, StreamConfig, check_methods
from sparsecl.streams.loop import Pack
from sparsecl.streams.online_norm import OnlineNorm
from tests.streams.small import config, images
from tests.streams.test_loop import trained

NORM = LearnerConfig(width=8, layers=2, norm="online")


def test_the_vector_of_the_card():
    """a = b = .9, eps 0, x = 1, 3, gradients 1, -1."""
    norm = OnlineNorm(1, decay=0.9, control=0.9, eps=0.0)
    x = torch.tensor([[1.0], [3.0]], requires_grad=True)
    y = norm(x)
    assert y.flatten().tolist() == pytest.approx([1.0, 2.914610], abs=1e-5)
    assert norm.stats[:2, 0].tolist() == pytest.approx([0.39, 1.6479], abs=1e-5)
    y.backward(torch.tensor([[1.0], [-1.0]]))
    assert x.grad.flatten().tolist() == pytest.approx([1.0, -1.397967], abs=1e-5)
    assert norm.stats[2:, 0].tolist() == pytest.approx([-0.397967, -2.764105], abs=1e-5)


def test_many_features_and_steps_against_numpy_one_number_at_a_time():
    rng = np.random.default_rng(0)
    norm = OnlineNorm(3, decay=0.95, control=0.8)
    mean, var, u, v = np.zeros(3), np.ones(3), np.zeros(3), np.zeros(3)
    for _ in range(4):
        x, g = rng.normal(1.0, 2.0, (5, 3)), rng.normal(size=(5, 3))
        given = torch.tensor(x, dtype=torch.float32, requires_grad=True)
        norm.bound = 100.0
        y = norm(given)
        y.backward(torch.tensor(g, dtype=torch.float32))
        ys, gins = np.empty((2, 5, 3))
        sigmas = np.empty((5, 3))
        for i, j in np.ndindex(5, 3):
            sigmas[i, j] = (var[j] + 1e-5) ** 0.5
            d = x[i, j] - mean[j]
            ys[i, j] = d / sigmas[i, j]
            var[j], mean[j] = 0.95 * var[j] + 0.95 * 0.05 * d * d, mean[j] + 0.05 * d
        for i, j in np.ndindex(5, 3):
            free = g[i, j] - 0.2 * v[j] * ys[i, j]
            v[j] += free * ys[i, j]
            gins[i, j] = free / sigmas[i, j] - 0.2 * u[j]
            u[j] += gins[i, j]
        assert y.detach().numpy() == pytest.approx(ys, abs=1e-4)
        assert given.grad.numpy() == pytest.approx(gins, abs=1e-4)


def test_a_long_stream_is_normalised_and_its_gradients_are_balanced():
    """Then outputs have mean 0 and deviation 1, and gradients neither a sum nor a part along y."""
    torch.manual_seed(0)
    norm = OnlineNorm(2, decay=0.99, control=0.9)
    x = (3.0 + 2.0 * torch.randn(3000, 2)).requires_grad_()
    y = norm(x)
    late = y[1000:].detach()
    assert late.mean(0).tolist() == pytest.approx([0.0, 0.0], abs=0.1)
    assert late.std(0).tolist() == pytest.approx([1.0, 1.0], abs=0.1)
    (1.0 + y + 0.1 * torch.randn(3000, 2)).square().sum().mul(0.5).backward()  # pulls along y
    gradients = x.grad[1000:]
    assert gradients.mean(0).tolist() == pytest.approx([0.0, 0.0], abs=0.02)
    assert (gradients * late).mean(0).tolist() == pytest.approx([0.0, 0.0], abs=0.15)


def test_in_a_test_nothing_moves_and_far_samples_are_cut_off():
    norm = OnlineNorm(1).eval()
    before = norm.stats.clone()
    assert norm(torch.tensor([[7.0], [-0.5], [-9.0]])).flatten().tolist() == pytest.approx(
        [5.0, -0.5, -5.0], abs=1e-4
    )
    assert norm.stats.equal(before)


def test_a_batch_is_its_samples_one_by_one():
    torch.manual_seed(1)
    whole, parts = OnlineNorm(3), OnlineNorm(3)
    x = torch.randn(6, 3)
    assert whole(x).equal(torch.cat([parts(row[None]) for row in x]))
    assert whole.stats.equal(parts.stats)
    again = OnlineNorm(3)
    again.load_state_dict(whole.state_dict())  # a resume
    assert again(x).equal(whole(x))


def test_networks_side_by_side_are_each_by_itself():
    torch.manual_seed(2)
    both, alone = OnlineNorm(3, networks=(2,)), [OnlineNorm(3) for _ in range(2)]
    for _ in range(3):
        x, g = torch.randn(2, 4, 3, requires_grad=True), torch.randn(2, 4, 3)
        y = both(x)
        (found,) = torch.autograd.grad(y, x, g)
        for k, one in enumerate(alone):
            part = x[k].detach().requires_grad_()
            own = one(part)
            assert own.equal(y[k]) and torch.autograd.grad(own, part, g[k])[0].equal(found[k])
            assert one.stats.equal(both.stats[:, k])
    both.forget((1,), torch.tensor([0, 2]))
    assert both.stats[:, 1, [0, 2]].tolist() == [[0, 0], [1, 1], [0, 0], [0, 0]]
    assert both.stats[:, 0].equal(alone[0].stats) and both.stats[0, 1, 1] != 0


def test_networks_with_a_norm_learn_and_are_what_they_are_alone():
    changes = {"learner": NORM, "methods": {"cbp": CbpConfig(rate=0.01, maturity=5)}}
    together, records = trained(config(seeds=2, **changes))
    alone, own = trained(config(seeds=2, together=1, **changes), pack=1)
    norms = [dict(pack.model.named_buffers())["layers.1.norm.stats"] for pack in (together, alone)]
    assert norms[0][:, 1].equal(norms[1][:, 0]) and not norms[0][:, 0].equal(norms[0][:, 1])
    for a, b in zip(together.model.parameters(), alone.model.parameters(), strict=True):
        assert a[1].equal(b[0])
    mine = [r for r in records if r["seed"] == 1 and r["kind"] == "task"]
    assert mine == [r for r in own if r["kind"] == "task"]


def test_what_looks_moves_nothing_and_a_unit_that_begins_anew_forgets():
    pack = Pack(config(learner=NORM, methods={"cbp": CbpConfig()}), images(), 0)
    for _ in range(5):
        pack._step(torch.rand(1, 1, 9), torch.tensor([[1]]))
    first = list(pack.model.layers)[0]
    before = first.norm.stats.clone()
    pack.model.hidden(torch.rand(1, 20, 9))
    assert first.norm.stats.equal(before) and (before[0] != 0).any()
    with torch.no_grad():
        first.norm.weight.fill_(3.0)
        first.norm.bias.fill_(0.5)
    group = pack.context.units["layers.0"]
    assert group.incoming[2:] == ("layers.0.norm.weight", "layers.0.norm.bias")
    rng = pack.context.network_generator((0,), "test")
    pack.context.begin_anew(group, np.array([4]), rng, (0,))
    assert first.norm.stats[:, 0, 4].tolist() == [0, 1, 0, 0]
    assert first.norm.weight[0, 4] == 1 and first.norm.bias[0, 4] == 0
    rest = [0, 1, 2, 3, 5, 6, 7]
    assert first.norm.stats[..., rest].equal(before[..., rest]) and first.norm.weight[0, 0] == 3


def test_a_norm_goes_on_where_it_was(tmp_path):
    """Half the tasks, a kill, the rest: as all at once."""
    whole = run.Prepared(config(learner=NORM, tasks=2), images(), tmp_path / "whole")
    wanted = run.run(whole)
    pack, saved = Pack(whole.config, images(), 0), []

    class Killed(Exception):
        pass

    def save(pack: Pack) -> None:
        tensors, values = pack.state()
        saved.append(({key: t.clone() for key, t in tensors.items()}, values))
        raise Killed

    with pytest.raises(Killed):
        pack.train(lambda kind, **v: None, save, lambda *a: None)
    (tensors, values) = saved[0]
    assert tensors["norm/layers.0.norm.stats"].shape == (4, 1, 8)
    position = {**pack.position.as_json()}
    again, records = Pack(whole.config, images(), 0), []
    again.go_on(Saved(tmp_path, {"position": position, "methods": values}, tensors))
    again.train(
        lambda kind, **v: records.append(v["online_accuracy"]) if kind == "task" else None,
        lambda pack: None,
        lambda *a: None,
    )
    assert records == wanted["online_accuracy"][1:]


def test_what_a_norm_does_not_go_with_is_said():
    with pytest.raises(ValueError, match="norm=online: methods.ewc makes passes of its own"):
        config(learner=NORM, methods={"ewc": EwcConfig()})
    with pytest.raises(ValueError, match="norm=online is for hidden layers .*=image_pairs"):
        config(learner=NORM, stream=StreamConfig(kind="image_pairs", samples_per_task=30))
    settings = config(learner=NORM, methods={"upgd": UpgdConfig(order=2)})
    with pytest.raises(ValueError, match="methods.upgd.order=2 needs the diagonal"):
        check_methods(settings, NORM.shapes(9, 3))
