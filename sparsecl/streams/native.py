"""Many steps of networks in our own C (native.c): one network after the other, so that it stays in
the cache, and without a way from operation to operation.

It takes steps of batch 1 of multilayer perceptrons with ReLU units, on the CPU, under SGD, Adam or
AdamW, and of methods that say what their hooks come to (methods/many_steps.py). For all else, and
for steps at which a method must be called, `Steps.train` makes no step, and the loop makes one as
it does without this file. Both do the same but for the rounding of sums.

The C is compiled when the package is installed; without a compiler the package does without.
"""

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsecl.extension import load_extension
from sparsecl.methods.many_steps import Gate, ManySteps, Watch
from sparsecl.methods.several import Methods
from sparsecl.streams.activations import ACTIVATIONS
from sparsecl.streams.context import StreamContext
from sparsecl.streams.models import Networks
from sparsecl.streams.noise import BLOCK, NoiseStream, half_values

KINDS = {torch.optim.SGD: 0, torch.optim.Adam: 1, torch.optim.AdamW: 2}
MOMENTS = {0: ("momentum_buffer",), 1: ("exp_avg", "exp_avg_sq"), 2: ("exp_avg", "exp_avg_sq")}
PULLS = {"square": "pull", "sign": "sign", "soft": "soft"}
MEASURES = ("one", "size", "distance")
POINTER, INT, FLOAT, DOUBLE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_double


def _fields(**given: Any) -> list[tuple[str, Any]]:
    """Names that share a type, in order."""
    return [(name, kind) for names, kind in given.items() for name in names.split("__")]


class Part(ctypes.Structure):
    _fields_ = _fields(
        value__keep__first__second__utility__start=POINTER, pull__sign__soft__shrink__sigma=FLOAT
    )


class LayerOf(ctypes.Structure):
    _fields_ = _fields(
        inputs__outputs=INT, weight__bias=Part, h__delta__age__trace__mean__due=POINTER, num_due=INT
    )


class Net(ctypes.Structure):
    _fields_ = _fields(
        num_layers=INT,
        layers__row__drawn=POINTER,
        kind=INT,
        lr__momentum__decay__beta1__beta2__eps__updates__unit_decay__rate=DOUBLE,
        maturity__of_h__weighed__adaptable=INT,
        gate_beta__gate_age__gate_sigma=DOUBLE,
        protecting__by_code__rows_left__rows=INT,
        random=ctypes.c_uint64 * 4,
        states__table=POINTER,
    )


