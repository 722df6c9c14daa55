"""A whole run in plain PyTorch, one process, no hooks of ours: what a method is compared with.

It knows nothing of DeepSpeed, tensor parallelism or masked gradients: dense weights times mask in
the forward pass, torch's AdamW, clip_grad_norm_. A method's reference overrides what it changes.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from sparsecl.data.batches import PhaseStream
from sparsecl.data.prepare import prepare
from sparsecl.engine.schedule import learning_rate, make_schedule
from sparsecl.model.build import build_gpt
from sparsecl.sparse.registry import sparse_parameters
from tests.distributed import cases
from tests.reference import ReferenceGPT


@dataclass
class Trace:
    """What a run gave: of every step loss and gradient norm, the weights at the end, and what a
    method measures of itself at the ends of phases, where it does."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    figures: list[dict[str, dict[str, float]]] = field(default_factory=list)


class ReferenceRun:
    """Plain training on all phases; subclasses are methods."""

    make_model = ReferenceGPT

    def __init__(self, cache: str, overrides: tuple[str, ...]) -> None:
        self.config = cases.load(cache, overrides)
        self.schedule = make_schedule(self.config, world_size=1)
        self.data = prepare(self.config.data, self.config.tokenizer, context=16, seed=0)
        model = build_gpt(
            self.config.model,
            self.config.topology,
            vocab_size=257,
            seed=self.config.seed,
            shape=self.config.shape,
        )
        masks = {name: ~found.dead for name, found in sparse_parameters(model).items()}
        state = dict(model.state_dict())
        shape = self.schedule.shape
        self.model = self.make_model(
            state,
            masks,
            heads=4,
            vocab_size=257,
            tanh=shape.form == "gpt2",
            eps=shape.norm_eps,
            theta=shape.rope_theta,
        )
        self.params, self.masks = self.model.params, masks
        groups = [
            {"params": [p for p in self.params.values() if p.dim() == 2], "weight_decay": 0.1},
            {"params": [p for p in self.params.values() if p.dim() == 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=self.config.optimizer.eps)
        self.phase = self.phase_step = self.step = 0
        self.lr = 0.0

    def stream(self, phase: int) -> PhaseStream:
        """Training sequences of a phase."""
        domain = self.data.domains[self.schedule.phases[phase].domain]
        return PhaseStream(
            domain.train, context=16, seed=self.config.seed, phase=phase, domain_name=domain.name
        )

    def rows(self, phase: int, numbers: np.ndarray) -> torch.Tensor:
        """int64 [n, context + 1]."""
        return torch.from_numpy(self.stream(int(phase)).rows(np.asarray(numbers)))

    def row_losses(self, rows: torch.Tensor) -> torch.Tensor:
        """Mean loss of each row, [n]."""
        return torch.stack([self.model.loss(row[None, :-1], row[None, 1:]) for row in rows])

    # What a method may change.

    def phase_start(self) -> None: ...

    def loss(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(what the run reports, what goes backward) for the step's new rows."""
        loss = self.model.loss(rows[:, :-1], rows[:, 1:])
        return loss, loss

    def after_backward(self) -> bool:
        """Gradients are there. Returns False if the optimizer does not step."""
        return True

    def after_update(self) -> None: ...

    def after_step(self) -> None: ...

    def phase_end(self) -> None: ...

    def train(self) -> Trace:
        self.trace = trace = Trace()
        size = self.config.batch.sequences
        for phase in self.schedule.phases:
            self.phase = phase.index
            self.phase_start()
            for self.phase_step in range(phase.num_steps):
                self.lr = learning_rate(self.config, phase, self.phase_step)
                for group in self.optimizer.param_groups:
                    group["lr"] = self.lr
                self.optimizer.zero_grad()
                numbers = np.arange(size) + size * self.phase_step
                reported, whole = self.loss(self.rows(phase.index, numbers))
                whole.backward()
                steps = self.after_backward()
                clip = self.config.optimizer.clip
                norm = torch.nn.utils.clip_grad_norm_(self.params.values(), clip)
                if steps:
                    self.optimizer.step()
                    with torch.no_grad():
                        self.after_update()
                trace.losses.append(reported.item())
                trace.norms.append(float(norm))
                self.step += 1
                with torch.no_grad():
                    self.after_step()
            self.phase_end()
        trace.weights = {name: value.detach() for name, value in self.params.items()}
        return trace
