"""Elastic weight consolidation: a quadratic spring to the weights that earlier domains needed.

Sources: Kirkpatrick et al. 2017 (arXiv 1612.00796): loss + sum_i lambda/2 F_i (theta - theta_i)^2,
one anchor per domain. Online variant, Schwarz et al. 2018 (arXiv 1805.06370): F <- gamma F + F_new
and one anchor, the latest weights.

Differs: the sum over anchors is kept as two numbers per weight (spring.py). F is the Fisher per
sequence, the mean square of the gradient of a sequence's mean loss per token, with labels from the
data (empirical) or drawn from the model (true): other conventions scale lambda by constants, so
lambda is only comparable within one convention.

Labels of the true Fisher are drawn for each position given the data before it. They are independent
of each other then, so products of two positions are zero in the mean, and F is 1 / T^2 times the
sum of the positions' own Fishers; the empirical one has these products in it.
"""

from collections.abc import Callable

import numpy as np
import torch

from sparsecl.methods.cl.config import EwcConfig
from sparsecl.methods.cl.spring import Spring
from sparsecl.methods.context import MethodContext, Outputs, SliceTensors


class Ewc(Spring):
    """A spring as stiff as the Fisher information. A method that measures importance in another way
    is a relative of it."""

    name = "ewc"

    config: EwcConfig

    def __init__(self, config: EwcConfig) -> None:
        super().__init__(config)

    @property
    def stiffness(self) -> float:
        return self.config.strength

    def importance(self, context: MethodContext) -> SliceTensors:
        """F of the phase that ends, >= 0, for every slice. Collective."""
        rows = context.rows(context.progress.phase, np.arange(self.config.sequences))
        of = self._own_labels(context) if self.config.fisher == "true" else None
        return context.mean_gradients(rows, each=torch.square, of=of)

    def _own_labels(self, context: MethodContext) -> Callable[[Outputs, np.ndarray], torch.Tensor]:
        """Losses of labels that the model draws; a sequence's draws do not depend on the layout."""

        def losses(outputs: Outputs, places: np.ndarray) -> torch.Tensor:
            names, length = (self.name, "labels", context.progress.phase), outputs.losses.shape[1]
            drawn = [context.generator(*names, int(place)).random(length) for place in places]
            ids = outputs.draw(torch.from_numpy(np.stack(drawn)))
            return -outputs.log_probs(ids[..., None])[..., 0]

        return losses

    def fasten(self, name: str, importance: torch.Tensor, weights: torch.Tensor) -> None:
        if self.config.variant == "online":
            if name in self.precision:
                self.precision[name] = self.config.gamma * self.precision[name]
            super().fasten(name, importance, weights)
        else:
            old = self.precision.get(name, torch.zeros_like(importance))
            held = self.target.get(name, torch.zeros_like(importance))
            self.precision[name] = old + importance
            self.target[name] = held + importance * weights
