"""What methods see of a run: see methods/context.py."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from sparsecl import dist, seeding, watchdog
from sparsecl.data.batches import PhaseStream
from sparsecl.data.prepare import PreparedData
from sparsecl.engine.build import Built
from sparsecl.engine.loop.evaluate import mean_gradients
from sparsecl.engine.loop.outputs import forward
from sparsecl.engine.loop.phase_data import Stream
from sparsecl.engine.position import Position
from sparsecl.engine.run_config import RunConfig
from sparsecl.engine.schedule import Phase, Schedule
from sparsecl.errors import InvariantError
from sparsecl.methods.context import Outputs, Progress, SliceTensors
from sparsecl.methods.several import Methods
from sparsecl.methods.weights import WeightContext
from sparsecl.model.frozen_copy import frozen_copy
from sparsecl.model.generate import sample_rows
from sparsecl.optim.moving import joined
from sparsecl.optim.slice import Slice
from sparsecl.sparse.linear import SparseLinear

# Keeps fp16 gradients of single sequences clear of underflow, and of overflow by the scale alone.
FISHER_SCALE = 1024.0


class RunContext(WeightContext):
    """The context of one run on this rank; implements MethodContext."""

    def __init__(
        self,
        config: RunConfig,
        schedule: Schedule,
        data: PreparedData,
        built: Built,
        position: Position,
        methods: Methods,
        stream_of: Callable[[int], Stream],
    ) -> None:
        """`stream_of`: the training sequences of a phase."""
        super().__init__(built.engine.module, built.slices, built.guard, methods)
        self.config, self.schedule, self.built = config, schedule, built
        self.position, self._stream_of = position, stream_of
        self._end_of_text = data.tokenizer.eot_id
        self.micro_step = 0

    # Where the run is.

    @property
    def progress(self) -> Progress:
        position = self.position
        phase = self._phase
        stage = phase.stage(min(position.phase_step, phase.num_steps - 1))
        return Progress(
            step=position.step,
            total_steps=self.schedule.num_steps,
            phase=phase.index,
            phase_step=position.phase_step,
            phase_steps=phase.num_steps,
            stage=stage.name,
            stage_step=position.phase_step - stage.begin,
            stage_steps=stage.end - stage.begin,
            data_step=position.phase_step + position.data_shift,
            micro_step=self.micro_step,
            num_micro_steps=self.schedule.accumulation,
        )

    @property
    def _phase(self) -> Phase:
        """After the last phase the last one is shown."""
        phases = self.schedule.phases
        return phases[min(self.position.phase, len(phases) - 1)]

    @property
    def domain(self) -> str:
        return self.schedule.domain_name(self._phase)

    @property
    def batch_sequences(self) -> int:
        return self.config.batch.sequences

    def rows(self, phase: int, indices: np.ndarray) -> np.ndarray:
        return self._stream_of(phase).rows(indices)

    def chunks(self, phase: int, indices: np.ndarray) -> np.ndarray:
        stream = self._stream_of(phase)
        assert isinstance(stream, PhaseStream), "phases.joint mixes the texts of all domains"
        return stream.chunks(indices)

    def generator(self, *names: str | int) -> np.random.Generator:
        return seeding.stream(self.config.seed, *names)

    def curvature(self, item: Slice) -> torch.Tensor:
        raise InvariantError(f"{item.name}: a GPT has no rule for the diagonal of its Hessian")

    def mean_gradients(
        self,
        rows: np.ndarray,
        *,
        each: Callable[[torch.Tensor], torch.Tensor] | None = None,
        of: Callable[[Outputs, np.ndarray], torch.Tensor] | None = None,
    ) -> SliceTensors:
        found = mean_gradients(
            self.built.engine,
            rows,
            each=each,
            of=of,
            micro=self.schedule.micro,
            scale=min(self.slices.loss_scale, FISHER_SCALE),
        )
        return {item.name: item.part(found[item.name]).clone() for item in self.slices}

    def linear_inputs(self, rows: np.ndarray) -> Iterator[Mapping[str, torch.Tensor]]:
        for first in range(0, len(rows), self.schedule.micro):
            watchdog.beat("a pass for a method")
            yield self._linear_inputs(rows[first : first + self.schedule.micro])

    def _linear_inputs(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Of one forward pass; such a pass is never compiled, so hooks see it."""
        engine, found, hooks = self.built.engine, dict[str, torch.Tensor](), []
        for linear in (one for one in engine.module.modules() if isinstance(one, SparseLinear)):

            def keep(linear: SparseLinear, args: Any) -> None:
                local = args[0].detach().flatten(0, -2).float()
                found[f"{linear.shape.name}.weight"] = (
                    joined(local, 1) if linear.partition_dim == 1 else local
                )

            hooks.append(linear.register_forward_pre_hook(keep))
        try:
            self._pass_forward(rows)
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def pass_forward(self, rows: np.ndarray) -> None:
        assert len(rows) % dist.dp_size() == 0, (len(rows), dist.dp_size())
        own = rows[dist.dp_rank() :: dist.dp_size()]
        for first in range(0, len(own), self.schedule.micro):
            watchdog.beat("a pass for a method")
            self._pass_forward(own[first : first + self.schedule.micro])

    @torch.no_grad()
    def _pass_forward(self, rows: np.ndarray) -> None:
        engine, tokens = self.built.engine, torch.from_numpy(rows).to(dist.device())
        engine.eval()
        try:
            engine(tokens[:, :-1], tokens[:, 1:])
        finally:
            engine.train()

    def sample_sequences(
        self, prompts: np.ndarray, rng: np.random.Generator, *, temperature: float = 1.0
    ) -> np.ndarray:
        num, known = prompts.shape
        if not known:
            prompts = np.full((num, 1), self._end_of_text)
        uniform = rng.random((num, self.schedule.shape.context + 1 - prompts.shape[1]))
        return sample_rows(self._copy(None), prompts, uniform, temperature)

    def frozen_copy(self, masters: SliceTensors | None = None) -> Callable[[np.ndarray], Outputs]:
        model = self._copy(masters)

        @torch.no_grad()
        def teacher(rows: np.ndarray) -> Outputs:
            return forward(model, torch.from_numpy(rows).to(dist.device()), with_logits=True)

        return teacher

    @torch.no_grad()
    def _copy(self, masters: SliceTensors | None) -> Any:
        # At every stage and precision the weights of the forward pass are the masters, rounded.
        weights = {
            name: self.whole(name, masters).to(param.dtype)
            for name, param in self.slices.parameters().items()
        }
        return frozen_copy(self.module, weights)
