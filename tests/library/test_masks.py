"""By hand on layers of eight weights: the gradient, and what a masked layer is to the rest."""

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sparsecl
from sparsecl.errors import UserError
from tests.distributed.pool import Pool
from tests.library import cases

MASK = np.array([[1, 0, 0, 1], [0, 1, 1, 0]], dtype=bool)


def layer() -> nn.Linear:
    found = nn.Linear(4, 2, bias=False)
    nn.init.constant_(found.weight, 3.0)
    return found


def gradient(module: Any, x: torch.Tensor) -> torch.Tensor:
    module.zero_grad()
    module(x).float().sum().backward()
    return module.weight.grad


@pytest.mark.parametrize("given", [MASK, torch.from_numpy(MASK)])
def test_eight_weights_by_hand(given: Any) -> None:
    module = layer()
    sparsecl.mask_linear(module, given)
    assert module.weight.tolist() == [[3, 0, 0, 3], [0, 3, 3, 0]]
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert gradient(module, x).tolist() == [[1, 0, 0, 4], [0, 2, 3, 0]]
    assert gradient(module, x * torch.nan)[~torch.from_numpy(MASK)].tolist() == [0] * 4
    assert module(x).tolist() == [[15.0, 15.0]]
    assert list(module.state_dict()) == ["weight"] and not list(module.buffers())


def test_conv1d_of_transformers_has_its_weight_transposed() -> None:
    utils = pytest.importorskip("transformers.pytorch_utils", reason="no transformers")
    module = utils.Conv1D(2, 4)
    sparsecl.mask_linear(module, MASK)
    assert ((module.weight != 0).t().numpy() == MASK).all()
    assert ((gradient(module, torch.ones(1, 4)) != 0).t().numpy() == MASK).all()


def test_masked_again_it_has_the_new_mask_only() -> None:
    module = layer()
    sparsecl.mask_linear(module, ~MASK)
    sparsecl.mask_linear(module, MASK)
    assert ((gradient(module, torch.ones(1, 4)) != 0).numpy() == MASK).all()
    assert len(module._forward_pre_hooks) == 1 and len(module.weight._backward_hooks or {}) == 1


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_is_masked_too(how: str) -> None:
    module = layer()
    sparsecl.mask_linear(module, MASK)
    gradient(module, torch.ones(1, 4))
    if how == "deepcopy":
        other = copy.deepcopy(module)
    else:
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    sparsecl.mask_linear(module, ~MASK)
    assert ((gradient(other, torch.ones(1, 4)) != 0).numpy() == MASK).all()


def test_under_autocast_and_recomputation() -> None:
    from torch.utils.checkpoint import checkpoint

    module = layer()
    sparsecl.mask_linear(module, MASK)
    with torch.autocast("cpu", torch.bfloat16):
        y = checkpoint(module, torch.ones(1, 4), use_reentrant=False)
    y.float().sum().backward()
    assert ((module.weight.grad != 0).numpy() == MASK).all()  # type: ignore[union-attr]


def test_the_gradient_and_its_norm_are_those_of_the_masked_product() -> None:
    net, x = cases.Net(), cases.batch(0)
    masks = sparsecl.mask_linears(net, density=0.3)
    plain = cases.Net()
    plain.load_state_dict(net.state_dict())
    for model in (net, plain):
        model(x).square().mean().backward()
    for name, topology in masks.items():
        plain.get_submodule(name).weight.grad *= torch.from_numpy(topology.mask())
    norms = [nn.utils.clip_grad_norm_(model.parameters(), 1e-3) for model in (net, plain)]
    assert norms[0] == norms[1]
    for one, other in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)  # type: ignore[arg-type]


