"""What the probes of a study show: the loss on a new domain after k phases, and its onset.

Probes of a seed read the same sequences in the same order (experiments/study/probes.py), so each is
compared with the fresh model of its own seed.
"""

from dataclasses import dataclass

import numpy as np

from sparsecl.experiments.findings.collect import Study
from sparsecl.experiments.findings.curves import Curve, band
from sparsecl.experiments.study.study_plan import Arm
from sparsecl.metrics.onset import Onset, onset

MEASURE = "first_loss"
"""Of a probe, which has one domain: held-out loss on it at the end."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbedArm:
    """The probes of one arm."""

    arm: Arm
    domain: str
    """That is probed; empty without a finished run."""
    loss: Curve | None
    """Over the phases before; of the seeds whose probes are all done, None without any."""
    change: Curve | None
    """The same minus the fresh model of the seed."""
    fresh: Onset | None
    """Against a fresh model."""
    best: Onset | None
    """Against the best of the probes before."""
    planned: int
    """Seeds of the plan."""


def probed_arms(study: Study) -> list[ProbedArm]:
    """In the order of the study; empty if it has no probes."""
    by_arm: dict[str, list[Arm]] = {}
    for probe in study.plan.arms:
        if probe.role == "probe" and probe.of is not None and probe.after is not None:
            by_arm.setdefault(probe.of, []).append(probe)
    return [_probed(study, study.plan.arm(name), probes) for name, probes in by_arm.items()]


def _probed(study: Study, arm: Arm, probes: list[Arm]) -> ProbedArm:
    found = {probe.after or 0: study.values(probe.name, MEASURE) for probe in probes}
    after = sorted(found)
    seeds = [seed for seed in study.plan.seeds if all(seed in found[k] for k in after)]
    one = ProbedArm(
        arm=arm,
        domain=_domain(study, probes),
        loss=None,
        change=None,
        fresh=None,
        best=None,
        planned=len(study.plan.seeds),
    )
    if not seeds:
        return one
    values = np.array([[found[k][seed] for k in after] for seed in seeds])
    level = 1 - study.plan.analysis.alpha
    margin = study.plan.analysis.margins.get(MEASURE, 0.0)

    def curve(rows: np.ndarray) -> Curve:
        x = np.array(after, dtype=np.float64)
        return Curve(arm=arm.name, seeds=tuple(seeds), x=x, values=rows, band=band(rows, level))

    return ProbedArm(
        arm=arm,
        domain=one.domain,
        loss=curve(values),
        change=curve(values - values[:, :1]),
        fresh=onset(values, after, against="fresh", margin=margin, level=level),
        best=onset(values, after, against="best", margin=margin, level=level),
        planned=one.planned,
    )


def _domain(study: Study, probes: list[Arm]) -> str:
    for probe in probes:
        for result in study.done(probe.name):
            if result.records is not None:
                return result.records.domains[result.records.order[0]]
    return ""
