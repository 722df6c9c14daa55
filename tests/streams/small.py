"""A stream of a few images, for tests."""

from typing import Any

import numpy as np

from sparsecl.methods.config import MethodsConfig
from sparsecl.streams.config import (
    LearnerConfig,
    PanelConfig,
    SaveConfig,
    StepConfig,
    StreamConfig,
    StreamRunConfig,
)
from sparsecl.streams.images import Images


def images(num: int = 40, inputs: int = 9, classes: int = 3) -> Images:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (num, inputs), dtype=np.uint8)
    return Images(pixels, np.arange(num) % classes, 255, "small")


def config(*, tasks: int = 2, samples: int = 30, batch: int = 1, **changes: Any) -> StreamRunConfig:
    methods = MethodsConfig(**changes.pop("methods", {}))
    given: dict[str, Any] = {
        "stream": StreamConfig(tasks=tasks, samples_per_task=samples, batch=batch),
        "learner": LearnerConfig(width=8, layers=2),
        "optimizer": StepConfig(lr=0.1),
        "panel": PanelConfig(samples=10, every=7),
        "checkpoint": SaveConfig(),
        **changes,
    }
    return StreamRunConfig(methods=methods, **given)
