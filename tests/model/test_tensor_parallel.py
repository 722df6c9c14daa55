"""Two gloo processes hold one model: same weights, losses, gradients and answers as one process."""

import socket
from pathlib import Path

import pytest
import torch

from sparsecl import dist
from sparsecl.model.build import build_gpt
from sparsecl.model.config import ModelConfig
from sparsecl.model.entropy import best_token, cross_entropy
from sparsecl.sparse.parallel import (
    copy_to_tensor_parallel,
    enter_tensor_parallel,
    leave_tensor_parallel,
    reduce_from_tensor_parallel,
    spread_positions,
    summed_gradient,
)
from sparsecl.sparse.registry import sparse_parameters
from sparsecl.topology.config import TopologyConfig

TP_SIZE = 2
# 100: the second rank has 36 real rows and 28 of padding. 50: it has padding only.
VOCABULARIES = (100, 50)


def run_model(vocab_size, activation_checkpointing=False, length=16, sequence=False, chunk=0):
    """Weights, gradients, losses and answers of this process on texts of `length` tokens.

    chunk: tokens of a chunk of the loss; 0 = whole.
    """
    config = ModelConfig(
        preset=None,
        layers=2,
        width=32,
        heads=4,
        context=16,
        activation_checkpointing=activation_checkpointing,
    )
    topology = TopologyConfig(density=0.3)
    model = build_gpt(config, topology, vocab_size=vocab_size, seed=5, sequence=sequence)
    text = torch.randint(vocab_size, (3, length + 1), generator=torch.Generator().manual_seed(0))
    tokens, targets = text[:, :-1], text[:, 1:].clone()
    targets[0, :5] = -1
    model.loss_chunk = chunk
    if chunk:
        weight = torch.full((3,), targets.numel() / float((targets >= 0).sum()))
        loss, _, mean = model(tokens, targets, weight=weight)
    else:
        loss, _ = model(tokens, targets)
        mean = loss.sum() / (targets >= 0).sum()
    mean.backward()
    model.eval()
    # Targets that are likely, so that some answers are correct.
    with torch.no_grad():
        best = best_token(
            model.embedding(model.features(tokens)), model.embedding.vocab_start_index
        )
        eval_loss, correct = model(tokens, torch.where(tokens % 2 == 0, best, targets))
    named = dict(model.named_parameters())
    return {
        "loss": loss.detach(),
        "eval_loss": eval_loss,
        "correct": correct,
        "best": best,
        "weights": {name: value.detach() for name, value in named.items()},
        "gradients": {name: value.grad for name, value in named.items()},
        "partition_dims": {name: value.partition_dim for name, value in named.items()},
        "dead": {name: entry.dead for name, entry in sparse_parameters(model).items()},
    }


def tied_logits():
    """Two positions with equal maxima: on both ranks (ids 1 and 5), and within the second."""
    logits = torch.zeros(1, 2, 8)
    logits[0, 0, [1, 5]] = 3.0
    logits[0, 1, [6, 7]] = 2.0
    return logits


def check_edges(rank):
    """The mappings sum what they must, also for a gradient that is not contiguous."""
    x = torch.ones(2, 3, requires_grad=True)
    copy_to_tensor_parallel(x).backward(torch.full((3, 2), rank + 1.0).t())
    assert (x.grad == 3.0).all(), x.grad
    x = torch.full((3, 2), rank + 1.0).t().requires_grad_()
    y = reduce_from_tensor_parallel(x)
    assert (y == 3.0).all(), y
    y.sum().backward()
    assert (x.grad == 1.0).all()


