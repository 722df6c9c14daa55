"""Classes of a few images that come two at a time, for tests."""

from typing import Any

import numpy as np

from sparsecl.methods.config import MethodsConfig
from sparsecl.streams.config import (
    LearnerConfig,
    PanelConfig,
    StepConfig,
    StreamConfig,
    StreamRunConfig,
)
from sparsecl.streams.image_sets import ImageSplit
from sparsecl.streams.images import Images
from sparsecl.streams.increments.config import IncrementsConfig

CLASSES, SIDE = 4, 6


def split(*, each: int = 12, channels: int = 1) -> ImageSplit:
    """Class c is bright in its own corner, with some noise."""

    def images(seed: int) -> Images:
        rng = np.random.default_rng(seed)
        labels = np.arange(CLASSES * each) % CLASSES
        pixels = rng.integers(0, 80, (len(labels), channels, SIDE, SIDE))
        for k, label in enumerate(labels):
            row, column = divmod(int(label), 2)
            pixels[k, :, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3] += 120
        flat = pixels.reshape(len(labels), -1).astype(np.uint8)
        return Images(flat, labels, 255, "small", channels=channels)

    return ImageSplit(images(0), images(1))


def config(learner: str = "convnet", **changes: Any) -> StreamRunConfig:
    methods = MethodsConfig(**changes.pop("methods", {}))
    settings = {"epochs": 3, "validation": 4, **changes.pop("increments", {})}
    given: dict[str, Any] = {
        "stream": StreamConfig(
            kind="class_incremental",
            tasks=2,
            batch=changes.pop("batch", 4),
            increments=IncrementsConfig(**settings),
        ),
        "learner": LearnerConfig(kind=learner, width=4, layers=2),  # pyright: ignore
        "optimizer": StepConfig(lr=0.05, momentum=0.9, weight_decay=1e-3),
        "panel": PanelConfig(samples=10),
        **changes,
    }
    return StreamRunConfig(methods=methods, **given)
