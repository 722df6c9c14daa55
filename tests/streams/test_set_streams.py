"""Graphs that move, in networks side by side: each as if its network were alone."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sparsecl.errors import InvariantError
from sparsecl.methods.dst.config import RiglConfig, SetConfig, SnfsConfig
from sparsecl.streams.config import LearnerConfig, check_methods
from sparsecl.streams.loop import Pack
from tests.streams.small import config, images
from tests.streams.test_loop import SPARSE, trained


@pytest.mark.parametrize(
    "methods",
    [
        {"set": SetConfig(every=10)},
        {"set": SetConfig(every=10, drop="mest")},
        {"rigl": RiglConfig(every=10, end=1.0)},
    ],
    ids=["set", "mest", "rigl"],
)
def test_each_graph_moves_as_if_its_network_were_alone(methods):
    settings: dict[str, Any] = {"seeds": 2, "methods": methods, "topology": SPARSE}
    pack, records = trained(config(**settings))
    before = [m.clone() for m in Pack(config(**settings), images(), 0).model.masks().values()]
    after = list(pack.model.masks().values())
    for old, new in zip(before, after, strict=True):
        for k in range(2):
            moved = int((old[k] & ~new[k]).sum())
            assert moved > 0 and int(new[k].sum()) == int(old[k].sum())
        assert (old[0] != old[1]).any() and (new[0] != new[1]).any()
    for name, dead in pack.model.masks().items():
        assert not pack.model.get_parameter(name).detach()[dead].any()
    for k in range(2):
        alone, own = trained(config(**settings, together=1), k)
        for name, dead in alone.model.masks().items():
            assert torch.equal(dead[0], pack.model.masks()[name][k])
        for a, b in zip(pack.model.parameters(), alone.model.parameters(), strict=True):
            assert torch.equal(a[k], b[0])


def test_what_set_grows_in_a_network_begins_at_zero_and_the_guard_holds_what_went():
    pack = Pack(config(seeds=2, topology=SPARSE, methods={"set": SetConfig()}), images(), 0)
    (name, dead), *_ = pack.model.masks().items()
    one = pack.context.each()[1]
    live, gone = (~dead[1]).view(-1).nonzero()[:2, 0], dead[1].view(-1).nonzero()[:2, 0]
    first = pack.model.get_parameter(name).detach()[0].clone()
    grown = one.rewire(name, live, gone)
    weight = pack.model.get_parameter(name).detach()
    assert torch.equal(weight[0], first) and not weight[1].view(-1)[torch.cat([live, gone])].any()
    assert grown[1].view(-1).nonzero()[:, 0].equal(gone) and not grown[0].any()
    pack._step(torch.rand(2, 1, 9), torch.randint(3, (2, 1)))
    assert not weight[1].view(-1)[live].any()
    weight[1].view(-1)[live[0]] = 1.0
    with pytest.raises(InvariantError):
        pack.guard.audit(0)


def test_what_streams_cannot_show_is_refused():
    shapes = config().learner.shapes(9, 3)
    for methods, topology, text in (
        ({"set": SetConfig(drop="mest")}, SPARSE, "methods.set: it asks for gradients of absent"),
        ({"rigl": RiglConfig()}, SPARSE, "methods.rigl: it asks for gradients of absent weights"),
        ({"snfs": SnfsConfig()}, SPARSE, "methods.snfs: it does not run on the networks"),
        ({"set": SetConfig()}, config().topology, "methods.set: a dense model has no topology"),
    ):
        learner = LearnerConfig(norm="online")
        with pytest.raises(ValueError, match=text):
            check_methods(config(methods=methods, topology=topology, learner=learner), shapes)


@pytest.mark.parametrize("weight", [None, torch.tensor([0.5, 2.0, 1.0])])
def test_gradients_of_all_cells_are_those_of_autograd_on_a_dense_network(weight):
    pack = Pack(config(seeds=2, topology=SPARSE), images(), 0)
    dense = Pack(config(seeds=2), images(), 0)
    dense.model.load_state_dict(pack.model.state_dict())
    x, y = torch.rand(2, 3, 9), torch.randint(3, (2, 3))
    losses = F.cross_entropy(dense.model(x).flatten(0, 1), y.flatten(), reduction="none")
    (losses.view(2, 3) * (1.0 if weight is None else weight)).sum().div(3).backward()
    found = pack.model.dense_gradients(x, y, weight)
    assert len(found) == 3
    for name, gradient in found.items():
        assert torch.allclose(gradient, dense.model.get_parameter(name).grad, atol=1e-6)
    for name, dead in pack.model.masks().items():
        assert found[name][dead].abs().sum() > 0


def test_rigl_grows_where_the_gradient_of_the_step_is_largest():
    rigl = RiglConfig(every=100, drop_fraction=0.5, schedule="constant")
    pack = Pack(config(seeds=2, topology=SPARSE, methods={"rigl": rigl}), images(), 0)
    (name, dead), *_ = pack.model.masks().items()
    x, y, before = torch.rand(2, 1, 9), torch.randint(3, (2, 1)), dead.clone()
    weight = pack.model.get_parameter(name).detach().clone()
    gradient = pack.model.dense_gradients(x, y, None)[name].abs()
    pack._step(x, y)  # the first one moves the graph in place of the weights
    for k in range(2):
        num = int((~before[k]).sum())
        kept = weight[k].abs().masked_fill(before[k], 0.0).view(-1).topk(num - num // 2).indices
        score = gradient[k].view(-1).index_fill(0, kept, -1.0)
        grown = score.topk(num // 2).indices
        lives = (~dead[k]).view(-1).nonzero()[:, 0].tolist()
        assert set(lives) == {*kept.tolist(), *grown.tolist()}
