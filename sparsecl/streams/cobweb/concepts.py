"""What a concept knows of its images: counts, means, squared deviations, labels; all closed form.

One row for each concept. Legend: N = rows, P = pixels, C = classes, K = some of the rows.
The entropy of a concept is sum over pixels of 1/2 log v, v = SS / n + v0, but for the constant that
all concepts share; so differences of entropies are right, and only these are used.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LabelTerm = Literal["released", "corrected", "unused"]

PRIOR_VARIANCE = 1.0 / (2.0 * np.pi * np.e)
"""v0: a Gaussian of this variance has entropy 0. It keeps the logarithm finite of a pixel that is
the same in all images, as those of the border are."""

LABEL_SIGNS: dict[LabelTerm, float] = {"released": -1.0, "corrected": 1.0, "unused": 0.0}


class Concepts:
    """Rows of statistics, each of which a tree may take, change and give back."""

    def __init__(
        self, num_pixels: int, num_classes: int, prior_variance: float, label_term: LabelTerm
    ) -> None:
        self.prior_variance = prior_variance
        self.label_term: LabelTerm = label_term
        self.counts = np.zeros(0)  # [N]
        self.means = np.zeros((0, num_pixels))  # [N, P]
        self.squares = np.zeros((0, num_pixels))  # [N, P]: SS
        self.labels = np.zeros((0, num_classes))  # [N, C], counts
        self.entropies = np.zeros(0)  # [N]
        self._free: list[int] = []

    def take(self) -> int:
        """A row without images."""
        if not self._free:
            old, new = len(self.counts), max(16, 2 * len(self.counts))
            for name in ("counts", "means", "squares", "labels", "entropies"):
                rows = getattr(self, name)
                grown = np.zeros((new, *rows.shape[1:]))
                grown[:old] = rows
                setattr(self, name, grown)
            self._free = list(range(old, new))[::-1]
        row = self._free.pop()
        self.counts[row] = 0.0
        self.means[row] = self.squares[row] = self.labels[row] = 0.0
        return row

    def give_back(self, row: int) -> None:
        self._free.append(row)

    def absorb(self, row: int, image: Floats, label: int) -> None:
        """Count one image [P] in (Welford's update)."""
        self.counts[row] += 1.0
        away = image - self.means[row]
        self.means[row] += away / self.counts[row]
        self.squares[row] += away * (image - self.means[row])
        self.labels[row, label] += 1.0
        self.refresh(row)

    def absorb_row(self, row: int, other: int) -> None:
        """Count in all images of another row."""
        if self.counts[row]:
            self.squares[row] = self._joint_squares(row, other)
            self.means[row] = self._joint_mean(row, other)
        else:  # a copy to the last bit
            self.squares[row], self.means[row] = self.squares[other], self.means[other]
        self.counts[row] += self.counts[other]
        self.labels[row] += self.labels[other]
        self.refresh(row)

    def refresh(self, rows: int | slice) -> None:
        """Entropies of rows whose statistics have changed."""
        self.entropies[rows] = self._entropy(
            self.counts[rows], self.squares[rows], self.labels[rows]
        )

    def with_image(self, rows: Sequence[int], image: Floats, label: int) -> Floats:
        """Entropies [K] that rows [K] would have with one image more."""
        count = self.counts[rows]
        squares = self.squares[rows]
        squares += (count / (count + 1.0))[:, None] * (image - self.means[rows]) ** 2
        labels = self.labels[rows]
        labels[:, label] += 1.0
        return self._entropy(count + 1.0, squares, labels)

    def joint_with_image(self, row: int, other: int, image: Floats, label: int) -> float:
        """Entropy of two rows together with one image more."""
        count = self.counts[row] + self.counts[other]
        away = image - self._joint_mean(row, other)
        squares = self._joint_squares(row, other) + count / (count + 1.0) * away**2
        labels = self.labels[row] + self.labels[other]
        labels[label] += 1.0
        return float(self._entropy(count + 1.0, squares, labels))

    def lone(self) -> float:
        """Entropy of a row with a single image."""
        return 0.5 * self.means.shape[1] * float(np.log(self.prior_variance))

    def log_densities(self, rows: Sequence[int], images: Floats) -> Floats:
        """log p(image | row) [B, K] of images [B, P]."""
        variance = self.squares[rows] / self.counts[rows, None] + self.prior_variance
        means = self.means[rows]
        # (x - mean)^2 / v multiplied out, so that two products of matrices do all of it. In float64
        # what cancels costs about 1e-11 of a nat for pixels in [0, 1].
        distances = images**2 @ (1.0 / variance).T - 2.0 * (images @ (means / variance).T)
        constant = (means**2 / variance + np.log(2.0 * np.pi * variance)).sum(1)
        return -0.5 * (distances + constant)

    def _joint_mean(self, row: int, other: int) -> Floats:
        n, m = self.counts[row], self.counts[other]
        return self.means[row] + m / (n + m) * (self.means[other] - self.means[row])

    def _joint_squares(self, row: int, other: int) -> Floats:
        n, m = self.counts[row], self.counts[other]
        away = self.means[other] - self.means[row]
        return self.squares[row] + self.squares[other] + n * m / (n + m) * away**2

    def _entropy(self, count: Floats, squares: Floats, labels: Floats) -> Floats:
        count = np.asarray(count)[..., None]
        pixels = 0.5 * np.log(squares / count + self.prior_variance).sum(-1)
        shares = labels / count
        logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
        return pixels - LABEL_SIGNS[self.label_term] * (shares * logs).sum(-1)
