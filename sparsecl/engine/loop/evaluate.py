"""Scores of a domain: exact token-weighted sums, whatever the batch size or layout.

At a phase end, and before training, one pass scores both texts of a domain (engine/texts.py).
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparsecl import dist, watchdog
from sparsecl.data.batches import NO_TARGET, EvaluationWindows
from sparsecl.engine.loop.outputs import forward
from sparsecl.engine.texts import EvaluationText, TextName
from sparsecl.errors import InvariantError
from sparsecl.methods.context import Outputs
from sparsecl.metrics.records import Score

NUM_SUMS = 4
"""Loss, tokens, bytes and right predictions."""


def evaluate_domains(
    engine: Any,
    texts: Mapping[str, EvaluationText],
    bytes_per_token: np.ndarray,
    wanted: Collection[TextName],
    *,
    batch: int,
    step: int,
    around: Callable[[str], AbstractContextManager[None]] = lambda domain: nullcontext(),
) -> dict[str, dict[TextName, Score]]:
    """Score every domain by its name, on one text or on both. Collective over the world.

    Args:
        bytes_per_token: int [vocab_size], UTF-8 bytes of each token id.
        batch: windows per rank and forward call.
        step: for messages.
        around: what to enter for the scoring of a domain, by its name.

    Raises:
        InvariantError: a loss is not finite.
    """
    scores: dict[str, dict[TextName, Score]] = {}
    for name, text in texts.items():
        parts: dict[TextName, EvaluationWindows] = {
            key: getattr(text, key) for key in ("ends", "inside") if key in wanted
        }
        with around(name):
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
    sums = torch.zeros(len(texts), NUM_SUMS, dtype=torch.float64, device=device)
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
    return [
        Score(loss_sum=loss, num_tokens=int(tokens), num_bytes=int(read), num_correct=int(right))
        for loss, tokens, read, right in sums.tolist()
    ]


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
def mean_gradients(
    engine: Any,
    rows: np.ndarray,
    *,
    each: Callable[[torch.Tensor], torch.Tensor] | None,
    of: Callable[[Outputs, np.ndarray], torch.Tensor] | None = None,
    micro: int,
    scale: float = 1.0,
) -> dict[str, torch.Tensor]:
    """Mean gradient of the loss per token over sequences, tp-local. Collective over the world.

    `torch.autograd.grad` leaves `.grad` and DeepSpeed's reduction hooks alone. Takes 4 bytes per
    local parameter while it runs.

    Args:
        rows: int64 [n, context + 1], the same on all ranks; dealt out to dp ranks in turns.
        each: applied to the gradient of each sequence, one backward pass per sequence (methods.md
            rule: the square of a batch mean is not the mean square). None: `micro` at a time.
        of: what takes the place of the loss of each token; see methods/context.py.
        scale: multiplies the loss during backward (fp16); taken out of the result.

    Returns:
        Parameter name -> fp32 tensor of the tp-local shape, equal on all dp ranks.
    """
    params = dict(engine.module.named_parameters())
    size, (places, counted) = (1 if each else micro), _dealt(len(rows))
    sums: dict[str, torch.Tensor] = {}
    for begin in range(0, len(places), size):
        watchdog.beat("gradients for a method")
        here, weight = places[begin : begin + size], counted[begin : begin + size]
        tokens = torch.from_numpy(rows[here]).to(dist.device())
        wanted = torch.from_numpy(np.ones_like(weight) if each else weight).to(tokens.device)
        counts = float(weight[0]) if each else 1.0
        # The module, not the engine: the engine's outputs only run backward through the engine.
        if of is None:
            mean = engine.module(tokens[:, :-1], tokens[:, 1:], weight=wanted)[2]
        else:
            outputs = forward(engine.module, tokens, with_logits=True)
            mean = (of(outputs, here).mean(1) * wanted).mean()
        loss = mean * len(here)
        gradients = torch.autograd.grad(loss * scale, list(params.values()))
        for name, gradient in zip(params, gradients, strict=True):
            value = gradient.float().div_(scale)
            value = (each(value) if each else value) * counts
            sums[name] = value if name not in sums else sums[name].add_(value)
    for value in sums.values():
        dist.all_reduce(value.div_(len(rows)), group=dist.dp_group())
    return sums


def _dealt(num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """This dp rank's rows by their places, as many as on every rank (under ZeRO-3 each pass gathers
    parameters), and 1.0 for each that counts; the others are there to make the number equal."""
    calls = -(-num_rows // dist.dp_size())
    places = np.arange(calls) * dist.dp_size() + dist.dp_rank()
    counted = (places < num_rows).astype(np.float32)
    return np.minimum(places, num_rows - 1), counted
