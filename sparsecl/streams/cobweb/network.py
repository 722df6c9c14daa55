"""CobwebNN: a binary tree of Gaussians of fixed size, trained by gradients.

Leaves have means and log-variances, an inner node has one number s. A parent is the mixture of its
two children with a = sigmoid(s): mean = a left + (1 - a) right, variance = sum over them of
a_c (v_c + (m_c - mean)^2). An image is encoded; every level shares it out by p = Gumbel-softmax of
-distance to its means, temperature 1; one sample of each Gaussian, mixed with p, is decoded; the
squared error of every level is in the loss. So far Teachable-AI-Lab/unsupervised-prototypes, whose
classes change from commit to commit. Whether one of them is the model of Barari, Kim & MacLellan
2025 (https://arxiv.org/abs/2510.23756) was never found, nor its sparse variant and loss weights.

Own reading: encoder and decoder are multilayer perceptrons, not ResNets; squared errors are means
over pixels; a leaf has logits of the labels, a parent mixes its children's probabilities with a,
and the cross entropy of the mixture at every level is in the loss, weight 1, without noise, as
predictions are, which are those of the leaves. The logits begin as different as the means: were
they equal, the encoder would have no reason to tell images apart.

`sparse` is an own reading too: the nearest leaf and the nodes above it get p = 1, a step changes
no other part of the tree; encoder and decoder are trained as before. It asks whether sparse updates
by themselves forget less.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from sparsecl import seeding
from sparsecl.errors import UserError

# B = images, P = pixels, D = code, C = classes, K = nodes of a level

Level = tuple[Tensor, Tensor, Tensor]

HIDDEN = 256
"""Units of the hidden layer of encoder and decoder."""


class CobwebNetwork(nn.Module):
    """A tree of 2^levels leaves over codes of images [B, P] in [0, 1].

    Args:
        width: D, numbers of a code.
        sparse: only the path to the nearest leaf is trained.
        seed: decides weights, batches and all noise.
    """

    def __init__(
        self,
        num_pixels: int,
        num_classes: int,
        *,
        levels: int = 5,
        width: int = 32,
        sparse: bool = False,
        lr: float = 3e-3,
        epochs: int = 10,
        batch: int = 20,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("levels", levels), ("width", width), ("batch", batch)):
            if value < 1:
                raise UserError(f"{name} must be >= 1, got {value}")
        self.sparse, self.epochs, self.batch, self.seed = sparse, epochs, batch, seed
        self.trained = 0
        """Calls of `learn`: each has noise of its own."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeding.stream_key(seed, "cobweb_nn", "init") % 2**63)
            self.encoder = _perceptron(num_pixels, width)
            self.decoder = _perceptron(width, num_pixels)
            self.means = nn.Parameter(torch.randn(2**levels, width))
            self.log_variances = nn.Parameter(torch.randn(2**levels, width))
            self.mixing = nn.ParameterList(torch.zeros(2**level) for level in range(levels))
            self.logits = nn.Parameter(torch.randn(2**levels, num_classes))
        self.optimizer = torch.optim.Adam(self.parameters(), lr=lr)

    def levels(self) -> list[Level]:
        """Means [K, D], variances [K, D], label probabilities [K, C]: leaves first, root last."""
        level: Level = (self.means, self.log_variances.exp(), self.logits.softmax(-1))
        found: list[Level] = [level]
        for scores in reversed(list(self.mixing)):
            level = parents(*level, scores)
            found.append(level)
        return found

    def loss(self, images: Tensor, labels: Tensor, noise: torch.Generator) -> Tensor:
        """Mean over images [B, P] of the sum over levels: squared error, as a mean over pixels,
        and cross entropy of the labels [B] in nats."""
        codes = self.encoder(images)
        total = torch.zeros(())
        nearest = torch.cdist(codes, self.means).argmin(1)
        for depth, (means, variances, probabilities) in enumerate(self.levels()):
            uniform = torch.rand(len(images), len(means), generator=noise)
            gumbel = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
            distances = torch.cdist(codes, means)
            shares, sure = torch.softmax(gumbel - distances, -1), torch.softmax(-distances, -1)
            if self.sparse:  # straight through, or the encoder would have no gradient
                path = functional.one_hot(nearest >> depth, len(means))
                shares, sure = path + shares - shares.detach(), path + sure - sure.detach()
            draw = torch.randn(means.shape, generator=noise)
            decoded = self.decoder(shares @ (means + variances.sqrt() * draw))
            total = total + (decoded - images).square().mean()
            likely = (sure @ probabilities).clamp_min(1e-12)
            total = total + functional.nll_loss(likely.log(), labels)
        return total

    def learn(self, images: NDArray[np.floating], labels: NDArray[np.integer]) -> None:
        """Train `epochs` passes over images [B, P] with labels [B], in drawn order."""
        pixels = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))
        targets = torch.from_numpy(np.asarray(labels, dtype=np.int64))
        noise = torch.Generator()
        noise.manual_seed(seeding.stream_key(self.seed, "cobweb_nn", "learn", self.trained) % 2**63)
        self.trained += 1
        for _ in range(self.epochs):
            for rows in torch.randperm(len(pixels), generator=noise).split(self.batch):
                self.optimizer.zero_grad()
                self.loss(pixels[rows], targets[rows], noise).backward()
                others = self._others(pixels[rows]) if self.sparse else []
                self.optimizer.step()
                for parameter, off, value in others:
                    parameter.data[off] = value

    @torch.no_grad()
    def _others(self, images: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """What the paths to the nearest leaves of images do not touch: parameters of the tree, the
        rows [K] that are off all paths, and their values. A gradient of zero would not do: parents
        are mixtures of all leaves below them, and Adam's momentum moves what has no gradient."""
        nearest = torch.cdist(self.encoder(images), self.means).argmin(1)
        depth = len(self.mixing)
        touched = [(self.means, nearest), (self.log_variances, nearest), (self.logits, nearest)]
        touched += [(scores, nearest >> depth - k) for k, scores in enumerate(self.mixing)]
        found = []
        for parameter, rows in touched:
            off = torch.ones(len(parameter), dtype=torch.bool)
            off[rows] = False
            found.append((parameter, off, parameter.detach()[off]))
        return found

    @torch.no_grad()
    def predict(self, images: NDArray[np.floating]) -> NDArray[np.float64]:
        """Probabilities of the labels [B, C] of images [B, P]; no noise."""
        codes = self.encoder(torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32)))
        distances = torch.cdist(codes, self.means)
        if self.sparse:
            return self.logits.softmax(-1)[distances.argmin(1)].double().numpy()
        shares = torch.softmax(-distances, dim=-1)
        return (shares @ self.logits.softmax(-1)).double().numpy()


def parents(
    means: Tensor, variances: Tensor, probabilities: Tensor, scores: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One level up: pairs of K nodes become K/2 mixtures, with weights from scores [K/2]."""
    left = torch.sigmoid(scores)
    share = torch.stack((left, 1.0 - left), dim=1).unsqueeze(-1)  # [K/2, 2, 1]
    pairs = means.view(-1, 2, means.shape[1])
    mean = (share * pairs).sum(1)
    spread = variances.view_as(pairs) + (pairs - mean.unsqueeze(1)).square()
    mixed = (share * probabilities.view(-1, 2, probabilities.shape[1])).sum(1)
    return mean, (share * spread).sum(1), mixed


def _perceptron(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs))
