"""From the config to the methods of a run."""

from sparsecl.methods.adapters.lora import Lora
from sparsecl.methods.adapters.memory import Memory
from sparsecl.methods.adapters.n_lora import NLora
from sparsecl.methods.adapters.o_lora import OLora
from sparsecl.methods.adapters.osft import Osft
from sparsecl.methods.base import Method, Order
from sparsecl.methods.brain.hst import Hst
from sparsecl.methods.brain.sleep_replay import SleepReplay
from sparsecl.methods.brain.wscl import Wscl
from sparsecl.methods.brain.xdg import Xdg
from sparsecl.methods.cl.agem import Agem
from sparsecl.methods.cl.derpp import Derpp
from sparsecl.methods.cl.ewc import Ewc
from sparsecl.methods.cl.gem import Gem
from sparsecl.methods.cl.lwf import Lwf
from sparsecl.methods.cl.mas import Mas
from sparsecl.methods.cl.packnet import PackNet
from sparsecl.methods.cl.progressive import Progressive
from sparsecl.methods.cl.replay import Replay
from sparsecl.methods.cl.self_replay import SelfReplay
from sparsecl.methods.cl.si import Si
from sparsecl.methods.config import MethodsConfig
from sparsecl.methods.dst.cht import Cht
from sparsecl.methods.dst.chts import Chts
from sparsecl.methods.dst.deep_r import DeepR
from sparsecl.methods.dst.granet import Granet
from sparsecl.methods.dst.rigl import Rigl
from sparsecl.methods.dst.set import Set
from sparsecl.methods.dst.snfs import Snfs
from sparsecl.methods.plasticity.cbp import Cbp
from sparsecl.methods.plasticity.dropout import Dropout
from sparsecl.methods.plasticity.l1 import L1
from sparsecl.methods.plasticity.l2 import L2
from sparsecl.methods.plasticity.l2_init import L2Init
from sparsecl.methods.plasticity.redo import Redo
from sparsecl.methods.plasticity.shrink_perturb import ShrinkPerturb
from sparsecl.methods.plasticity.upgd import Upgd
from sparsecl.methods.several import Methods
from sparsecl.methods.sparse_cl.afaf import Afaf
from sparsecl.methods.sparse_cl.dst_cl import DstCl
from sparsecl.methods.sparse_cl.sparcl import Sparcl

_CLASSES: tuple[type[Method], ...] = (
    Agem,
    Derpp,
    Ewc,
    Gem,
    Lwf,
    Si,
    Mas,
    Lora,
    OLora,
    NLora,
    Osft,
    Memory,
    PackNet,
    Progressive,
    Replay,
    SelfReplay,
    Rigl,
    Set,
    Snfs,
    Granet,
    DeepR,
    Cht,
    Chts,
    Afaf,
    DstCl,
    Sparcl,
    Xdg,
    SleepReplay,
    Hst,
    Wscl,
    Cbp,
    Redo,
    ShrinkPerturb,
    Upgd,
    Dropout,
    L1,
    L2,
    L2Init,
)
METHODS: dict[str, type[Method]] = {method.name: method for method in _CLASSES}
"""By the name of a method's block in `MethodsConfig`."""


def build_methods(config: MethodsConfig) -> Methods:
    """The methods whose block is in the config.

    Raises:
        ValueError: two of them project gradients.
    """
    methods = [METHODS[name](block) for name, block in config.used().items()]
    projecting = [method.name for method in methods if method.order == Order.PROJECT]
    if len(projecting) > 1:
        raise ValueError(f"methods: {' and '.join(projecting)} both project gradients; take one")
    return Methods(methods, rewires=config.rewires)
