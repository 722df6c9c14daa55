"""A GPT in one sitting: what sparsecl's model must agree with. One process, no splits, no hooks.

Weights are dense and multiplied by their mask in the forward pass; autograd does the rest.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ReferenceGPT:
    """Plain parameters under sparsecl's names."""

    def __init__(
        self,
        state: dict[str, Tensor],
        masks: dict[str, Tensor],
        heads: int,
        *,
        vocab_size: int | None = None,
    ) -> None:
        """Copy the state.

        Args:
            state: global tensors by parameter name (layers.0.attention.q.weight, ...).
            masks: bool, True = live, by parameter name; a matrix that is not named is dense.
            vocab_size: crop the embedding to the tokens in use, without its padding rows.
        """
        self.params = {name: nn.Parameter(value.detach().clone()) for name, value in state.items()}
        if vocab_size is not None:
            self.params["embedding.weight"] = nn.Parameter(
                state["embedding.weight"].detach()[:vocab_size].clone()
            )
        self.masks, self.heads = masks, heads
        self.hidden: dict[int, Tensor] = {}
        """What the GELU of each layer gave in the last pass."""

        self.layers = sum(name.endswith("attention.q.weight") for name in state)

    def linear(self, x: Tensor, name: str) -> Tensor:
        weight = self.params[f"{name}.weight"]
        mask = self.masks.get(f"{name}.weight")
        return x @ (weight if mask is None else weight * mask).T

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.params[f"{name}.weight"])

    def attention(self, x: Tensor, name: str) -> Tensor:
        batch, time, width = x.shape
        head_width = width // self.heads
        q, k, v = (
            self.linear(x, f"{name}.{kind}").view(batch, time, self.heads, -1).transpose(1, 2)
            for kind in "qkv"
        )
        future = torch.ones(time, time, dtype=torch.bool).triu(1)
        scores = (q @ k.transpose(-1, -2) / head_width**0.5).masked_fill(future, float("-inf"))
        y = scores.softmax(-1) @ v
        return self.linear(y.transpose(1, 2).reshape(batch, time, width), f"{name}.o")

    def logits(self, tokens: Tensor) -> Tensor:
        embedding = self.params["embedding.weight"]
        x = embedding[tokens] + self.params["positions.weight"][: tokens.shape[1]]
        for i in range(self.layers):
            x = x + self.attention(self.norm(x, f"layers.{i}.norm1"), f"layers.{i}.attention")
            hidden = F.gelu(self.linear(self.norm(x, f"layers.{i}.norm2"), f"layers.{i}.mlp.up"))
            self.hidden[i] = hidden.detach()
            x = x + self.linear(hidden, f"layers.{i}.mlp.down")
        return self.norm(x, "norm") @ embedding.T

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean loss in nats over the positions that have a target (-1 = none)."""
        return F.cross_entropy(
            self.logits(tokens).flatten(0, 1), targets.flatten(), ignore_index=-1
        )
