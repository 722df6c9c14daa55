"""One model and its domains -> all that interference.json holds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsecl.analysis.functional import (
    FloatMatrix,
    cosines,
    domain_gradients,
    gram,
    overlaps,
    update_effects,
)
from sparsecl.analysis.live import LiveWeights
from sparsecl.analysis.load import topologies_of
from sparsecl.analysis.single_weight import mean_reach, output_shares
from sparsecl.analysis.structure import chain_paths, mlp_chain
from sparsecl.metrics.interference import (
    DensityResult,
    GradientResult,
    Interference,
    InterferenceSettings,
    Matrix,
    SingleWeightResult,
    StructureResult,
    UpdateResult,
    summary_means,
)
from sparsecl.model.flops import count_parameters
from sparsecl.model.gpt import GPT
from sparsecl.model.shapes import layer_shapes
from sparsecl.sparse.registry import sparse_parameters
from sparsecl.topology.reach import block_reach

TOP_SHARE = 0.1
"""Of the live weights, those whose gradients are called large."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a model is from; written down beside its numbers."""

    run: str
    checkpoint: str
    digest: str
    seed: int


def measure(
    model: GPT,
    domains: Mapping[str, NDArray[np.int64]],
    settings: InterferenceSettings,
    origin: Origin,
    say: Callable[[str], None] = lambda text: None,
) -> Interference:
    """Measure a trained model. Its weights are the same afterwards, bit for bit.

    Args:
        domains: held-out rows int64 [S, T + 1] by domain.
        say: told what is being done.

    Raises:
        DataError: if the model has no finite, nonzero gradient.
    """
    weights = LiveWeights(model)
    say("paths and reach of the masks")
    structure = measure_structure(model)
    gradients, update = _learning(model, weights, domains, settings, say)
    say(f"{min(settings.weights, weights.num_live)} single weights")
    first = np.concatenate([rows[:1] for rows in domains.values()])
    single = mean_reach(
        weights, output_shares(model, first), num_weights=settings.weights, seed=origin.seed
    )
    counts = count_parameters(model.shape, model.vocab_size, topologies_of(model))
    return Interference(
        run=origin.run,
        checkpoint=origin.checkpoint,
        digest=origin.digest,
        seed=origin.seed,
        settings=settings,
        domains=tuple(domains),
        num_tokens=tuple(rows.shape[0] * (rows.shape[1] - 1) for rows in domains.values()),
        density=DensityResult(
            masked=counts.density_masked, model=counts.density_model, num_live=weights.num_live
        ),
        structure=structure,
        gradients=gradients,
        update=update,
        single_weight=SingleWeightResult(**single.shares, num_weights=single.num_weights),
        means=summary_means(gradients, update),
    )


def measure_structure(model: GPT) -> StructureResult:
    """Paths and reach of the graph that values pass.

    In role update absent weights are there, only frozen: that graph is the dense one.
    """
    roles = {entry.role for entry in sparse_parameters(model).values()}
    topologies = {} if "update" in roles else topologies_of(model)
    shapes = layer_shapes(model.shape)
    paths = chain_paths(mlp_chain(topologies, shapes))
    reach = block_reach(topologies, shapes)
    return StructureResult(
        num_matrices=paths.num_matrices,
        paths_per_weight_log10=paths.paths_per_weight_log10,
        paths_ratio_to_dense_log10=paths.paths_ratio_to_dense_log10,
        rho_power=paths.rho_power,
        share_of_own_paths_log10=paths.share_of_own_paths_log10,
        share_of_own_paths_dense_log10=paths.share_of_own_paths_dense_log10,
        without_path=paths.without_path,
        reach=reach.with_residual.mean,
        reach_without_residual=reach.without_residual.mean,
    )


def _learning(
    model: GPT,
    weights: LiveWeights,
    domains: Mapping[str, NDArray[np.int64]],
    settings: InterferenceSettings,
    say: Callable[[str], None],
) -> tuple[GradientResult, UpdateResult]:
    """Gradients side by side, and what single updates do."""
    say(f"gradients of {len(domains)} domains")
    found = domain_gradients(model, weights, domains)
    live = {name: gradient.live for name, gradient in found.items()}
    products = gram(list(live.values()))
    whole = products + gram([gradient.other for gradient in found.values()])
    gradients = GradientResult(
        norm=tuple(np.sqrt(np.diag(products)).tolist()),
        cosine=_matrix(cosines(products)),
        cosine_all_parameters=_matrix(cosines(whole)),
        dot=_matrix(products),
        dot_per_live_weight=_matrix(products / weights.num_live),
        overlap_top10=_matrix(overlaps(list(live.values()), TOP_SHARE)),
        overlap_by_chance=TOP_SHARE / (2.0 - TOP_SHARE),
    )
    say(f"an update on each of {len(domains)} domains")
    effects = update_effects(model, weights, domains, live, eps=settings.eps)
    update = UpdateResult(
        eps=settings.eps,
        loss=tuple(effects.loss.tolist()),
        loss_change=_matrix(effects.loss_change),
        predicted=_matrix(effects.predicted),
        kl=_matrix(effects.kl),
    )
    return gradients, update


def _matrix(values: FloatMatrix) -> Matrix:
    return tuple(tuple(row) for row in values.tolist())
