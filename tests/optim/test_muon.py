"""Muon by hand, against torch's, and beside AdamW; absent weights stay absent."""

import pytest
import torch
from torch import nn

from sparsecl.optim.build import build_optimizer
from sparsecl.optim.config import OptimizerConfig
from sparsecl.optim.masking import MaskGuard
from sparsecl.optim.muon import SPLIT, Muon, orthogonal
from sparsecl.sparse.linear import ColumnParallelSparseLinear, RowParallelSparseLinear
from sparsecl.topology.layer import LayerShape
from tests.optim.by_hand import slices_of


def make(groups, **changes) -> Muon:
    return Muon(
        groups, **{"lr": 0.1, "momentum": 0.95, "betas": (0.9, 0.95), "eps": 1e-8, **changes}
    )


def test_a_diagonal_matrix_by_hand():
    """Every singular value goes through s -> 3.4445 s - 4.775 s^3 + 2.0315 s^5 five times."""
    found = orthogonal(torch.tensor([[3.0, 0, 0], [0, -4, 0]]))
    for entry, begin in ((found[0, 0], 0.6), (-found[1, 1], 0.8)):
        s = begin
        for _ in range(5):
            s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
        assert float(entry) == pytest.approx(s, abs=0.05) and 0.65 < s < 1.25
    assert found[0, 1] == found[1, 0] == 0 and (found[:, 2] == 0).all()
    assert orthogonal(torch.zeros(2, 3)).equal(torch.zeros(2, 3, dtype=torch.bfloat16))


@pytest.mark.parametrize("shape", [(8, 5), (5, 8)])
def test_it_is_torchs_muon(shape):
    """Five steps, bit for bit; and AdamW beside it is torch's."""
    torch.manual_seed(0)
    own = [nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(7))]
    other = [nn.Parameter(param.detach().clone()) for param in own]
    matrix = {"params": own[:1], "weight_decay": 0.2, SPLIT: 0}
    mine = make([matrix, {"params": own[1:], "weight_decay": 0.0}])
    theirs = torch.optim.Muon(
        other[:1], lr=0.1, weight_decay=0.2, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(other[1:], lr=0.1, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    for _ in range(5):
        for param, twin in zip(own, other, strict=True):
            param.grad = torch.randn_like(param)
            twin.grad = param.grad.clone()
        mine.step()
        theirs.step()
        adamw.step()
    assert all(param.equal(twin) for param, twin in zip(own, other, strict=True))
    for param in own:
        assert set(mine.state[param]) == {"step", "exp_avg", "exp_avg_sq"}
        assert float(mine.state[param]["step"]) == 5.0
    assert (mine.state[own[0]]["exp_avg_sq"] == 0).all()


def test_only_the_matrices_of_linears_are_muons():
    model = nn.Module()
    model.up = ColumnParallelSparseLinear(LayerShape("up", "up", 4, 3), None)
    model.down = RowParallelSparseLinear(LayerShape("down", "down", 3, 4), None)
    model.embedding, model.norm = nn.Parameter(torch.ones(5, 3)), nn.Parameter(torch.ones(3))
    groups = build_optimizer(OptimizerConfig(kind="muon"), model).param_groups
    found = [(group.get(SPLIT), [p.shape for p in group["params"]], group["weight_decay"])
             for group in groups]  # fmt: skip
    assert found == [
        (0, [(4, 3)], 0.1),
        (1, [(3, 4)], 0.1),
        (None, [(5, 3)], 0.1),
        (None, [(3,)], 0.0),
    ]


def test_absent_weights_stay_absent():
    """Newton-Schulz fills them, and the guard empties them after each step."""
    torch.manual_seed(0)
    weight, dead = nn.Parameter(torch.randn(4, 4)), torch.rand(4, 4) < 0.5
    weight.data[dead] = 0.0
    optimizer = make([{"params": [weight], "weight_decay": 0.1, SPLIT: 0}])
    filled = orthogonal(torch.randn(4, 4).masked_fill(dead, 0.0))
    assert (filled[dead] != 0).any()
    guard = MaskGuard(slices_of(weight, optimizer), {"weight": dead})
    for _ in range(3):
        weight.grad = torch.randn(4, 4).masked_fill(dead, 0.0)
        before = weight.detach().clone()
        optimizer.step()
        assert (weight[dead] == 0).all() and (weight[~dead] != before[~dead]).all()
        assert guard.audit(1) == 0
