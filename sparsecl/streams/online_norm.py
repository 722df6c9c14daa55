"""Online normalisation: each sample is normalised by what came before it, not by its batch.

Source: Chiley et al. 2019 (https://arxiv.org/abs/1905.05894) and the rule of the public code. For
each feature mu and var are running figures of the stream; of sample x

    y = (x - mu) / sigma,  sigma^2 = var + eps;  then
    var <- a var + a (1 - a) (x - mu)^2,  mu <- mu + (1 - a) (x - mu)

What an exact normalisation would do to gradients is done by control: v keeps track of how far they
are from orthogonal to y, u of their sum, and both leak back into the gradients that come next,

    g <- g - (1 - b) v y,  v <- v + g y;  g <- g / sigma;  gin = g - (1 - b) u,  u <- u + gin

Then a gain and a bias, and outputs are kept in +-`bound`, for a sample far from the stream's past.

For networks that read a stream of samples, [B, n]. A GPT has no such layer: the samples of a
feature would be all tokens of a step one after the other, of which each data-parallel rank sees
others, so the figures would depend on the layout, and a pass would be as many steps as it has
tokens. Rows of a batch are samples in their order, and cost as many small steps.

B = samples, n = features. N networks side by side have their number in front of all shapes.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

EPS = 1e-5


class _Controlled(torch.autograd.Function):
    """Normalise x [..., B, n] by `stats`, [4, ..., n] of mu, var, u and v, which forward and
    backward move on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stats: Tensor, decay: float, control: float, eps: float):
        mean, var = stats[0], stats[1]
        y, sigma = torch.empty_like(x), torch.empty_like(x)
        for i, row in enumerate(x.unbind(-2)):
            sigma[..., i, :] = (var + eps).sqrt()
            apart = row - mean
            y[..., i, :] = apart / sigma[..., i, :]
            var.mul_(decay).add_(apart.square(), alpha=decay * (1.0 - decay))
            mean.add_(apart, alpha=1.0 - decay)
        ctx.save_for_backward(y, sigma)
        ctx.stats, ctx.leak = stats, 1.0 - control
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor):
        y, sigma = ctx.saved_tensors
        total, along = ctx.stats[2], ctx.stats[3]
        found = torch.empty_like(grad)
        for i, g in enumerate(grad.unbind(-2)):
            free = g - ctx.leak * along * y[..., i, :]
            along.add_(free * y[..., i, :])
            found[..., i, :] = free / sigma[..., i, :] - ctx.leak * total
            total.add_(found[..., i, :])
        return found, None, None, None, None


class OnlineNorm(nn.Module):
    """[B, n] -> [B, n]. In eval mode the figures stay as they are."""

    stats: Tensor
    """fp32 [4, n]: mean and variance of the features; u and v of the gradients."""

    def __init__(
        self,
        num_features: int,
        *,
        decay: float = 0.999,
        control: float = 0.99,
        eps: float = EPS,
        bound: float = 5.0,
        networks: tuple[int, ...] = (),
    ) -> None:
        """Begin with mean 0 and variance 1.

        Args:
            decay: a, of the figures of the features.
            control: b, of those of the gradients.
            bound: outputs are cut off beyond +-bound.
            networks: (N,) where N are side by side.
        """
        super().__init__()
        self.decay, self.control, self.eps, self.bound = decay, control, eps, bound
        self.weight = nn.Parameter(torch.ones(*networks, num_features))
        self.bias = nn.Parameter(torch.zeros(*networks, num_features))
        stats = torch.zeros(4, *networks, num_features)
        stats[1] = 1.0
        self.register_buffer("stats", stats)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.look(x)
        return self._scaled(_Controlled.apply(x, self.stats, self.decay, self.control, self.eps))

    def look(self, x: Tensor) -> Tensor:
        """As in eval mode."""
        mean, var = self.stats[0].unsqueeze(-2), self.stats[1].unsqueeze(-2)
        return self._scaled((x - mean) / (var + self.eps).sqrt())

    def _scaled(self, y: Tensor) -> Tensor:
        scaled = y * self.weight.unsqueeze(-2) + self.bias.unsqueeze(-2)
        return scaled.clamp(-self.bound, self.bound)

    @torch.no_grad()
    def forget(self, network: tuple[int, ...], features: Tensor) -> None:
        """Let features [k] of one network have seen nothing."""
        for row, value in enumerate((0.0, 1.0, 0.0, 0.0)):
            self.stats[(row, *network, features)] = value
