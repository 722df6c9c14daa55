"""A guard for an engine of DeepSpeed, by what guards our own runs."""

from typing import Any

from sparsecl import dist
from sparsecl.library.audit import Counts, Guard
from sparsecl.library.masks import checked_layers
from sparsecl.optim.masking import MaskGuard
from sparsecl.optim.moving import clear
from sparsecl.optim.slices import Slices


class EngineGuard(Guard):
    """For DeepSpeed: masters, moments and shards, wherever the ZeRO stage keeps them."""

    def __init__(self, engine: Any) -> None:
        dead = {}
        names = {id(param): name for name, param in engine.module.named_parameters()}
        for _, layer, mask in checked_layers(engine.module):
            dead[names[id(layer.weight)]] = mask.whole(dist.device())
        slices = Slices(engine)
        for name, where in dead.items():
            clear(slices, name, where, ())
        self._guard = MaskGuard(slices, dead)

    def close(self) -> None:
        self._guard.close()

    def counts(self) -> Counts:
        self._guard.audit_gradients()
        return self._guard.counts()
