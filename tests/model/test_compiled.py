"""Compiled blocks: the same losses and gradients, what is compiled, and what is not."""

import shutil

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from sparsecl import dist
from sparsecl.errors import UserError
from sparsecl.model import attention, compiled
from sparsecl.model.build import build_gpt
from sparsecl.model.compiled import compile_blocks
from sparsecl.model.config import ModelConfig
from sparsecl.model.surgery import GptSide
from sparsecl.sparse import operators
from sparsecl.sparse.native import missing
from sparsecl.sparse.tap import DenseTap
from sparsecl.topology.config import OverrideConfig, TopologyConfig

UNEVEN = (OverrideConfig(layers=(1,), density=0.2),)
KINDS = {
    "dense": {"kind": "dense"},
    "masked": {"density": 0.3},
    "packed": {"density": 0.3, "storage": "packed"},
    "packed, kept": {"density": 0.3, "storage": "packed", "keep_expansion": True},
    "packed, uneven": {"density": 0.3, "storage": "packed", "overrides": UNEVEN},
    "csr": {"density": 0.3, "storage": "packed", "backend": "csr"},
    "native": {"density": 0.3, "storage": "packed", "backend": "native"},
}
NATIVE = pytest.param(
    "native", marks=pytest.mark.skipif(missing() is not None, reason="the kernels are not built")
)


def build(kind, sequence=False, **fields):
    sizes = {"layers": 2, "width": 32, "heads": 4, "context": 16}
    config = ModelConfig(preset=None, **{**sizes, **fields})
    topology = TopologyConfig(**KINDS[kind])
    return build_gpt(config, topology, vocab_size=100, seed=5, sequence=sequence)


def text():
    return torch.randint(100, (3, 17), generator=torch.Generator().manual_seed(0))


