"""What all adapters share: which pair each phase trains, and what they say of themselves."""

import pytest
import torch

from sparsecl.methods.adapters.config import LoraConfig, NLoraConfig
from sparsecl.methods.adapters.lora import Lora
from sparsecl.methods.adapters.n_lora import NLora
from sparsecl.methods.adapters.overlap import Overlap, cosine, rank_of_sum
from sparsecl.methods.adapters.pairs import Adapters
from tests.methods.adapters.linear import attached, zero_gradients
from tests.methods.plain import PlainContext


@pytest.mark.parametrize(
    ("kind", "config", "trained"),
    [
        (Lora, LoraConfig(rank=2, kinds=("q",)), [None, (0, 2), (0, 2), (0, 2)]),
        (Lora, LoraConfig(rank=2, per_domain=True), [None, (0, 2), (2, 4), (4, 6)]),
        (NLora, NLoraConfig(rank=2, l1=0.0), [None, (0, 2), (2, 4), (4, 6)]),
    ],
)
def test_which_pair_each_phase_trains(kind: type[Adapters], config, trained):
    method, model, _ = attached(kind, config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    context = PlainContext(model, optimizer, [method])
    part = model.q.parts[method.name]
    assert part.a.shape == (2 * config.num_pairs(4), 3) and not part.b.any()
    for phase, rows in enumerate(trained):
        before = [p.detach().clone() for p in (model.q.weight, part.a, part.b)]
        context.at(0, phase=phase)
        context.methods.phase_start(context)
        for _ in range(3):
            zero_gradients(model, 1.0)
            context.step(optimizer)
        now = (model.q.weight, part.a, part.b)
        moved = [new != old for new, old in zip(now, before, strict=True)]
        learns = torch.zeros(len(part.a), dtype=torch.bool)
        learns[slice(*(rows or (0, 0)))] = True
        assert moved[0].all() == (rows is None) == moved[0].any()
        assert moved[1].equal(learns[:, None].expand_as(part.a))
        assert moved[2].equal(learns[None].expand_as(part.b))
        assert context.guard.audit(phase) == 0


def seen(*pairs: tuple[list, list]) -> dict[str, float]:
    found = Overlap()
    found.see(
        [torch.tensor(a).float() for a, _ in pairs], [torch.tensor(b).float() for _, b in pairs]
    )
    return found.figures()


def test_the_collision_rate_by_hand():
    """dW are [[1,0],[0,2]] and [[0,3],[0,1]]: both are nonzero in one cell of four."""
    identity = [[1, 0], [0, 1]]
    found = seen((identity, [[1, 0], [0, 2]]), (identity, [[0, 3], [0, 1]]))
    assert found["collision"] == 0.25 and found["filled"] == 0.5
    # Their sum is [[1,3],[0,3]]; both have the same input directions.
    assert found["rank"] == 2 and found["capacity"] == 1.0
    assert found["overlap"] == pytest.approx(2**0.5 / 2)


def test_three_updates_are_compared_two_by_two():
    """They fill cells {0, 1}, {1}, {1, 2}: pairs share 1, 1 and 1 of 3 cells."""
    one = [[1.0]]
    found = seen((one, [[1], [2], [0]]), (one, [[0], [5], [0]]), (one, [[0], [1], [1]]))
    assert found["collision"] == pytest.approx(3 / 9) and found["filled"] == pytest.approx(5 / 9)
    assert found["rank"] == 1 and found["overlap"] == 1.0


def test_one_update_collides_with_none():
    assert seen(([[1, 0]], [[1], [1]])) == {"filled": 0.5, "rank": 1.0, "capacity": 0.5}


def test_no_collision_means_orthogonal_and_not_the_other_way_round():
    a, b = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    a[:, 2:], b[:, :2] = 0.0, 0.0
    assert cosine(a, b) == 0.0
    assert cosine(torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, -1.0]])) == 0.0


def test_the_rank_of_a_sum_is_that_of_the_matrix():
    generator = torch.Generator().manual_seed(0)
    a = [torch.randn(2, 7, generator=generator) for _ in range(2)]
    b = [torch.randn(9, 2, generator=generator) for _ in range(2)]
    assert rank_of_sum(a, b) == 4
    assert rank_of_sum([a[0], a[0]], b) == 2
    assert rank_of_sum(a, [torch.zeros(9, 2)] * 2) == 0


def test_a_method_tells_of_the_pairs_that_are_trained():
    method, model, context = attached(Lora, LoraConfig(rank=1, alpha=2.0, per_domain=True))
    part = model.q.parts["lora"]
    with torch.no_grad():
        part.a.copy_(torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 0, 1]]))
        part.b.copy_(torch.tensor([[1.0, 0, 0], [1, 1, 0]]))
    assert context.methods.all_figures(context.at(0, phase=0)) == {}
    one = context.methods.all_figures(context.at(0, phase=1))["lora"]
    assert one == {"filled": pytest.approx(2 / 6), "rank": 1.0, "capacity": 0.5}
    two = context.methods.all_figures(context.at(0, phase=2))["lora"]
    assert two["overlap"] == 1.0 and two["collision"] == pytest.approx(1 / 6)
    assert two["rank"] == 1.0


def test_a_cell_counts_by_the_update_that_the_model_adds():
    """alpha / rank is part of it: 16 * 8e-7 is above 1e-5, 8e-7 is not."""
    for alpha, filled in ((16.0, 1 / 6), (1.0, 0.0)):
        _, model, context = attached(Lora, LoraConfig(rank=1, alpha=alpha))
        with torch.no_grad():
            model.q.parts["lora"].a.copy_(torch.tensor([[1.0, 0, 0]]))
            model.q.parts["lora"].b.copy_(torch.tensor([[8e-7], [0.0]]))
        found = context.methods.all_figures(context.at(0, phase=3))["lora"]
        assert found["filled"] == pytest.approx(filled)
