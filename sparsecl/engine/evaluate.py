"""Scores of a domain: exact token-weighted sums, whatever the batch size or layout.

At a phase end, and before training, one pass scores both texts of a domain (texts.py).
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparsecl import dist, watchdog
from sparsecl.data.batches import NO_TARGET, EvaluationWindows
from sparsecl.engine.texts import EvaluationText, TextName
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
    engine: Any,
    texts: Mapping[str, EvaluationText],
    bytes_per_token: np.ndarray,
    wanted: Collection[TextName],
    *,
    batch: int,
    step: int,
) -> dict[str, dict[TextName, Score]]:
    """Score every domain by its name, on one text or on both. Collective over the world.

    Args:
        bytes_per_token: int [vocab_size], UTF-8 bytes of each token id.
        batch: windows per rank and forward call.
        step: for messages.

    Raises:
        InvariantError: a loss is not finite.
    """
    scores: dict[str, dict[TextName, Score]] = {}
    for name, text in texts.items():
        parts: dict[TextName, EvaluationWindows] = {
            key: getattr(text, key) for key in ("ends", "inside") if key in wanted
        }
        found = evaluate(engine, list(parts.values()), bytes_per_token, batch=batch)
        scores[name] = dict(zip(parts, found, strict=True))
        for score in found:
            if not math.isfinite(score.loss):
                raise InvariantError(
                    f"step {step}: the validation loss on {name} is {score.loss}. "
                    "Lower optimizer.lr, or turn on clipping (optimizer.clip)."
                )
    return scores


@torch.no_grad()
def evaluate(
    engine: Any,
    texts: Sequence[EvaluationWindows],
    bytes_per_token: np.ndarray,
    *,
    batch: int,
) -> list[Score]:
    """Score texts of one domain; a window that is in several is read once. Collective over the
    world.

    Windows are dealt out to dp ranks in turns; every rank makes the same number of forward calls
    (the last ones on empty windows), because under ZeRO-3 each call gathers parameters.

    Args:
        texts: windows of one store, of one context.
        bytes_per_token: int [vocab_size], UTF-8 bytes of each token id.
        batch: windows per rank and forward call.
    """
    windows, members = _united(texts)
    device = dist.device()
    per_call = batch * dist.dp_size()
    sums = torch.zeros(len(texts), len(SUMS), dtype=torch.float64, device=device)
    engine.eval()
    for first in range(0, len(windows), per_call):
        watchdog.beat(f"evaluation, window {first} of {len(windows)}")
        begin = min(first + dist.dp_rank() * batch, len(windows))
        inputs, targets = _rows(windows, begin, batch)
        losses, correct = engine(
            torch.from_numpy(inputs).to(device), torch.from_numpy(targets).to(device)
        )
        predicted = targets >= 0
        num_bytes = np.where(predicted, bytes_per_token[targets], 0).sum(axis=1)
        counts = torch.from_numpy(np.stack([predicted.sum(axis=1), num_bytes], axis=1)).to(device)
        by_window = torch.stack(
            [losses.double().sum(1), *counts.double().T, correct.sum(1).double()], dim=1
        )
        counted = torch.zeros(len(texts), batch, dtype=torch.bool, device=device)
        here = members[:, begin : begin + batch]
        counted[:, : here.shape[1]] = torch.from_numpy(here).to(device)
        # Not a product with the mask: a loss that is not finite outside a text is none of its.
        sums += torch.where(counted[:, :, None], by_window, 0.0).sum(dim=1)
    engine.train()
    dist.all_reduce(sums, group=dist.dp_group())
    return [Score(loss, *(int(count) for count in counts)) for loss, *counts in sums.tolist()]


def _united(texts: Sequence[EvaluationWindows]) -> tuple[EvaluationWindows, NDArray[np.bool_]]:
    """The windows that are in any of the texts, and whether each is in each, [G, n]."""
    first = texts[0]
    chosen = np.unique(np.concatenate([text.chosen for text in texts]))
    windows = EvaluationWindows(first.store, context=first.context, chosen=chosen)
    return windows, np.stack([np.isin(chosen, text.chosen) for text in texts])


def _rows(windows: EvaluationWindows, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` windows from `first` on, filled up with windows that predict nothing."""
    inputs, targets = windows.rows(first, min(first + count, len(windows)))
    missing = ((0, count - len(inputs)), (0, 0))
    return np.pad(inputs, missing), np.pad(targets, missing, constant_values=NO_TARGET)


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
