"""Progressive networks with dense masks: a network for each phase, one loop over their blocks."""

import torch
import torch.nn.functional as F

from tests.distributed.references.run import ReferenceRun
from tests.reference import ReferenceGPT


class ReferenceColumns(ReferenceGPT):
    """Parameters of all columns; `open` is the one that gives the logits."""

    open = 0

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden: list[list[torch.Tensor]] = []
        for number in range(self.open + 1):
            at = f"columns.{number}." if number else ""
            embedding = self.params[f"{at}embedding.weight"]
            x = embedding[tokens] + self.params[f"{at}positions.weight"][: tokens.shape[1]]
            own = []
            for i in range(2):
                block = f"{at}layers.{i}"
                x = x + self.attention(self.norm(x, f"{block}.norm1"), f"{block}.attention")
                into = self.linear(self.norm(x, f"{block}.norm2"), f"{block}.mlp.up")
                heard = torch.zeros(())
                for place, other in enumerate(hidden):
                    lateral = f"{block}.mlp.lateral"
                    scaled = self.params[f"{lateral}.scale{place}"] * other[i].detach()
                    heard = heard + scaled @ self.params[f"{lateral}.down{place}"].T
                if hidden:
                    into = into + heard.relu() @ self.params[f"{block}.mlp.lateral.up"].T
                own.append(F.gelu(into))
                x = x + self.linear(own[-1], f"{block}.mlp.down")
            hidden.append(own)
        return self.norm(x, f"{at}norm") @ embedding.T

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], self.params[f"{name}.weight"], None, self.eps)

    def turned(self, x: torch.Tensor) -> torch.Tensor:
        return x


class ProgressiveReference(ReferenceRun):
    make_model = ReferenceColumns

    def is_mine(self, name: str) -> bool:
        number = int(name.split(".")[1]) if name.startswith("columns.") else 0
        return number == self.phase

    def phase_start(self) -> None:
        self.model.open = self.phase

    def after_backward(self) -> bool:
        self.before = {name: param.detach().clone() for name, param in self.params.items()}
        for name, param in self.params.items():
            if not self.is_mine(name):
                param.grad = torch.zeros_like(param)
        return True

    def after_update(self) -> None:
        for name, param in self.params.items():
            if not self.is_mine(name):
                param.copy_(self.before[name])
                for moment in ("exp_avg", "exp_avg_sq"):
                    self.optimizer.state[param][moment].zero_()