def check_spread_edges(rank):
    """Four positions of one sequence, width 1; the ranks are told apart by their values."""
    x = torch.tensor([[[0.0]], [[1.0]]]) + 2 * rank  # [T / tp, B, W]
    x.requires_grad_()
    y = enter_tensor_parallel(x, spread=True)
    assert y.flatten().tolist() == [0.0, 1.0, 2.0, 3.0]
    # Partial gradients 1 and 2; not contiguous, as products may leave them.
    y.backward(torch.full((1, 1, 4), rank + 1.0).permute(2, 0, 1))
    assert x.grad is not None and x.grad.flatten().tolist() == [3.0, 3.0]

    x = (torch.arange(8.0).view(2, 4) * (rank + 1)).t().requires_grad_()  # partial sums [T, W]
    y = leave_tensor_parallel(x, spread=True)
    assert (y == 3 * torch.arange(8.0).view(2, 4).t()[2 * rank : 2 * rank + 2]).all(), y
    y.backward(torch.full((2, 2), rank + 1.0))
    assert x.grad is not None and x.grad[:, 0].tolist() == [1.0, 1.0, 2.0, 2.0]

    x = torch.arange(4.0, requires_grad=True)
    y = spread_positions(x)
    assert y.tolist() == [2.0 * rank, 2.0 * rank + 1]
    y.backward(torch.full((2,), rank + 1.0))
    assert x.grad is not None and x.grad.tolist() == [1.0, 1.0, 2.0, 2.0]

    gain = torch.ones(3, requires_grad=True)
    kept = summed_gradient(gain)
    assert kept.untyped_storage().data_ptr() != gain.untyped_storage().data_ptr()
    kept.backward(torch.full((3,), rank + 1.0))
    assert gain.grad is not None and gain.grad.tolist() == [3.0, 3.0, 3.0]


def worker(rank: int, port: int, folder: str) -> None:
    """One rank: check what it can alone, leave the rest for the parent."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": TP_SIZE,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }.items():
            patch.setenv(key, str(value))
        torch.set_num_threads(1)
        dist.init(tensor=TP_SIZE)
        check_edges(rank)
        check_spread_edges(rank)
        assert best_token(tied_logits()[..., 4 * rank : 4 * rank + 4], 4 * rank).tolist() == [
            [1, 6]
        ]
        results = {
            "recomputed": run_model(100, activation_checkpointing=True),
            "spread": run_model(100, sequence=True),
            "spread, padding": run_model(50, sequence=True),
            "spread, recomputed": run_model(100, activation_checkpointing=True, sequence=True),
            "chunks": run_model(100, chunk=7),
            "chunks, spread": run_model(100, chunk=64, sequence=True),
            "chunks, padding": run_model(50, chunk=1),
            # 13 positions do not divide over two ranks: this pass is not spread.
            "short": run_model(100, length=13, sequence=True),
            "logits": cross_entropy(
                tied_logits()[..., 4 * rank : 4 * rank + 4].clone(), torch.tensor([[5, -1]])
            ),
            **{str(size): run_model(size) for size in VOCABULARIES},
        }
        torch.save(results, Path(folder) / f"{rank}.pt")
        dist.shutdown()


def assert_same_model(parts, whole):
    """The ranks' tensors, joined, are those of the lone process."""
    for name, dim in whole["partition_dims"].items():
        for kind in ("weights", "gradients", "dead"):
            if name not in whole[kind]:
                continue
            local = [part[kind][name] for part in parts]
            if dim < 0:
                assert torch.equal(local[0], local[1]), (name, kind)
            joined = torch.cat(local, dim) if dim >= 0 else local[0]
            if kind == "gradients":
                torch.testing.assert_close(joined, whole[kind][name], rtol=1e-4, atol=1e-7)
            else:
                assert torch.equal(joined, whole[kind][name]), (name, kind)
    for part in parts:
        torch.testing.assert_close(part["loss"], whole["loss"], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(part["eval_loss"], whole["eval_loss"], rtol=1e-6, atol=1e-6)
        assert torch.equal(part["best"], whole["best"])
        assert torch.equal(part["correct"], whole["correct"])
        assert part["correct"].any() and not part["correct"].all()
        for name, dead in part["dead"].items():
            assert (part["gradients"][name][dead] == 0).all()


@pytest.mark.dist
def test_two_ranks_equal_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(worker, (port, str(tmp_path)), nprocs=TP_SIZE)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(TP_SIZE)]
    for size in VOCABULARIES:
        assert_same_model([part[str(size)] for part in parts], run_model(size))
    for name in ("recomputed", "spread", "spread, recomputed", "chunks", "chunks, spread"):
        assert_same_model([part[name] for part in parts], run_model(100))
    for name in ("spread, padding", "chunks, padding"):
        assert_same_model([part[name] for part in parts], run_model(50))
    assert_same_model([part["short"] for part in parts], run_model(100, length=13))
    lone = cross_entropy(tied_logits(), torch.tensor([[5, -1]]))
    assert lone[0, 1] == 0
    for part in parts:
        torch.testing.assert_close(part["logits"], lone)
