"""ReDo on whole matrices: CBP's new units, chosen by how much they say."""

import torch

from tests.distributed.references.cbp import CbpReference


class RedoReference(CbpReference):
    name = "redo"

    def after_step(self) -> None:
        options = self.config.methods.redo
        self.moments = options.moments == "reset"
        for i in range(self.model.layers) if self.step % options.every == 0 else ():
            said = self.model.hidden[i].flatten(0, 1).abs().mean(0)
            fed = self.masks[f"layers.{i}.mlp.up.weight"].any(1)
            dormant = torch.nonzero((said <= options.tau * said.mean()) & fed).flatten().tolist()
            if dormant:
                self.replace(i, dormant)

    def forget(self, layer: int, unit: int) -> None:
        """There is nothing that it knows of a unit."""
