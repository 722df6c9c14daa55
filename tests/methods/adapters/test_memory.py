"""Sparse memory finetuning by hand: which slots, what they and all others do, what is refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparsecl.errors import UserError
from sparsecl.methods.adapters.config import MemoryConfig
from sparsecl.methods.adapters.memory import Memory, best_read, kl_scores, tfidf_scores
from sparsecl.model.config import ModelConfig
from sparsecl.model.flops import count_parameters, training_flops_per_token
from sparsecl.topology.layer import LayerShape
from tests.methods import plain
from tests.methods.plain import PlainContext

# Reference vectors of the rules: four slots, nine batches.
COUNTS = torch.tensor([4, 1, 3, 0])
OPTIONS: dict[str, Any] = {"keys": 4, "key_width": 4, "heads": 2, "reads": 2, "layers": (0, 1)}
LAYERS = tuple(
    LayerShape(f"layers.{block}.mlp.{kind}", kind, *size)
    for block in (0, 1)
    for kind, size in (("up", (12, 6)), ("down", (6, 12)))
)
FACTS = replace(plain.FACTS, layers=LAYERS)


def chosen(scores: Tensor, top: int, counts: Tensor = COUNTS) -> list[int]:
    return best_read(scores, counts, top).nonzero().view(-1).tolist()


def test_tfidf_by_hand():
    scores = tfidf_scores(COUNTS, torch.tensor([9, 0, 2, 5]), 9)
    assert scores.tolist() == pytest.approx([0.0, 0.287823, 0.451490, 0.0], abs=1e-6)
    assert chosen(scores, 1) == [2] and chosen(scores, 2) == [1, 2]


def test_kl_by_hand():
    scores = kl_scores(COUNTS, torch.tensor([90, 1, 10, 30]))
    assert scores.tolist() == pytest.approx([-0.158880, 0.349469, 0.596919, 0.0], abs=1e-6)
    assert chosen(scores, 1) == [2] and chosen(scores, 2) == [1, 2]
    # One that the background has never read counts half a time there.
    unread = kl_scores(COUNTS, torch.tensor([90, 0, 10, 0]))
    assert unread[1] == pytest.approx(0.125 * np.log(0.125 / (0.5 / 100)))


def test_only_slots_that_were_read_are_chosen_and_the_lower_of_two_equal_ones():
    assert chosen(torch.tensor([-1.0, -1.0, -1.0, 5.0]), 2) == [0, 1]
    assert chosen(torch.zeros(4), 9) == [0, 1, 2]
    assert chosen(torch.zeros(4), 0) == []
    assert chosen(tfidf_scores(0 * COUNTS, 0 * COUNTS, 3), 2, 0 * COUNTS) == []


class Model(nn.Module):
    """Two feed-forward parts that pass nothing on but their memories, 6 features."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layers = nn.Linear(6, 6), nn.ModuleList(nn.Module() for _ in (0, 1))
        for block in self.layers:
            block.mlp = nn.Module()

    def feed_forwards(self):
        return {"layers.0.mlp": 6, "layers.1.mlp": 6}

    def add(self, at, name, part):
        self.get_submodule(at).parts = nn.ModuleDict({name: part})

    def generator(self, *names):
        return np.random.default_rng([len(str(name)) for name in names])

    def forward(self, x):
        for block in self.layers:
            x = x + block.mlp.parts.memory(self.norm(x))
        return x


class Context(PlainContext):
    def pass_forward(self, rows):
        with torch.no_grad():
            self.module(inputs(int(rows.sum())))


def inputs(seed: int) -> Tensor:
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(seed))


def attached(
    optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW, **options: Any
) -> tuple[Memory, Model, Context, torch.optim.Optimizer]:
    torch.manual_seed(0)
    method, model = Memory(MemoryConfig(**{**OPTIONS, "background": 2, **options})), Model()
    method.attach(model, 3)
    more = {"weight_decay": 0.5} if optimizer is torch.optim.AdamW else {}
    stepping = optimizer(model.parameters(), lr=0.1, **more)
    return method, model, Context(model, stepping, [method]), stepping


def step(context: Context, optimizer: torch.optim.Optimizer, seed: int) -> None:
    context.methods.step_start(context)
    optimizer.zero_grad()
    context.module(inputs(seed)).square().sum().backward()
    context.step(optimizer)


def train(context: Context, optimizer: torch.optim.Optimizer, phase: int, steps: int = 3) -> None:
    """A phase of its own text."""
    context.at(10 * phase, phase=phase, phase_step=0, data_step=0)
    context.methods.phase_start(context)
    for number in range(steps):
        step(context, optimizer, 100 * phase + number)
    context.methods.phase_end(context)


