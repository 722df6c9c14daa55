"""How far later phases have moved the model on earlier domains: KL(model then || model now).

S = sequences of a probe, T = its tokens, K = draws; V = vocabulary.

"Then" is right after the last phase of a domain: Shenfeld et al. 2025, https://arxiv.org/abs/2509.04259,
find that this divergence tells how much is forgotten, whatever way the model was moved. The old
weights are not kept, and neither are old logits [S, T, V]. At the end of a domain's own phase, K
tokens y are drawn at each position of the probe from the model's own distribution and kept with
their log-probabilities. From then on

    KL(then || now) = E_y[log p_then(y) - log p_now(y)],    y ~ p_then

is estimated, without bias, by the mean over positions and draws, in nats per token. It can come out
below 0 where the model has hardly moved, and is exactly 0 where it has not moved at all.

The probe is validation text of one domain, spread over all of it; it is read by every dp rank, so
nothing is reduced over dp. Training is not changed: the draws have streams of their own
(seeding.py), and nothing here touches a gradient or writes to a weight.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparsecl import dist, watchdog
from sparsecl.data.prepare import DomainData
from sparsecl.engine.build import Built
from sparsecl.engine.observe.observer import Observer
from sparsecl.engine.observe.plasticity import evaluating, make_probe
from sparsecl.engine.position import Count
from sparsecl.engine.schedule import JOINT, Schedule
from sparsecl.model.distribution import chosen, log_sum_exp, sample
from sparsecl.seeding import stream

NUM_DRAWS = 8
"""At each position. Draws cost nothing beside the forward pass, but those of one position share its
text, so that more of them help less and less."""

BYTES_PER_TOKEN = 4 + 8 * NUM_DRAWS
"""Of a reference: the token, and a draw's id and log-probability."""


@dataclass
class References:
    """Part of every checkpoint, with one `Reference` for each entry as arrays beside it."""

    phases: list[Count] = field(default_factory=list)
    """Whose ends later models are compared with, rising: for each domain its last one so far."""


class Reference(NamedTuple):
    """What is kept of the model at the end of a phase; on the CPU, the same on all ranks."""

    tokens: Tensor
    """int32 [S, T], the probe. Kept, so that the text that is read stays that of the draws."""

    ids: Tensor
    """int32 [S, T, K], the draws."""

    log_probs: Tensor
    """fp32 [S, T, K], of the draws under the model of that time."""


class Moved(NamedTuple):
    """How far the model is from where it was."""

    kl: float
    """Nats per token."""

    error: float | None
    """Standard error over the positions, as if they were independent; None for a single one."""

    num_tokens: int
    """Positions."""


