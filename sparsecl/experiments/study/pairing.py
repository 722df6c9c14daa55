"""What makes two runs of one seed a pair: the same data in the same order, scored on the same text.

One rule for all of a study. SCORED is what no arm may change: figures of other text, other tokens
or other windows cannot be compared at all. READ is what decides which sequences a run reads and in
which order: arms that differ in it are compared without pairing, if the study says so.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from sparsecl import config as configs
from sparsecl.engine.run_config import RunConfig
from sparsecl.errors import UserError
from sparsecl.experiments.study.study_plan import ContrastConfig, StudyPlan

SCORED = {
    "data": ("domains", "validation_share", "max_document_bytes"),
    "tokenizer": ("kind", "vocab_size", "model", "path", "train_bytes"),
    "model": ("context",),
    "eval": ("tokens", "end_tokens"),
}
"""Part of a run config -> its keys."""

READ = {
    "batch": ("sequences",),
    "phases": (
        *("steps", "tokens", "order", "joint", "offset"),
        *("patience", "min_improvement", "until_loss"),
    ),
}


def stream(config: RunConfig) -> str:
    """Digest of all that two runs of one seed must agree in to be a pair."""
    return configs.digest([_kept(config, keys) for keys in (SCORED, READ)])


def same_data(arm: RunConfig, reference: RunConfig) -> bool:
    """Are runs of one seed of these two configs pairs?"""
    return stream(arm) == stream(reference)


def check_scored(name: str, arm: RunConfig, reference: RunConfig) -> None:
    """Refuse an arm whose figures would be of something else than those of the reference."""
    for line in _differences(arm, reference, SCORED):
        raise UserError(
            f"arms.{name}: changes {line}. All arms of a study are scored on the same text in the "
            "same pieces. Set it in the base, or make another study."
        )


def check_contrasts(plan: StudyPlan, by_name: Mapping[str, RunConfig]) -> None:
    """Refuse a planned contrast of arms that are no pairs, unless it says so."""
    for contrast in plan.contrasts():
        if contrast.unpaired:
            continue
        for line in _differences(by_name[contrast.arm], by_name[contrast.against], READ):
            raise UserError(
                f"analysis.contrasts: {contrast.arm} minus {contrast.against} is no contrast of "
                f"pairs, for runs of one seed read other data ({line}). Give both arms the same, "
                "or state the contrast with unpaired: true."
            )


def contrast_lines(plan: StudyPlan) -> Iterator[str]:
    """The planned contrasts, one line each, with the densities that stand side by side."""
    for contrast in plan.contrasts():
        yield _contrast_line(plan, contrast)


def _contrast_line(plan: StudyPlan, contrast: ContrastConfig) -> str:
    first, second = (plan.arm(name).density for name in (contrast.arm, contrast.against))
    densities = f"density {first:.4f} against {second:.4f}"
    how = "" if plan.paired(contrast) else ", unpaired"
    return f"{contrast.arm} minus {contrast.against}: {densities}{how}"


def _differences(arm: RunConfig, reference: RunConfig, keys: Mapping[str, Any]) -> list[str]:
    return configs.differences(_kept(reference, keys), _kept(arm, keys))


def _kept(config: RunConfig, keys: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """The keys of a config that count here, as nested dicts."""
    found = configs.to_dict(config)
    found["model"]["context"] = config.model.resolved().context  # a preset brings its own
    return {part: {name: found[part][name] for name in names} for part, names in keys.items()}
