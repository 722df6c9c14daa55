"""interference.json as text: one checkpoint in full, several in a line each."""

from collections.abc import Sequence

from sparsecl.metrics.columns import align, column_widths
from sparsecl.metrics.interference import Interference, Matrix

COLUMNS = (
    ("cosine", "cosine_off_diagonal", "{:.4f}"),
    ("overlap", "overlap_top10_off_diagonal", "{:.4f}"),
    ("d loss", "loss_change_off_diagonal", "{:+.2e}"),
    ("KL", "kl_off_diagonal", "{:.2e}"),
    ("KL ratio", "kl_ratio", "{:.4f}"),
)


def as_text(found: Interference) -> str:
    """Everything about one checkpoint."""
    gradients, update, names = found.gradients, found.update, found.domains
    step = f"one step down the row's gradient, |dw| = {update.eps:g} |w|"
    unit = "1e-3 nats per token"
    losses = ", ".join(f"{n} {x:.4f}" for n, x in zip(names, update.loss, strict=True))
    blocks = [
        f"{found.run}, {found.checkpoint}: {found.density.num_live} live weights in the masked "
        f"matrices, density {found.density.masked:.5f}\n"
        f"held-out loss, nats per token: {losses}",
        structure_text(found),
        table("Cosine of gradients on live weights", names, gradients.cosine, "{:.4f}"),
        table("Cosine of gradients, all parameters", names, gradients.cosine_all_parameters),
        table("Dot product per live weight", names, gradients.dot_per_live_weight, "{:.3e}"),
        table(
            "Jaccard overlap of the tenths of live weights with the largest |gradient| "
            f"(by chance {gradients.overlap_by_chance:.4f})",
            names,
            gradients.overlap_top10,
        ),
        table(f"Loss change, {unit}: {step}", names, scaled(update.loss_change), "{:+.4f}"),
        table(f"The same to first order, {unit}", names, scaled(update.predicted), "{:+.4f}"),
        table("KL(before || after), nats per token: the same step", names, update.kl, "{:.2e}"),
        means_text(found),
    ]
    return "\n\n".join(blocks)


def structure_text(found: Interference) -> str:
    """Paths, reach, single weights."""
    s, single = found.structure, found.single_weight
    return "\n".join(
        [
            f"Paths along the {s.num_matrices} feed-forward matrices, no residual paths (log10)",
            f"  through one live weight      {log_text(s.paths_per_weight_log10)}",
            f"  ... over that of dense       {log_text(s.paths_ratio_to_dense_log10)}   "
            f"(rho^(K-1) = {s.rho_power:.3g})",
            f"  share of the network's own   {log_text(s.share_of_own_paths_log10)}   "
            f"(dense {log_text(s.share_of_own_paths_dense_log10)})",
            f"  live weights on no path      {s.without_path:.4f}",
            "Reach of one unit of the residual stream, after each block",
            f"  with residual paths          {' '.join(f'{x:.3f}' for x in s.reach)}",
            f"  without                      "
            f"{' '.join(f'{x:.3f}' for x in s.reach_without_residual)}",
            f"Moved by one live weight (mean of {single.num_weights})",
            f"  logits                       {single.logits:.4f}",
            f"  hidden units, last block     {single.hidden:.4f}",
        ]
    )


def means_text(found: Interference) -> str:
    """The means, by name."""
    width = max(map(len, found.means))
    lines = [
        f"  {name:<{width}}  {'-' if value is None else f'{value:.6g}'}"
        for name, value in found.means.items()
    ]
    return "\n".join(["Means over pairs of different domains, and over diagonals", *lines])


def log_text(value: float | None) -> str:
    """A power of ten, or that there is none."""
    return "no path" if value is None else f"{value:.3f}"


def scaled(matrix: Matrix) -> Matrix:
    """In thousandths."""
    return tuple(tuple(1e3 * value for value in row) for row in matrix)


def table(title: str, names: Sequence[str], matrix: Matrix, form: str = "{:.4f}") -> str:
    """Aligned text with names at both sides."""
    cells = [[form.format(value) for value in row] for row in matrix]
    rows = [["", *names], *([name, *row] for name, row in zip(names, cells, strict=True))]
    return "\n".join([title, *(f"  {line}" for line in align(rows))])


def side_by_side(found: Sequence[tuple[str, Interference]]) -> str:
    """One line for each checkpoint: density, means over pairs of domains, share of logits moved."""
    rows = [["", "density", *(title for title, _, _ in COLUMNS), "logits"]]
    for name, one in found:
        values = [
            "-" if one.means.get(key) is None else form.format(one.means[key])
            for _, key, form in COLUMNS
        ]
        ends = f"{one.density.masked:.5f}", f"{one.single_weight.logits:.4f}"
        rows.append([name, ends[0], *values, ends[1]])
    widths = [column_widths(rows)[0], 8, *[10] * len(COLUMNS), 7]
    title = "Means over pairs of different domains; d loss and KL in nats per token"
    return "\n".join([title, *align(rows, widths=widths, gap=" ")])
