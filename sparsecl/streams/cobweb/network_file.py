"""The state of a CobwebNN as a safetensors file: weights, Adam's moments, calls of `learn`."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from sparsecl.errors import DataError, MissingInputError
from sparsecl.files import atomic_open
from sparsecl.streams.cobweb.network import CobwebNetwork


def save_network(network: CobwebNetwork, path: Path) -> None:
    """Write the state, whole or not at all."""
    with atomic_open(path, "wb") as file:
        file.write(save({name: value.contiguous() for name, value in state_of(network).items()}))


def load_network(network: CobwebNetwork, path: Path) -> None:
    """Take over the state that a network of the same sizes has saved; it goes on as that one would.

    Raises:
        MissingInputError: there is no such file.
        DataError: it is not of such a network; nothing is changed then.
    """
    if not Path(path).is_file():
        raise MissingInputError(f"{path}: no such file")
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: no readable safetensors file ({error})") from None
    take_state(network, found, path)


def take_state(network: CobwebNetwork, found: dict[str, Tensor], path: Path) -> None:
    """Take over what `state_of` gave.

    Raises:
        DataError: it is not of such a network; nothing is changed then. `path` is where it was
            found.
    """
    expected = state_of(network)
    wrong = [
        name
        for name in sorted({*expected, *found})
        if name not in expected
        or name not in found
        or found[name].shape != expected[name].shape
        or found[name].dtype != expected[name].dtype
    ]
    if wrong:
        raise DataError(f"{path}: is of a network of other sizes: {wrong[0]} does not fit")
    weights = {name: found[f"model.{name}"] for name in network.state_dict()}
    network.load_state_dict(weights)
    network.trained = int(found["trained"])
    for index, parameter in enumerate(network.parameters()):
        network.optimizer.state[parameter] = {
            key: found[f"adam.{index}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")
        }


def state_of(network: CobwebNetwork) -> dict[str, Tensor]:
    """All that changes by training; moments of zero where there are none yet."""
    tensors = {f"model.{name}": value for name, value in network.state_dict().items()}
    tensors["trained"] = torch.tensor(network.trained)
    for index, parameter in enumerate(network.parameters()):
        state = network.optimizer.state.get(parameter, {})
        zero = torch.zeros_like(parameter)
        tensors[f"adam.{index}.step"] = state.get("step", torch.tensor(0.0))
        tensors[f"adam.{index}.exp_avg"] = state.get("exp_avg", zero)
        tensors[f"adam.{index}.exp_avg_sq"] = state.get("exp_avg_sq", zero.clone())
    return tensors