class Steps:
    """Of the networks of a pack."""

    def __init__(self, model: Networks, context: StreamContext, methods: Methods) -> None:
        """`library()` is there, and `takes` the model."""
        self.model, self.context, self.methods = model, context, methods
        layers: list[Any] = list(model.layers)
        sizes = [layer.shape.out_features for layer in layers]
        widest = max([*sizes, layers[0].shape.in_features])
        self._room = torch.zeros(2 * sum(sizes) + 3 * widest)
        outputs = list(self._room[: 2 * sum(sizes)].split([*sizes, *sizes]))
        self._outputs = list(zip(outputs[: len(sizes)], outputs[len(sizes) :], strict=True))
        self._rows = self._room[2 * sum(sizes) :].split([2 * widest, widest])
        half = half_values()
        self._table = np.concatenate([half, half])

    def train(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor] | None:
        """As many steps as can be made before a method must be called. Local.

        Args:
            x: [N, steps, 1, inputs], for the steps from now on; y: int64 [N, steps, 1].

        Returns:
            Losses in nats of the k steps made, fp32 [N, k], and how many answers were right, int64
            [N]. None: the next step must be made otherwise.
        """
        terms = self._terms()
        if terms is None:
            return None
        num = min([x.shape[1], *(t.idle for t in terms if t.idle is not None)])
        if num == 0:
            return None
        position, first = self.context.position, self.context.position.step
        losses, correct = torch.empty(len(x), num), torch.zeros(len(x), dtype=torch.int64)
        for network in range(len(x)):
            net, layers, kept = self._net(network, terms, num)
            done = 0
            while done < num:
                done += _library().sparsecl_steps(
                    ctypes.byref(net),
                    *_pointers(x[network, done:], y[network, done:]),
                    INT(num - done),
                    *_pointers(losses[network, done:], correct[network:]),
                )
                position.step = first + done
                self._replace(layers, terms, network)
            position.step = first
            del kept
        for item in self.context.slices:
            state = self.context.slices.optimizer.state.get(item.stepped, {})
            if "step" in state:
                state["step"] += num
        for method in self.methods.methods:
            method.made_steps(num)
        position.step = first + num
        return losses, correct

    def _terms(self) -> list[ManySteps] | None:
        """Of all methods; None if one of them must be called, or the optimizer has yet to begin."""
        found = [method.many_steps(self.context.own()) for method in self.methods.methods]
        terms = [term for term in found if term is not None]
        if len(terms) < len(found) or self.context.guard.holds:
            return None
        for name in ("pull", "watch"):
            if sum(getattr(term, name) is not None for term in terms) > 1:
                return None
        if sum(_moves(term) for term in terms) > 1:
            return None
        wanted, _ = self._moments()
        states = self.context.slices.optimizer.state
        items = list(self.context.slices)
        if any(states.get(i.stepped, {}).get(key) is None for i in items for key in wanted):
            return None
        return terms

    def _moments(self) -> tuple[tuple[str, ...], Any]:
        """Names in the optimizer's state, and its options."""
        optimizer = self.context.slices.optimizer
        (group,) = optimizer.param_groups
        kind = KINDS[type(optimizer)]
        return () if kind == 0 and not group["momentum"] else MOMENTS[kind], group

    def _net(self, network: int, terms: Sequence[ManySteps], num: int) -> tuple[Net, Any, Any]:
        """A network and what is done at each step; the last one keeps memory that it points to."""
        names, group = self._moments()
        context, model = self.context, self.model
        layers = (LayerOf * len(model.layers))()
        net = Net(num_layers=len(layers), layers=ctypes.addressof(layers))
        net.kind = KINDS[type(context.slices.optimizer)]
        net.lr, net.decay = group["lr"], group["weight_decay"]
        net.row, net.drawn = _pointers(*self._rows)
        net.momentum, net.eps = group.get("momentum", 0.0), group.get("eps", 0.0)
        net.beta1, net.beta2 = group.get("betas", (0.0, 0.0))
        net.updates = context.slices.num_updates(next(iter(context.slices)))
        for index, layer in enumerate(list[Any](model.layers)):
            at = layers[index]
            at.inputs, at.outputs = layer.shape.in_features, layer.shape.out_features
            at.h, at.delta = _pointers(*self._outputs[index])
            for part, kind in ((at.weight, "weight"), (at.bias, "bias")):
                self._part(part, f"{layer.shape.name}.{kind}", network, terms, names)
            if layer.keep is not None:
                at.weight.keep = layer.keep[network].data_ptr()
        kept = self._noise(net, network, terms, num)
        for term in terms:
            if term.gate is not None:
                _gate(net, term.gate)
            if term.watch is not None:
                self._watch(net, layers, term.watch, network)
        return net, layers, kept

    def _part(
        self, part: Part, name: str, network: int, terms: Sequence[ManySteps], names: Sequence[str]
    ) -> None:
        item: Any = self.context.slices.find(name)
        state = self.context.slices.optimizer.state.get(item.stepped, {})
        matrix = len(item.matrix_shape) >= 2
        part.value, part.shrink = _at(item.master, network), 1.0
        for field, key in zip(("first", "second"), names, strict=False):
            setattr(part, field, _at(state[key], network))
        for term in terms:
            pull, shake, gate = term.pull, term.shake, term.gate
            if pull is not None and (matrix or pull.vectors):
                rate = self.context.slices.lr(item) if pull.form == "soft" else 1.0
                setattr(part, PULLS[pull.form], rate * pull.strength)
                part.start = _at(pull.start[name], network) if pull.start else None
            if shake is not None and (matrix or shake.vectors):
                rate = self.context.slices.lr(item) * shake.shrink
                part.shrink, part.sigma = 1.0 - rate, shake.sigma
            if gate is not None and name in gate.utility:
                part.utility = _at(gate.utility[name], network)

    def _noise(self, net: Net, network: int, terms: Sequence[ManySteps], num: int) -> Any:
        """The noise of the steps to come, if there is any. Returns its states, which are kept."""
        found = [drawn for term in terms if (drawn := term.shake or term.gate) is not None]
        if not found or not found[0].sigma:
            return None
        step = self.context.progress.step
        stream: NoiseStream = self.context.noise_stream(found[0].name)
        states = stream.states(network, step, num)
        net.rows, net.rows_left = BLOCK, BLOCK - step % BLOCK
        net.random[:] = states[0].tolist()
        net.states, net.table = states[1:].ctypes.data, self._table.ctypes.data
        return states

    def _watch(self, net: Net, layers: Any, watch: Watch, network: int) -> None:
        net.unit_decay, net.rate, net.maturity = watch.decay, watch.rate, watch.maturity
        net.of_h, net.weighed = MEASURES.index(watch.of), watch.weighed
        net.adaptable = watch.adaptable
        for index, layer in enumerate(list[Any](self.model.layers)[:-1]):
            traces, at = watch.traces[layer.shape.name], layers[index]
            at.age = traces.age[network].ctypes.data
            at.due = traces.due[network:].ctypes.data
            at.trace, at.mean = _at(traces.utility, network), _at(traces.mean, network)

    def _replace(self, layers: Any, terms: Sequence[ManySteps], network: int) -> None:
        for term in terms:
            if term.watch is not None:
                for index, layer in enumerate(list[Any](self.model.layers)[:-1]):
                    if layers[index].num_due:
                        term.watch.replace(layer.shape.name, network, layers[index].num_due)