def test_a_model_masks_all_but_skip_and_names_decide() -> None:
    net = cases.Net()
    masks = sparsecl.mask_linears(net, "er_fixed", 0.25, seed=5)
    assert masks.keys() == {"up", "down"}
    assert (
        masks["up"].digest
        == sparsecl.draw("er_fixed", 6, 8, density=0.25, seed=5, name="up").digest
    )
    compiled: Any = torch.compile(cases.Net())
    assert (
        sparsecl.mask_linears(compiled, "er_fixed", 0.25, seed=5)["up"].digest == masks["up"].digest
    )
    assert sparsecl.mask_linears(cases.Net(), skip=("d*", "lm_head")).keys() == {"up"}
    assert sparsecl.mask_linears(cases.Net(), only=("u*",)).keys() == {"up"}
    nested = nn.Sequential(cases.Net(), nn.Linear(4, 4))
    assert sparsecl.mask_linears(nested, density=0.5).keys() == {"0.up", "0.down", "1"}
    assert sparsecl.mask_linears(nested, density=0.5, skip=("0",)).keys() == {"1"}


def test_from_zeros_takes_a_pruned_model_as_it_is() -> None:
    net = cases.Net()
    with torch.no_grad():
        net.up.weight[:, ::2] = 0.0
    before = copy.deepcopy(net.state_dict())
    masks = sparsecl.mask_linears(net, "from_zeros")
    assert masks.keys() == {"up"} and masks["up"].density == 0.5
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def split(how: str) -> tuple[int, int]:
    """A masked layer over two tensor-parallel ranks: what is not zero, gradient and weight."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    torch.distributed.init_process_group("gloo")
    net = cases.Net()
    masks = sparsecl.mask_linears(net, density=0.3, skip=("lm_head", "down"))
    whole = RowwiseParallel(input_layouts=Replicate())
    plan = (
        {"up": ColwiseParallel(), "down": RowwiseParallel()} if how == "column" else {"up": whole}
    )
    parallelize_module(net, init_device_mesh("cpu", (2,)), plan)
    optimizer = cases.adamw(net)
    guard = sparsecl.mask_guard(net, optimizer)
    dead = ~torch.from_numpy(masks["up"].mask())
    found = [0, 0]
    for step in range(cases.NUM_STEPS):
        optimizer.zero_grad()
        net(cases.batch(step)).square().mean().backward()
        found[0] += int((cases.whole(net.up.weight.grad)[dead] != 0).sum())
        optimizer.step()
        found[1] += int((cases.whole(net.up.weight.detach())[dead] != 0).sum())
    assert guard.audit(strict=True).total == 0
    return found[0], found[1]


@pytest.mark.dist
@pytest.mark.parametrize("how", ["column", "row"])
def test_tensor_parallel_of_torch(how: str, pool: Pool) -> None:
    assert pool.run(split, 2, how) == [(0, 0), (0, 0)]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(8, 4), nn.Linear(4, 8)
        self.out.weight = self.embed.weight


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (nn.Sequential(nn.ReLU()), {}, "nothing to mask: the model has 0 linear layers"),
        (cases.Net(), {"skip": ("up", "down", "lm_head")}, "3 linear layers, 3 of them left out"),
        (cases.Net(), {"only": ("head",)}, "only: no linear layer is named head"),
        (cases.Net(), {"skip": ("head",)}, "skip: no linear layer is named head"),
        (cases.Net(), {"kind": "from_zeros"}, "no other has a zero weight"),
        (Tied(), {}, "the weight of out is that of embed too"),
        (cases.Net(), {"kind": "tree"}, "kind=tree"),
    ],
)
def test_mistakes_of_a_model_are_told(model: nn.Module, options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        sparsecl.mask_linears(model, **options)


@pytest.mark.parametrize(
    ("module", "mask", "words"),
    [
        (nn.Embedding(2, 4), MASK, "Embedding is neither Linear nor Conv1D"),
        (nn.Linear(2, 4), MASK, "the mask is 2 x 4, the layer 4 x 2"),
        (nn.Linear(4, 2), MASK.astype(float), "a mask is bool .*got float64"),
        (nn.Linear(4, 2), MASK[0], "a mask is bool with two dims"),
        (nn.Linear(4, 2), MASK & False, "no live weight"),
    ],
)
def test_mistakes_of_a_layer_are_told(module: nn.Module, mask: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        sparsecl.mask_linear(module, mask)
