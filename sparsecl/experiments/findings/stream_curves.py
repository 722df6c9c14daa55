"""Curves of an arm of a study of streams over its tasks, with a band for their mean."""

import numpy as np

from sparsecl.experiments.findings.collect import Study
from sparsecl.experiments.findings.curves import Curve, band
from sparsecl.experiments.study.stream_measures import learned_of

LEARNED = "learned"
"""Stands for the accuracy that a stream is about: online, or held-out."""

WINDOW = 10
"""Tasks that are averaged in a curve of what a task sums up; it is noisy from task to task."""

OF_A_TASK = (LEARNED, "p")
"""What a task sums up; the others are looked at before each task and after the last."""


def stream_curve(study: Study, arm: str, figure: str) -> Curve | None:
    """One figure of all networks of an arm; None if none of them has it.

    What a task sums up is averaged over WINDOW tasks, or a quarter of all if these are fewer, and
    stands at the middle of them; the first task is 1. The others stand at the tasks learned.
    """
    rows = {}
    for result in study.done(arm):
        curves = result.curves or {}
        name = learned_of(curves) if curves and figure == LEARNED else figure
        if name in curves:
            rows[result.run.seed] = curves[name]
    if not rows:
        return None
    values = np.array(list(rows.values()), dtype=np.float64)
    x = np.arange(values.shape[1], dtype=np.float64)
    if figure in OF_A_TASK:
        size = max(1, min(WINDOW, values.shape[1] // 4))
        kernel = np.full(size, 1.0 / size)
        values = np.array([np.convolve(row, kernel, "valid") for row in values])
        x = np.arange(values.shape[1]) + (size + 1) / 2
    return Curve(
        arm=arm,
        seeds=tuple(rows),
        x=x,
        values=values,
        band=band(values, 1 - study.plan.analysis.alpha),
    )
