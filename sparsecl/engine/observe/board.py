"""What TensorBoard shows beside plain curves: charts of several curves, cards, masks, hparams.

A curve's tag is `group/name`; its step is the number of tokens trained in the whole run.
"""

import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np

from sparsecl.engine.run_config import RunConfig
from sparsecl.topology.layer import LayerTopology

PICTURE_CELLS = 128  # along each side of a mask's picture; a larger mask is averaged down
PICTURE_PIXELS = 512  # along each side, about; cells are drawn as squares of several pixels
MAX_PICTURES = 6
FORGETTING = ("F_last", "F_std", "F_seed", "NF")  # metrics/forgetting.py
IN_TRAINING = "now_training/validation_bits_per_byte"
"""The curve that follows the domain in training."""

# Category -> chart -> patterns of tags (RunLog.layout). What a run does not have stays empty.
LAYOUT = {
    "Learning": {
        "training loss": ("train/loss$",),
        "learning rate": ("train/learning_rate$",),
        "gradient norm": ("train/live_gradient_norm$",),
    },
    "Forgetting": {
        "all domains, bits per byte": ("validation_bits_per_byte/",),
        "domain in training, bits per byte": (f"{IN_TRAINING}$",),
        "all domains, nats forgotten": (rf"forgetting/(?!({'|'.join(FORGETTING)})$)",),
        "mean forgetting, nats (F_last)": ("forgetting/F_last$",),
        "share of what was learned (NF)": ("forgetting/NF$",),
        "KL since each domain's own phase": ("drift/",),
    },
    "Speed": {
        "tokens per second": ("performance/tokens_per_second$",),
        "model FLOPs utilisation": ("performance/mfu$",),
        "seconds of a step, over ranks": ("performance/step_seconds_",),
    },
    "Time": {
        "goodput": ("time/goodput$",),
        "share of a step": ("time/.*_share$",),
        "seconds of a checkpoint": ("checkpoint/.*_seconds$",),
    },
    "Memory": {"GiB of a process": ("memory/",)},
    "Health": {
        "slowest rank / usual rank": ("health/slowest_rank_ratio$",),
        "absent weights that are not zero": ("audit/nonzero_absent$",),
    },
}


def mask_pictures(topologies: Mapping[str, LayerTopology]) -> dict[str, np.ndarray]:
    """Pictures of the first masks: layer name -> [h, w] in [0, 1], local density, white = live."""
    pictures = {}
    for name in list(topologies)[:MAX_PICTURES]:
        mask = topologies[name].mask().astype(np.float32)
        factors = [max(1, size // PICTURE_CELLS) for size in mask.shape]
        rows, columns = (
            size - size % factor for size, factor in zip(mask.shape, factors, strict=True)
        )
        cells = mask[:rows, :columns].reshape(
            rows // factors[0], factors[0], columns // factors[1], factors[1]
        )
        density = cells.mean(axis=(1, 3))
        pixels = np.ones((max(1, PICTURE_PIXELS // max(density.shape)),) * 2, dtype=np.float32)
        pictures[name] = np.kron(density / max(float(density.max()), 1e-9), pixels)
    return pictures


def about_card(head: str) -> str:
    """Markdown for TensorBoard's TEXT page: the header, and how to read the other pages."""
    return f"""{preformatted(head)}

- The horizontal axis is trained tokens over the whole run. Set *Smoothing* to 0: validation is
  measured on fixed text, there is no noise to smooth.
- A run has one colour on every page. `{IN_TRAINING}` follows the
  domain that is being trained, so its jumps are the borders between phases.
- `forgetting/DOMAIN`, after each phase: loss now minus loss at the end of the domain's own
  training, nats per token. `forgetting/F_last` and its like are means over domains.
- `drift/DOMAIN`: KL of the model right after the domain's own training to the model now, nats per
  token. `METHOD/FIGURE`, after each phase: what a method measures of itself.
- `masks/LAYER`: white is live, black is absent; rows are outputs, columns inputs. A large matrix
  is averaged: brighter is denser.
- The page CUSTOM SCALARS has the same curves by subject: learning, forgetting, speed, time, memory,
  health; in a chart of all domains the colour is the run and the symbol the domain. With many runs
  the setting *Ignore outliers* hides the run that forgets most: untick it.
- `performance/...`, `time/...` and `memory/...` are over the steps since the point before;
  `time/goodput` is the share of the wall time since the first start that trained.
- To compare runs, start TensorBoard on the folder that holds their folders. One card
  `validation_bits_per_byte/DOMAIN` then has that domain in all runs, HPARAMS one row per run.
"""


def preformatted(text: str) -> str:
    """Markdown that shows `text` as it is."""
    return textwrap.indent(text, "    ", predicate=lambda line: True)


def forgetting_scalars(summary: Mapping[str, Any]) -> dict[str, float]:
    """Scalars of what is forgotten by the end of the last phase; those that are defined."""
    figures = summary["forgetting"]
    values = {**{name: figures[name] for name in FORGETTING}, **figures["per_domain"]}
    return {f"forgetting/{name}": value for name, value in values.items() if value is not None}


def final_metrics(summary: Mapping[str, Any]) -> list[str]:
    """Tags of the scalars that TensorBoard's HPARAMS table shows."""
    defined = forgetting_scalars(summary)
    figures = [f"forgetting/{name}" for name in FORGETTING if f"forgetting/{name}" in defined]
    return [*figures, *(f"validation_bits_per_byte/{name}" for name in summary["domains"])]


def flat_hparams(config: RunConfig) -> dict[str, Any]:
    """The settings that a comparison of runs sorts by."""
    return {
        "seed": config.seed,
        "topology": config.topology.kind,
        "density": config.topology.rho,
        "role": config.topology.role,
        "layers": config.model.resolved().layers,
        "width": config.model.resolved().width,
        "context": config.model.resolved().context,
        "sequences": config.batch.sequences,
        "lr": config.optimizer.lr,
        "optimizer": config.optimizer.kind,
        "precision": config.precision,
        "methods": " ".join(config.methods.used()) or "none",
    }
