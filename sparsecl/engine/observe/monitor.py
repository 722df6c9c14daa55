"""What training costs, measured beside it: seconds, memory, waiting, the share of the peak in use.

Every rank measures itself. At each logged step the numbers of all ranks meet in one collective (the
one that Stragglers makes anyway) and are drawn, over the steps since the last logged one.

MFU follows the dense equivalent: FLOPs per token of the same model without masks (model/flops.py),
times tokens per second, over the peak of all devices. A topology that makes steps faster shows as
a higher figure, which can be above 1. Tokens are new ones: replayed ones cost time and count not.

Everything here is time, so it may differ between equal runs. It goes to TensorBoard, and once, at
the end, into the record of kind "end"; the figures of ranks are those of the last attempt.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from sparsecl import dist
from sparsecl.engine import ledger
from sparsecl.engine.build import Built
from sparsecl.engine.observe.communication import Sampler
from sparsecl.engine.observe.goodput import MAX_SILENCE, Attempts, Spent
from sparsecl.engine.observe.journal import Journal
from sparsecl.engine.observe.stragglers import Stragglers
from sparsecl.engine.observe.stretch import Loader, Report, StepClock, Stretch, peak_memory
from sparsecl.engine.run_config import RunConfig
from sparsecl.methods.several import Methods
from sparsecl.model.flops import training_flops_per_token
from sparsecl.model.peaks import peak_flops, utilisation
from sparsecl.sparse.registry import count_live

GIB = 2**30


class Monitor:
    """Measures this rank, and draws all of them. Local, but for `compare`."""

    def __init__(
        self,
        config: RunConfig,
        built: Built,
        journal: Journal,
        loader: Loader,
        methods: Methods,
        *,
        vocab_size: int,
    ) -> None:
        """Args:
        methods: of the run; the weights that live are counted if one of them moves them.
        vocab_size: of the tokenizer, for the FLOPs of the head.
        """
        self.journal = journal
        self._module, self._methods = built.engine.module, methods
        # Such a forward pass holds collectives, so its time is not this rank's own.
        forward_waits = built.slices.stage == 3 or dist.tp_size() > 1
        self.stragglers = Stragglers(journal, forward_waits=forward_waits)
        self.sampler = Sampler(config.speed.sample_every, config.speed.profile)
        self.attempts = Attempts(journal.log.folder) if journal.log is not None else None
        self.spent = Spent()
        self._steps = StepClock(loader)
        self._whole = Stretch()
        shape = journal.schedule.shape
        counts = ledger.count(config, vocab_size, built.topologies)
        self._flops = training_flops_per_token(shape, counts, role=config.topology.role).dense
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        self._peak = peak_flops(device, config.precision, peak_tflops=config.speed.peak_tflops)

    # Around what takes time.

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Around all that this process trains; what came before it was the start-up."""
        if self.attempts is None:
            yield
            return
        self._spend(startup=self.attempts.seconds)
        try:
            yield
        finally:
            self._mark()
            self.attempts.close()

    def evaluation(self) -> contextlib.AbstractContextManager[None]:
        """Around figures that train nothing, between steps."""
        return self._between_steps("evaluation")

    def checkpoint(self) -> contextlib.AbstractContextManager[None]:
        """Around what training waits for when it saves, between steps."""
        return self._between_steps("checkpoint")

    @contextlib.contextmanager
    def _between_steps(self, part: str) -> Iterator[None]:
        begin = time.monotonic()
        try:
            yield
        finally:
            self._spend(**{part: time.monotonic() - begin})
            self._mark()

    def begin_phase(self) -> None:
        """The first step of a phase is next."""
        self.sampler.begin_phase()

    def begin_step(self) -> None:
        """A step begins, with all that belongs to it."""
        self._steps.begin()

    @contextlib.contextmanager
    def work(self, number: int) -> Iterator[None]:
        """Around forward, backward and update, inside a step.

        Args:
            number: of the step in the whole run, from 1.
        """
        with self.sampler.step(number) as cost:
            yield
        self._steps.leave_out(sum(cost))
        self.stragglers.step_done()

    def evaluated(self, seconds: float) -> None:
        """So many seconds of the step that runs went to figures."""
        self._steps.leave_out(seconds)
        self._spend(evaluation=seconds)

    def end_step(self) -> float:
        """The step is over. Returns its seconds, for the journal's clock."""
        seconds = self._steps.end()
        self._spend(steps=seconds)
        return seconds

    def _spend(self, **seconds: float) -> None:
        now = {name: getattr(self.spent, name) + more for name, more in seconds.items()}
        self.spent = replace(self.spent, **now)

    def _mark(self, *, at_most_every: float = 0.0) -> None:
        if self.attempts is not None:
            self.attempts.mark(self.spent, at_most_every=at_most_every)

    # What is shown.

    def compare(self) -> None:
        """Draw what the ranks did since the last call. Collective over the world.

        To be called inside a step, after something that waited for the device.
        """
        steps, seconds, wait = self._steps.take()
        memory, reserved = peak_memory()
        in_flight, exposed = self.sampler.take()
        mine = Report(seconds, wait, memory, reserved, in_flight, exposed)
        reports = [Report(*numbers) for numbers in self.stragglers.compare(mine)]
        if not reports:
            return
        latest = Stretch()
        for stretch in (latest, self._whole):
            stretch.add(steps, reports)
        self.journal.scalars(self._curves(latest))
        self.journal.live(self.live())
        self._mark(at_most_every=MAX_SILENCE)

    def live(self) -> dict[str, int]:
        """Of the matrices on a topology, global: how many weights are `live` now, of how many
        `cells`; empty where no method moves them."""
        if not self._methods.rewires:
            return {}
        live, cells = count_live(self._module)
        return {"live": live, "cells": cells}

    def performance(self) -> dict[str, Any]:
        """The block of that name in results.json; None for what was not measured."""
        return {**self._speed(self.journal.speed), **self._whole.figures(), **self._goodput()}

    def _curves(self, stretch: Stretch) -> dict[str, float]:
        """Points of TensorBoard; a figure that was not measured has none."""
        speed = self._speed(stretch.tokens_per_second(self.journal.schedule.tokens_per_step))
        figures = stretch.figures()
        shares = ("loader_wait_share", "communication_share", "exposed_communication_share")
        memory = [rank.memory / GIB for rank in stretch.ranks]
        points = {
            **{f"performance/{name}": value for name, value in speed.items()},
            **{f"performance/step_seconds_{k}": v for k, v in figures["step_seconds"].items()},
            **{f"time/{name}": figures[name] for name in shares},
            "time/goodput": self._goodput().get("goodput"),
            "memory/peak_gib_max": max(memory),
            "memory/peak_gib_min": min(memory),
            "memory/reserved_gib_max": max(rank.reserved for rank in stretch.ranks) / GIB or None,
        }
        return {tag: value for tag, value in points.items() if value is not None}

    def _speed(self, tokens_per_second: float) -> dict[str, float | None]:
        devices = dist.world_size()
        mfu = utilisation(tokens_per_second, self._flops, self._peak, num_devices=devices)
        return {"tokens_per_second": tokens_per_second, "mfu": mfu}

    def _goodput(self) -> dict[str, Any]:
        if self.attempts is None:
            return {}
        useful = self.journal.clock.train_seconds
        return self.attempts.breakdown(self.spent, useful=useful)
