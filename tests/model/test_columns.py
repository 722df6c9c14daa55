"""Columns by hand: what a later one hears, what learns, and what all of it costs."""

import pytest
import torch
from torch import nn

from sparsecl.model.build import build_gpt
from sparsecl.model.columns import Lateral
from sparsecl.model.compiled import compile_blocks
from sparsecl.model.config import ModelConfig, ModelShape
from sparsecl.model.flops import column_shares, count_parameters, training_flops_per_token
from sparsecl.model.gpt import GPT
from sparsecl.model.memory import Layout, memory_per_rank
from sparsecl.model.shapes import layer_shapes, parts
from sparsecl.topology.config import TopologyConfig

VOCAB = 20


def build(columns: int = 3, *, form="gpt", kind="dense", **fields) -> GPT:
    config = ModelConfig(preset=None, layers=2, width=8, heads=2, context=6, form=form, **fields)
    lateral = 3 if columns > 1 else 0
    shape = ModelShape(**{**vars(config.resolved()), "columns": columns, "lateral": lateral})
    topology = TopologyConfig(kind=kind, density=1.0 if kind == "dense" else 0.4)
    return build_gpt(config, topology, vocab_size=VOCAB, seed=3, shape=shape)


def opened(model: GPT, column: int) -> GPT:
    assert model.columns is not None
    model.columns.open = column
    return model


def tokens() -> torch.Tensor:
    return torch.randint(VOCAB, (2, 6), generator=torch.Generator().manual_seed(0))


def test_what_is_heard_by_hand():
    lateral = Lateral(2, hidden=2, rank=1)
    values = {
        "up": [[1.0], [-0.5]],
        "scale0": [1.0, 0.5],
        "down0": [[2.0, 1.0]],
        "scale1": [1.0, 1.0],
        "down1": [[0.0, 1.0]],
    }
    with torch.no_grad():
        for name, value in values.items():
            lateral.get_parameter(name).copy_(torch.tensor(value))
    # 2 * 1 + 1 * 0.5 * 2 = 3 from the first, -1 from the second.
    heard = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0])
    assert lateral(heard).tolist() == [2.0, -1.0]
    # Below zero nothing comes through.
    assert lateral((-heard[0], heard[1])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("form", ["gpt", "gpt2", "llama"])
def test_the_table_of_parts_is_the_model(form):
    model = build(form=form)
    found = {name: tuple(p.shape) for name, p in model.named_parameters()}
    rows = model.embedding.weight.shape[0]
    assert found == {part.name: part.shape for part in parts(model.shape, rows)}
    dims = {part.name: part.partition_dim for part in parts(model.shape, rows)}
    assert all(p.partition_dim == dims[name] for name, p in model.named_parameters())
    counts = count_parameters(model.shape, rows, {})
    assert counts.total == counts.live == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("form", ["gpt", "llama"])
def test_a_column_that_hears_nothing_is_a_fresh_net_and_one_that_hears_is_not(form):
    model, fresh = build(form=form, kind="er_fixed"), build(1, form=form, kind="er_fixed")
    assert model.columns is not None
    column = model.columns["2"]
    # Its graph is its own: its weights and masks go into a model of one column.
    for own, other in zip(fresh.modules(), _linears_first(column), strict=True):
        if hasattr(own, "dead"):
            own.set_topology(other.topology)
        for name, value in own.named_parameters(recurse=False):
            with torch.no_grad():
                value.copy_(other.get_parameter(name))
    heard = opened(model, 2).logits(tokens())
    assert not heard.equal(fresh.logits(tokens()))
    for block in column.layers:
        nn.init.zeros_(block.mlp.lateral.up)
    assert model.logits(tokens()).equal(fresh.logits(tokens()))


def _linears_first(column: nn.Module) -> list[nn.Module]:
    """The modules that a model of one column has too."""
    return [part for part in column.modules() if not isinstance(part, Lateral)]


def test_every_column_has_a_graph_and_weights_of_its_own():
    model = build(kind="er_fixed")
    digests = {p.topology.digest for p in model.modules() if getattr(p, "topology", None)}
    assert len(digests) == len(layer_shapes(model.shape)) == 3 * 12
    drawn = [p.flatten()[:4].tolist() for p in model.parameters() if p.dim() == 2]
    assert len({tuple(values) for values in drawn}) == len(drawn)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_open_column_learns_alone(checkpointing):
    model = opened(build(activation_checkpointing=checkpointing), 1)
    losses, _ = model(tokens(), tokens())
    losses.mean().backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {n for n, _ in model.named_parameters() if n.startswith("columns.1.")}
    assert all(bool(p.grad.any()) for p in model.parameters() if p.grad is not None)


def test_compiled_columns_are_the_same():
    torch._dynamo.reset()
    passed = []
    for compiled in (False, True):
        model = opened(build(), 2)
        if compiled:
            compile_blocks(model, backend="eager")
        losses, _ = model(tokens(), tokens())
        losses.mean().backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        passed.append([losses.detach(), *grads])
    for mine, other in zip(*passed, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    torch._dynamo.reset()


SHAPE = ModelShape(layers=1, width=2, heads=1, context=4, mlp=8, columns=2, lateral=3)


def test_flops_by_hand():
    counts = count_parameters(SHAPE, 10, {})
    # 4 matrices of 2 x 2 and 2 of 2 x 8 in each column; U and V.
    assert counts.masked_total == 2 * 48
    first = 6 * 48 + 6 * 20 + 12 * 1 * 2 * 4
    second = first + 2 * 48 + 4 * 1 * 2 * 4 + 6 * (24 + 24)

    def per_token(steps):
        return training_flops_per_token(SHAPE, counts, shares=column_shares(SHAPE, steps)).useful

    assert per_token([5]) == first
    assert per_token([5, 5]) == (first + second) / 2
    assert per_token([5, 15]) == (first + 3 * second) / 4


def test_three_columns_hear_what_the_second_heard():
    shape = ModelShape(**{**vars(SHAPE), "columns": 3})
    counts = count_parameters(shape, 10, {})
    alone = 6 * 48 + 6 * 20 + 12 * 1 * 2 * 4
    # Two columns forward; U and two V learn, those of the second run forward.
    third = alone + 2 * (2 * 48 + 4 * 1 * 2 * 4) + 6 * (24 + 2 * 24) + 2 * (24 + 24)
    assert training_flops_per_token(shape, counts, shares=[0, 0, 1]).useful == third


def test_what_is_heard_stays_until_the_backward_pass():
    layout = Layout(zero_stage=0, precision="fp32", micro=2)

    def activations(shape):
        return memory_per_rank(shape, 10, {}, TopologyConfig(kind="dense"), layout).activations

    one = ModelShape(**{**vars(SHAPE), "columns": 1, "lateral": 0})
    # Of 8 tokens 8 hidden units of 4 bytes, in one block.
    assert activations(SHAPE) - activations(one) == 8 * 8 * 4