def passed(model):
    """Losses and gradients of one pass."""
    model.zero_grad()
    losses, _ = model(text()[:, :-1], text()[:, 1:])
    losses.mean().backward()
    return [losses.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.fixture
def graphs():
    """A backend of torch.compile that runs the graphs as they are, and keeps them."""
    found = []

    def keep(graph, inputs):
        found.append(graph)
        return graph.forward

    torch._dynamo.reset()
    yield found, keep
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", ["dense", "masked", "packed", "packed, kept", NATIVE])
def test_all_blocks_share_one_graph_that_holds_everything(kind, graphs):
    found, backend = graphs
    model = build(kind)
    expected = passed(model)
    compile_blocks(model, backend=backend)
    for mine, other in zip(passed(model), expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    assert len(found) == 1


def test_operators_are_what_torch_believes_of_them():
    """Shapes, strides and gradients of the real ones are those that a graph is made with."""
    model = build("packed")
    compile_blocks(model, backend="eager")
    layer = model.layers[0].mlp.up
    x = torch.randn(2, 3, 32).transpose(0, 1).requires_grad_()
    arguments = (x, layer.weight, layer.number, layer.local_shape[0])
    torch.library.opcheck(operators.live_product, arguments)
    dy, plain = torch.randn(3, 2, 128), (layer.weight.detach(), layer.number)
    torch.library.opcheck(operators.live_grad_input, (dy, *plain, 32))
    torch.library.opcheck(operators.live_grad_weight, (dy, x.detach(), *plain))


def test_a_moved_graph_is_seen_by_a_compiled_block(graphs):
    """A layer's indices may change between two passes: a graph must not hold them."""
    found, backend = graphs
    model, plain = build("packed"), build("packed")
    compile_blocks(model, backend=backend)
    passed(model)
    other = build_gpt(
        ModelConfig(preset=None, layers=2, width=32, heads=4, context=16),
        TopologyConfig(**KINDS["packed"]), vocab_size=100, seed=6,
    )  # fmt: skip
    for each in (model, plain):
        for layer, new in zip(each.layers, other.layers, strict=True):
            layer.mlp.up.set_topology(new.mlp.up.topology)
    for mine, expected in zip(passed(model), passed(plain), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-6)
    assert len(found) == 1


@pytest.mark.parametrize("kind", ["csr", "packed, uneven"])
def test_what_has_other_strides_or_uneven_layers_stays_outside(kind, graphs):
    found, backend = graphs
    model = build(kind, activation_checkpointing=True)
    expected = passed(model)
    compile_blocks(model, backend=backend)
    for mine, other in zip(passed(model), expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    num_graphs = len({str(graph.code) for graph in found})
    assert len(found) == num_graphs, "a block was compiled that another one could lend its graph"
    operations = {str(node.target) for graph in found for node in graph.graph.nodes}
    assert any("layer_norm" in name for name in operations), operations
    assert not any("numpy" in name or "scatter" in name for name in operations), operations


def test_evaluation_and_watched_blocks_are_not_compiled(graphs):
    found, backend = graphs
    model = build("dense")
    compile_blocks(model, backend=backend)
    with torch.no_grad():
        model(text()[:, :-1], text()[:, 1:])
    seen = []
    for block in model.layers:
        block.mlp.down.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    passed(model)
    assert (len(found), len(seen)) == (0, 2)


def test_a_block_with_a_tap_is_not_compiled_for_as_long_as_it_has_it(graphs):
    found, backend = graphs
    model = build("masked")
    compile_blocks(model, backend=backend)
    passed(model)
    layers = [block.mlp.up for block in model.layers]
    for layer in layers:
        layer.tap = DenseTap()
    passed(model)
    assert all(layer.tap.total is not None for layer in layers)
    for layer in layers:
        layer.tap = None
    passed(model)
    assert len(found) == 1  # the graph of the first pass serves the third


def test_units_are_seen_from_within_the_graph(graphs):
    """One graph for passes that are looked at, one for others, whatever the number of blocks."""
    found, backend = graphs
    plain, model = build("masked"), build("masked")
    groups = [list(GptSide(m, 5).units(gated=True).values()) for m in (plain, model)]
    compile_blocks(model, backend=backend)
    for _ in range(2):
        for group in (*groups[0], *groups[1]):
            group.arm()
        for mine, other in zip(passed(model), passed(plain), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
        for mine, other in zip(*groups, strict=True):
            torch.testing.assert_close(mine.sums, other.sums)
            mine.disarm(), other.disarm()
        passed(model)
        assert all(group.sums[0, 0] == 48 for group in groups[1])
    assert len(found) == 2


def test_units_are_thinned_within_the_graph(graphs):
    """Other factors need no other graph."""
    found, backend = graphs
    plain, model = build("masked"), build("masked")
    groups = [list(GptSide(m, 5).units().values()) for m in (plain, model)]
    compile_blocks(model, backend=backend)
    losses = []
    for _ in range(3):
        for mine, other in zip(*groups, strict=True):
            factors = torch.rand(len(text()), mine.num_local)
            mine.thin(factors), other.thin(factors)
        losses.append(passed(model))
        for mine, other in zip(losses[-1], passed(plain), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    assert not losses[0][0].equal(losses[1][0]) and len(found) == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_kernels_agree_with_the_plain_model():
    model = build("masked")
    expected = passed(model)
    torch._dynamo.reset()
    compile_blocks(model)
    for mine, other in zip(passed(model), expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
    torch._dynamo.reset()


def compare_on_a_rank(kind, sequence):
    """Compiled and plain passes on one rank of two. Returns the losses, and the graphs that a
    model of twice as many layers adds."""
    dist.init(2)
    torch._dynamo.reset()
    model = build(kind, sequence=sequence)
    expected = passed(model)
    compile_blocks(model)
    found = passed(model)
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
    stats = torch._dynamo.utils.counters["stats"]
    before = stats["unique_graphs"]
    deeper = build(kind, sequence=sequence, layers=4)
    compile_blocks(deeper)
    passed(deeper)
    added = stats["unique_graphs"] - before
    torch._dynamo.reset()
    assert before > 0
    return found[0], added


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize(
    ("kind", "sequence"), [("masked", False), ("masked", True), ("packed", True)]
)
def test_kernels_agree_on_tensor_parallel_ranks(pool, kind, sequence):
    alone = passed(build(kind))[0]
    for losses, added in pool.run(compare_on_a_rank, 2, kind, sequence):
        torch.testing.assert_close(losses, alone, rtol=1e-5, atol=1e-5)
        assert added == 0, "blocks do not share their graphs"


def test_a_missing_compiler_is_a_user_error(monkeypatch):
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"speed.compile=true needs a C\+\+ compiler"):
        compile_blocks(build("dense"))


def test_recomputed_blocks_give_the_same_bits():
    plain, recomputed = (build("masked", activation_checkpointing=on) for on in (False, True))
    for mine, other in zip(passed(recomputed), passed(plain), strict=True):
        assert torch.equal(mine, other)


def test_attention_is_fit_for_flash_kernels(monkeypatch):
    """torch refuses them for a mask tensor; on a CPU they take the same arguments."""
    monkeypatch.setattr(attention, "_library", lambda: None)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        fast = passed(build("dense"))
    with sdpa_kernel(SDPBackend.MATH):
        for mine, other in zip(fast, passed(build("dense")), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", ["gpt2", "llama"])
def test_other_forms_share_one_graph_too(form, graphs):
    found, backend = graphs
    fields = {"kv_heads": 2} if form == "llama" else {}
    model = build("masked", form=form, **fields)
    expected = passed(model)
    compile_blocks(model, backend=backend)
    for mine, other in zip(passed(model), expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    assert len(found) == 1
