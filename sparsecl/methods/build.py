"""From the config to the methods of a run."""

from sparsecl.methods.base import Method, Methods
from sparsecl.methods.config import MethodsConfig
from sparsecl.methods.ewc import Ewc
from sparsecl.methods.replay import Replay
from sparsecl.methods.set import Set


def build_methods(config: MethodsConfig) -> Methods:
    """The methods whose block is in the config, in a fixed order."""
    methods: list[Method] = []
    if config.ewc is not None:
        methods.append(Ewc(config.ewc))
    if config.set is not None:
        methods.append(Set(config.set))
    if config.replay is not None:
        methods.append(Replay(config.replay))
    return Methods(methods)