def masters(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize("rule", ["tfidf", "kl"])
def test_a_later_phase_moves_its_slots_alone(rule):
    """Bit for bit, under AdamW with decay; and what is held has no moments."""
    method, model, context, optimizer = attached(rule=rule, top=3)
    begin = masters(model)
    train(context, optimizer, 0)
    base = masters(model)
    assert all(not base[name].equal(begin[name]) for name in base)
    assert method.batches == 2 and method.figures(context) == {
        "used": float(method.tables["used"].sum())
    }
    context.at(10, phase=1, phase_step=0, data_step=0)
    context.methods.phase_start(context)
    ever = torch.zeros(16, dtype=torch.bool)
    for number in range(4):
        before = masters(model)
        step(context, optimizer, 200 + number)
        moved = {name: value != before[name] for name, value in masters(model).items()}
        slots = moved.pop(method.values).any(1)
        ever |= slots
        assert int(slots.sum()) == 3 and not any(bool(where.any()) for where in moved.values())
        for moment in context.slices.moments(context.slices.find(method.values)).values():
            assert moment.view(16, 6).any(1).equal(slots)
        assert context.guard.audit(number) == 0
    after = masters(model)[method.values]
    assert after[~ever].equal(base[method.values][~ever]) and not ever.all()
    assert method.tables["updated"].bool().equal(ever)
    figures = method.figures(context)
    assert figures["updated"] == int(ever.sum()) <= figures["used"] and "overlap" not in figures
    context.methods.phase_end(context)
    train(context, optimizer, 2)
    both = ever & method.tables["updated"].bool()
    found = method.figures(context)
    assert found["overlap"] == pytest.approx(float(both.sum()) / found["updated"])


def test_no_slots_train_nothing():
    _, model, context, optimizer = attached(top=0)
    train(context, optimizer, 0)
    base = masters(model)
    train(context, optimizer, 1)
    assert all(value.equal(base[name]) for name, value in masters(model).items())
    assert context.guard.audit(1) == 0


def test_all_slots_are_plain_gradient_descent_on_the_pool():
    method, model, context, optimizer = attached(top=16, sgd=0.1)
    _, other, _, plain_sgd = attached(torch.optim.SGD)
    train(context, optimizer, 0)
    other.load_state_dict(model.state_dict())
    context.at(10, phase=1)
    context.methods.phase_start(context)
    for seed in range(3):
        step(context, optimizer, seed)
        plain_sgd.zero_grad()
        other(inputs(seed)).square().sum().backward()
        for name, value in other.named_parameters():
            if name != method.values:
                value.grad = None
        plain_sgd.step()
    assert masters(model)[method.values].equal(masters(other)[method.values])
    assert context.guard.audit(1) == 0


@pytest.mark.parametrize("gate", [False, True])
def test_parameters_are_those_that_the_options_promise(gate):
    method, model, *_ = attached(gate=gate)
    promised = method.config.parameters(LAYERS, 3)
    found = {
        name: (tuple(value.shape), value.partition_dim)
        for name, value in model.named_parameters()
        if ".parts." in name
    }
    assert found == {name: (one.shape, one.partition_dim) for name, one in promised.items()}
    pool = promised[method.values]
    assert pool.num_elements == 16 * 6 and pool.num_multiplied == 2 * 2 * 2 * 6
    assert MemoryConfig().chosen(5) == (2,)
    keys = dict(model.named_parameters())["layers.0.mlp.parts.memory.keys"]
    assert 0.3 < float(keys.detach().abs().max()) <= 0.5  # 1 / sqrt(key_width)


def test_a_lookup_counts_the_rows_that_it_reads():
    shape = ModelConfig(preset=None, layers=1, width=8, heads=2, context=4).resolved()
    counts = count_parameters(shape, 20, {}, added=1000, added_multiplied=24)
    without = count_parameters(shape, 20, {})
    assert counts.total - without.total == 1000
    flops = [training_flops_per_token(shape, one).useful for one in (counts, without)]
    assert flops[0] - flops[1] == 6 * 24


def test_state_comes_back_and_is_checked():
    method, _, context, optimizer = attached()
    train(context, optimizer, 0)
    values, arrays = method.state_dict()[1], method.arrays()
    other = attached()[0]
    other.check_state((), values)
    other.check_arrays(arrays, values)
    other.load_state_dict({}, values)
    other.load_arrays(arrays)
    assert other.batches == 2
    assert all(other.tables[key].equal(method.tables[key]) for key in arrays)
    for key, value in (
        ("used", 2 * torch.ones(16, dtype=torch.int64)),
        ("reads", torch.zeros(15, dtype=torch.int64)),
        ("updated", torch.zeros(16)),
        ("batches_with", 3 * torch.ones(16, dtype=torch.int64)),
    ):
        with pytest.raises(ValueError, match=f"^{key}: "):
            other.check_arrays({**arrays, key: value}, values)
    with pytest.raises(ValueError, match="reads is missing"):
        other.check_arrays({key: arrays[key] for key in arrays if key != "reads"}, values)
    with pytest.raises(ValueError, match="more is not known"):
        other.check_arrays({**arrays, "more": arrays["reads"]}, values)
    with pytest.raises(ValueError, match="batches: -1 is no count"):
        other.check_state((), {"batches": -1})


def test_weights_alone_are_no_way_on_after_the_first_phase():
    method, _, context, _ = attached()
    method.began_anew(context.at(1, phase=0))
    with pytest.raises(UserError, match="which slots the earlier phases read"):
        method.began_anew(context.at(11, phase=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reads": 5}, "reads=5 is more than keys=4"),
        ({"key_width": 3}, "key_width=3 is odd"),
        ({"layers": (1, 0)}, "give each block once"),
        ({"top": -1}, "top must be >= 0"),
        ({"sgd": 0.0}, "sgd must be > 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MemoryConfig(**{**OPTIONS, **options})


@pytest.mark.parametrize(
    ("options", "facts", "message"),
    [
        ({}, {"num_phases": 1}, "2 at least"),
        ({}, {"joint": True}, "2 at least"),
        ({}, {"freezing": ("packnet",)}, "packnet freezes weights too"),
        ({"layers": (0, 2)}, {}, r"layers=\[0, 2\]: the model has blocks 0..1"),
    ],
)
def test_runs_that_it_is_not_for_are_refused(options, facts, message):
    MemoryConfig(**OPTIONS).check(FACTS)
    with pytest.raises(ValueError, match=message):
        MemoryConfig(**{**OPTIONS, **options}).check(replace(FACTS, **facts))
