"""Scores of a domain: exact token-weighted sums, whatever the batch size or layout."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sparsecl import dist, watchdog
from sparsecl.data.batches import EvaluationWindows, evaluation_windows
from sparsecl.data.prepare import PreparedData
from sparsecl.errors import InvariantError

SUMS = ("loss_sum", "num_tokens", "num_bytes", "num_correct")


@dataclass(frozen=True)
class Score:
    """Sums over the predicted tokens of one domain's validation text, over all ranks."""

    loss_sum: float
    """nats"""

    num_tokens: int
    num_bytes: int
    """UTF-8 bytes that the predicted tokens stand for."""

    num_correct: int
    """Tokens whose prediction of highest probability was right."""

    @property
    def loss(self) -> float:
        """nats per token"""
        return self.loss_sum / self.num_tokens


def evaluate_domains(
    engine: Any, data: PreparedData, *, context: int, max_tokens: int | None, batch: int, step: int
) -> dict[str, Score]:
    """Score every domain by its name. Collective over the world.

    Args:
        max_tokens: of each domain's validation text; None = all of it.
        batch: windows per rank and forward call.
        step: for messages.

    Raises:
        InvariantError: a loss is not finite.
    """
    scores: dict[str, Score] = {}
    for domain in data.domains:
        windows = evaluation_windows(domain.validation, context=context, max_tokens=max_tokens)
        score = evaluate(engine, windows, data.tokenizer.bytes_per_token, batch=batch)
        if not math.isfinite(score.loss):
            raise InvariantError(
                f"step {step}: the validation loss on {domain.name} is {score.loss}. "
                "Lower optimizer.lr, or turn on clipping (optimizer.clip)."
            )
        scores[domain.name] = score
    return scores


@torch.no_grad()
def evaluate(
    engine: Any, windows: EvaluationWindows, bytes_per_token: np.ndarray, *, batch: int
) -> Score:
    """Score one domain. Collective over the world.

    Windows are dealt out to dp ranks in turns; every rank makes the same number of forward calls
    (the last ones on empty windows), because under ZeRO-3 each call gathers parameters.

    Args:
        bytes_per_token: int [vocab_size], UTF-8 bytes of each token id.
        batch: windows per rank and forward call.
    """
    device = dist.device()
    per_call = batch * dist.dp_size()
    sums = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
    engine.eval()
    for first in range(0, len(windows), per_call):
        watchdog.beat(f"evaluation, window {first} of {len(windows)}")
        inputs, targets = _rows(windows, first + dist.dp_rank() * batch, batch)
        losses, correct = engine(
            torch.from_numpy(inputs).to(device), torch.from_numpy(targets).to(device)
        )
        predicted = targets[targets >= 0]
        sums[0] += losses.double().sum()
        sums[1] += predicted.size
        sums[2] += int(bytes_per_token[predicted].sum())
        sums[3] += correct.sum()
    engine.train()
    dist.all_reduce(sums, group=dist.dp_group())
    loss_sum, *counts = sums.tolist()
    return Score(loss_sum, *(int(count) for count in counts))


def _rows(windows: EvaluationWindows, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` windows from `first` on, filled up with windows that predict nothing."""
    end = min(first + count, len(windows))
    inputs, targets = windows.rows(min(first, end), end)
    missing = count - len(inputs)
    if missing:
        context = windows.rows(0, 1)[0].shape[1]
        inputs = np.concatenate([inputs, np.zeros((missing, context), inputs.dtype)])
        targets = np.concatenate([targets, np.full((missing, context), -1, targets.dtype)])
    return inputs, targets


@torch.enable_grad()  # methods may call it from a hook without gradients
def mean_squared_gradients(
    engine: Any, rows: np.ndarray, counted: Sequence[bool], total: int, *, scale: float = 1.0
) -> dict[str, torch.Tensor]:
    """Mean over `total` sequences of the squared gradient, tp-local. Collective over the world.

    The gradient of one sequence's mean loss per token, one backward pass per sequence (methods.md
    rule: the square of a batch mean is not the mean square). `torch.autograd.grad` leaves `.grad`
    and DeepSpeed's reduction hooks alone. Takes 4 bytes per local parameter while it runs.

    Args:
        rows: this dp rank's sequences, int64 [n, context + 1]; as many on every dp rank, because
            under ZeRO-3 each pass gathers parameters.
        counted: which of them count; the others are there to make the number equal.
        scale: multiplies the loss during backward (fp16); taken out of the result.

    Returns:
        Parameter name -> fp32 tensor of the tp-local shape, equal on all dp ranks.
    """
    module = engine.module
    params = dict(module.named_parameters())
    sums: dict[str, torch.Tensor] = {}
    for row, counts in zip(rows, counted, strict=True):
        watchdog.beat("squared gradients of single sequences")
        tokens = torch.from_numpy(row[None]).to(dist.device())
        # The module, not the engine: the engine's outputs only run backward through the engine.
        losses, _ = module(tokens[:, :-1], tokens[:, 1:])
        gradients = torch.autograd.grad(losses.mean() * scale, list(params.values()))
        for name, gradient in zip(params, gradients, strict=True):
            square = gradient.float().div_(scale).square() * counts
            sums[name] = square if name not in sums else sums[name].add_(square)
    for square in sums.values():
        dist.all_reduce(square.div_(total), group=dist.dp_group())
    return sums
