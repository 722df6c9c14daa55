"""Formulas of parameters, memory and traffic against real models of every form."""

import pytest
import torch

from sparsecl.model.flops import count_parameters, training_flops_per_token
from sparsecl.model.memory import Layout, memory_per_rank, parameter_sizes
from sparsecl.model.shapes import layer_shapes
from sparsecl.sparse.registry import sparse_parameters
from sparsecl.topology.config import TopologyConfig
from tests.model.test_forms import FORMS, VOCAB, build, real_text


def topologies_of(model):
    return {
        name.removesuffix(".weight"): entry.topology
        for name, entry in sparse_parameters(model).items()
    }


@pytest.mark.parametrize("form", FORMS)
def test_counts_are_those_of_the_model(form):
    model = build(form)
    counts = count_parameters(model.shape, VOCAB, topologies_of(model))
    rows = model.embedding.num_embeddings - VOCAB
    padding = rows * 64 * (1 if model.head is None else 2)
    assert counts.total == sum(p.numel() for p in model.parameters()) - padding
    cells = sum(layer.num_cells for layer in layer_shapes(model.shape))
    assert counts.masked_total == cells
    assert counts.total - counts.live == cells - counts.masked_live
    assert (counts.head > 0) is (model.head is not None)
    # The head is one product with V x W, whether it is the embedding or not.
    flops = training_flops_per_token(model.shape, counts)
    assert flops.dense == 6 * (cells + VOCAB * 64) + 12 * 2 * 64 * 48


def test_published_counts():
    """GPT-2 small, TinyLlama 1.1B and Qwen2 0.5B as their cards say."""
    from sparsecl.model.config import ModelConfig

    def total(vocab, **fields):
        return count_parameters(ModelConfig(preset=None, **fields).resolved(), vocab, {}).total

    small = {"layers": 12, "width": 768, "heads": 12, "context": 1024}
    assert total(50257, form="gpt2", **small) == 124_439_808
    tiny = {"layers": 22, "width": 2048, "heads": 32, "context": 2048, "mlp": 5632}
    assert total(32000, form="llama", kv_heads=4, **tiny) == 1_100_048_384
    qwen = {"layers": 24, "width": 896, "heads": 14, "context": 32768, "mlp": 4864}
    qwen |= {"kv_heads": 2, "qkv_bias": True, "tied": True}
    assert total(151936, form="llama", **qwen) == 494_032_768


@pytest.mark.parametrize("storage", ["masked", "packed"])
@pytest.mark.parametrize("form", FORMS)
def test_state_and_sizes_are_those_of_the_model(form, storage):
    model = build(form)
    config = TopologyConfig(density=0.3, storage=storage)
    layout = Layout(zero_stage=0, precision="fp32")
    topologies = topologies_of(model)
    found = memory_per_rank(model.shape, VOCAB, topologies, config, layout)
    live = {name: entry.topology.num_live for name, entry in sparse_parameters(model).items()}
    sizes = [
        live[name] if storage == "packed" and name in live else parameter.numel()
        for name, parameter in model.named_parameters()
    ]
    assert found.weights == 4 * sum(sizes)
    listed = parameter_sizes(model.shape, VOCAB, topologies, config)
    assert sorted(listed) == sorted(sizes) and listed[0] == model.embedding.weight.numel()


@pytest.mark.parametrize("form", FORMS)
def test_activations_are_those_that_autograd_keeps(form):
    """Of two and of three layers: the difference is one block, without the ends of the model."""
    kept = []
    for layers in (2, 3):
        model, text = build(form, density=1.0, layers=layers), real_text()
        state = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
        found = {}

        def keep(tensor, state=state, found=found):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in state:
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(text[:, :-1], text[:, 1:])
        kept.append(sum(found.values()))
    layout = Layout(zero_stage=0, precision="fp32", micro=4)
    formula = memory_per_rank(model.shape, VOCAB, {}, TopologyConfig(kind="dense"), layout)
    assert kept[1] - kept[0] == pytest.approx(formula.activations / 3, rel=0.01)