def _moves(term: ManySteps) -> bool:
    """It moves weights after the optimizer; in which order two do is not said."""
    soft = term.pull is not None and term.pull.form == "soft"
    return soft or term.shake is not None or term.gate is not None


def _gate(net: Net, gate: Gate) -> None:
    net.gate_beta, net.gate_age, net.gate_sigma = gate.beta, gate.count, gate.sigma
    net.protecting, net.by_code = gate.protecting, gate.uncorrected


def _at(tensor: Tensor, network: int) -> int:
    """The address of a network's part."""
    part = tensor.detach()[network]
    assert part.is_contiguous() and part.dtype == torch.float32, part.dtype
    return part.data_ptr()


def _pointers(*tensors: Tensor) -> list[Any]:
    assert all(tensor.is_contiguous() and tensor.device.type == "cpu" for tensor in tensors)
    return [POINTER(tensor.data_ptr()) for tensor in tensors]


def takes(model: Networks, optimizer: torch.optim.Optimizer, batch: int) -> bool:
    """Steps of these networks can be made here."""
    layers: list[Any] = list(model.layers)
    if batch != 1 or _library() is None or not model.networks or not model.is_plain:
        return False
    if type(optimizer) not in KINDS or any(p.device.type != "cpu" for p in model.parameters()):
        return False
    return all(layer.activation is ACTIVATIONS["relu"] for layer in layers[:-1])


@functools.cache
def _library() -> Any:
    """None: it was not built, or for another machine."""
    library = load_extension(Path(__file__).with_name("_native"), ("sparsecl_steps",))
    if library is not None:
        library.sparsecl_steps.restype = INT
    return library