class Drift(Observer[References]):
    """Keeps the references of one run, and compares. All methods are local unless they say
    otherwise."""

    def __init__(
        self,
        built: Built,
        domains: Sequence[DomainData],
        schedule: Schedule,
        *,
        tokens: int,
        seed: int,
        batch: int,
    ) -> None:
        """Args:
        tokens: of each domain's probe; 0 = nothing is kept and nothing is measured.
        batch: sequences per rank and forward pass of an evaluation.
        """
        super().__init__(References())
        self.built, self.domains, self.schedule = built, domains, schedule
        self.tokens, self.seed = tokens, seed
        # Beside the logits a pass holds a copy and their exponentials.
        self.batch = max(1, batch // 4)
        self.references: dict[int, Reference] = {}
        """By phase, as in `kept.phases`."""

    def phase_end(self, phase: int) -> dict[str, Moved]:
        """Compare with all earlier domains, then keep a reference for this one. Collective over
        the world.

        Returns:
            By domain, for those whose own last phase is over and is not this one; the same on all
            ranks of a tp group. A joint phase trains all domains, so none is left.
        """
        domain = self.schedule.phases[phase].domain
        if not self.tokens:
            self.references = {}
        # What trained a domain again is no drift away from it.
        kept = {p: r for p, r in self.references.items() if not self._trains(phase, p)}
        found: dict[str, Moved] = {}
        with evaluating(self.built.engine):
            for earlier, reference in kept.items():
                name = self.schedule.domain_name(self.schedule.phases[earlier])
                found[name] = moved(reference, self._log_probs(reference))
            if self.tokens and domain != JOINT:
                kept[phase] = self._refer(phase, domain)
        self.references = kept
        self.kept.phases = list(kept)
        return found

    def _trains(self, phase: int, earlier: int) -> bool:
        phases = self.schedule.phases
        return phases[phase].domain in (JOINT, phases[earlier].domain)

    def _refer(self, phase: int, domain: int) -> Reference:
        """Draw from the model as it is now."""
        data = self.domains[domain]
        context = self.schedule.shape.context
        probe = make_probe([data], tokens=self.tokens, context=context)
        assert probe is not None
        tokens = torch.from_numpy(probe.inputs.astype(np.int32))
        # One number for each draw: not one for each token of the vocabulary, as Gumbel noise takes.
        rng = stream(self.seed, "drift", phase, data.name)
        uniform = torch.from_numpy(rng.random((*tokens.shape, NUM_DRAWS)))
        vocab_size = self.built.engine.module.vocab_size
        ids, log_probs = [], []
        for rows, logits in self._passes(tokens):
            drawn = sample(logits, uniform[rows].to(logits.device), vocab_size)
            ids.append(drawn.to("cpu", torch.int32))
            log_probs.append(self._of(logits, drawn))
        return Reference(tokens, torch.cat(ids), torch.cat(log_probs))

    def _log_probs(self, reference: Reference) -> Tensor:
        """Of the draws, under the model as it is now."""
        found = [
            self._of(logits, reference.ids[rows].to(logits.device, torch.int64))
            for rows, logits in self._passes(reference.tokens)
        ]
        return torch.cat(found)

    def _passes(self, tokens: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Logits [B, T, V_local] of some sequences after the other."""
        engine = self.built.engine
        for first in range(0, len(tokens), self.batch):
            watchdog.beat(f"drift, sequence {first} of {len(tokens)}")
            rows = slice(first, first + self.batch)
            inputs = tokens[rows].to(dist.device(), torch.int64)
            # The loss is not looked at; any targets will do.
            yield rows, engine(inputs, inputs, with_logits=True)[2]

    def _of(self, logits: Tensor, ids: Tensor) -> Tensor:
        """Log-probabilities fp32 [B, T, K] on the CPU."""
        first_id = self.built.engine.module.embedding.vocab_start_index
        found = chosen(logits, ids, first_id) - log_sum_exp(logits)[..., None]
        return found.clamp_(max=0.0).cpu()  # rounding can end above it

    def arrays(self) -> dict[str, Tensor]:
        return {
            f"{phase}.{name}": value
            for phase, reference in self.references.items()
            for name, value in reference._asdict().items()
        }

    def load_arrays(self, arrays: Mapping[str, Tensor]) -> None:
        self.references = {
            phase: Reference(*(arrays[f"{phase}.{name}"] for name in Reference._fields))
            for phase in self.kept.phases
        }


DTYPES = {"tokens": torch.int32, "ids": torch.int32, "log_probs": torch.float32}


def array_problems(
    kept: References, arrays: Mapping[str, Tensor], *, vocab_size: int
) -> Iterator[str]:
    """What is wrong with the arrays that a checkpoint holds beside `kept`, a line each.

    Args:
        arrays: by the names of `Drift.arrays`; their floats are finite.
        vocab_size: no token has this id or a higher one.
    """
    wanted = {f"{phase}.{name}" for phase in kept.phases for name in Reference._fields}
    for key in sorted(wanted ^ set(arrays)):
        yield f"{key} is {'missing' if key in wanted else 'not known'}"
    for phase in kept.phases:
        own = {name: arrays.get(f"{phase}.{name}") for name in Reference._fields}
        for name, value in own.items():
            if value is not None and value.dtype != DTYPES[name]:
                yield f"{phase}.{name}: {value.dtype} is not {DTYPES[name]}"
            elif value is not None and name != "log_probs":
                if bool(((value < 0) | (value >= vocab_size)).any()):
                    yield f"{phase}.{name}: no ids of {vocab_size} tokens"
            elif value is not None and bool((value > 0).any()):
                yield f"{phase}.{name}: a probability above 1"
        shapes = [None if value is None else tuple(value.shape) for value in own.values()]
        tokens, ids, log_probs = shapes
        if None in shapes:
            continue
        fits = len(tokens or ()) == 2 and 0 not in (ids or ()) and len(ids or ()) == 3
        if not fits or (ids or ())[:2] != tokens or log_probs != ids:
            yield f"{phase}: {tokens}, {ids} and {log_probs} are not the shapes of one probe"


def moved(reference: Reference, log_probs: Tensor) -> Moved:
    """Compare with the log-probabilities [S, T, K] that the draws have now."""
    gaps = (reference.log_probs.double() - log_probs.double()).mean(dim=-1).flatten()
    num = gaps.numel()
    error = float(gaps.std() / num**0.5) if num > 1 else None
    return Moved(float(gaps.mean()), error, num)
