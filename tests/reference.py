"""A model in one sitting: what sparsecl's must agree with. One process, no splits, no hooks.

Which form it is shows in the names of its parameters. Weights are dense and multiplied by their
mask in the forward pass; autograd does the rest.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecl.model.shapes import is_vocabulary


class ReferenceGPT:
    """Plain parameters under sparsecl's names."""

    def __init__(
        self,
        state: dict[str, Tensor],
        masks: dict[str, Tensor],
        heads: int,
        *,
        vocab_size: int | None = None,
        tanh: bool = False,
        eps: float = 1e-5,
        theta: float = 10_000.0,
    ) -> None:
        """Copy the state.

        Args:
            state: global tensors by parameter name (layers.0.attention.q.weight, ...).
            masks: bool, True = live, by parameter name; a matrix that is not named is dense.
            vocab_size: crop the embedding to the tokens in use, without its padding rows.
            tanh: the tanh form of GELU.
            eps: of norms.
            theta: base of rotary angles, where there are no positions.weight.
        """
        self.params = {name: nn.Parameter(value.detach().clone()) for name, value in state.items()}
        for name in filter(is_vocabulary, state) if vocab_size else ():
            self.params[name] = nn.Parameter(state[name].detach()[:vocab_size].clone())
        self.masks, self.heads = masks, heads
        self.gelu, self.eps, self.theta = "tanh" if tanh else "none", eps, theta
        self.hidden: dict[int, Tensor] = {}
        """The hidden units of each layer in the last pass."""

        self.gates: dict[str, Tensor] = {}
        """What multiplies the hidden units [B, T, n] of layers.0.mlp, ...; empty = nothing."""

        self.layers = sum(name.endswith("attention.q.weight") for name in state)

    def linear(self, x: Tensor, name: str) -> Tensor:
        weight = self.params[f"{name}.weight"]
        mask = self.masks.get(f"{name}.weight")
        y = x @ (weight if mask is None else weight * mask).T
        return y + self.params[f"{name}.bias"] if f"{name}.bias" in self.params else y

    def norm(self, x: Tensor, name: str) -> Tensor:
        gain, bias = self.params[f"{name}.weight"], self.params.get(f"{name}.bias")
        if "positions.weight" in self.params:
            return F.layer_norm(x, x.shape[-1:], gain, bias, self.eps)
        return x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt() * gain

    def turned(self, x: Tensor) -> Tensor:
        """[B, H, T, D]: features i and i + D / 2 are the plane that position t turns."""
        if "positions.weight" in self.params:
            return x
        half, times = x.shape[-1] // 2, torch.arange(x.shape[-2])
        angles = times[:, None] * self.theta ** (-torch.arange(half) / half)
        turns = torch.polar(torch.ones_like(angles), angles)
        plane = torch.complex(x[..., :half], x[..., half:]) * turns
        return torch.cat([plane.real, plane.imag], -1)

    def hidden_units(self, x: Tensor, name: str) -> Tensor:
        if f"{name}.gate.weight" in self.params:
            gate = self.linear(x, f"{name}.gate")
            return gate * gate.sigmoid() * self.linear(x, f"{name}.up")
        return F.gelu(self.linear(x, f"{name}.up"), approximate=self.gelu)

    def attention(self, x: Tensor, name: str) -> Tensor:
        batch, time, width = x.shape
        head_width = width // self.heads
        q, k, v = (
            self.linear(x, f"{name}.{kind}").view(batch, time, -1, head_width).transpose(1, 2)
            for kind in "qkv"
        )
        q, k = self.turned(q), self.turned(k)
        k, v = (y.repeat_interleave(self.heads // k.shape[1], dim=1) for y in (k, v))
        future = torch.ones(time, time, dtype=torch.bool).triu(1)
        scores = (q @ k.transpose(-1, -2) / head_width**0.5).masked_fill(future, float("-inf"))
        y = scores.softmax(-1) @ v
        return self.linear(y.transpose(1, 2).reshape(batch, time, width), f"{name}.o")

    def logits(self, tokens: Tensor) -> Tensor:
        embedding = self.params["embedding.weight"]
        x = embedding[tokens]
        if "positions.weight" in self.params:
            x = x + self.params["positions.weight"][: tokens.shape[1]]
        for i in range(self.layers):
            x = x + self.attention(self.norm(x, f"layers.{i}.norm1"), f"layers.{i}.attention")
            hidden = self.hidden_units(self.norm(x, f"layers.{i}.norm2"), f"layers.{i}.mlp")
            if self.gates:
                hidden = hidden * self.gates[f"layers.{i}.mlp"]
            self.hidden[i] = hidden.detach()
            x = x + self.linear(hidden, f"layers.{i}.mlp.down")
        return self.norm(x, "norm") @ self.params.get("head.weight", embedding).T

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean loss in nats over the positions that have a target (-1 = none)."""
        return F.cross_entropy(
            self.logits(tokens).flatten(0, 1), targets.flatten(), ignore_index=-1
        )
