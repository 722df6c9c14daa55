"""The state of a pack in one file of tensors, and what it is in `latest.json`, published last.

A kill at any moment leaves the state before or the one after. Tensors are safetensors; nothing here
can hold code.
"""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from sparsecl.config_nodes import one_line
from sparsecl.errors import DataError
from sparsecl.files import atomic_open, sha256_file, write_json
from sparsecl.methods.several import Methods
from sparsecl.opening import read_plain
from sparsecl.optim.slices import Slices
from sparsecl.seal import Extent
from sparsecl.streams.position import Position

LATEST = "latest.json"
KEYS = {"file", "sha256", "config", "position", "methods", "records", "seconds"}

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Saved:
    """What `latest.json` says."""

    path: Path
    value: Mapping[str, Any]
    tensors: Tensors

    @property
    def config(self) -> Any:
        return self.value["config"]

    @property
    def pack(self) -> int:
        """Which pack it is of; not checked yet."""
        found = self.value["position"]
        pack = found.get("pack") if isinstance(found, dict) else None
        if type(pack) is not int or pack < 0:
            raise self.wrong(f"position.pack: {pack!r:.40} is no pack")
        return pack

    @property
    def records(self) -> Extent:
        """What scalars.jsonl held."""
        found = self.value["records"]
        try:
            extent = Extent(**found)
        except TypeError:
            extent = Extent(-1, "")
        if type(extent.num_bytes) is not int or extent.num_bytes < 0:
            raise self.wrong("records: is no size and sha256")
        return extent

    def wrong(self, why: object) -> DataError:
        """The error of a checkpoint that cannot be true."""
        way_out = "Restore the folder from a copy, or start in another --run_dir."
        return DataError(one_line(f"{self.path}: {why}. {way_out}"))


def gather(slices: Slices, methods: Methods) -> tuple[Tensors, Mapping[str, Any]]:
    """All tensors of the state by key, and the values of methods."""
    found: Tensors = {}
    for item in slices:
        found[f"weight/{item.name}"] = item.param.detach()
        for key, value in slices.optimizer.state.get(item.stepped, {}).items():
            if torch.is_tensor(value):
                found[f"optimizer.{key}/{item.name}"] = value
    tensors, values = methods.state_dict()
    for key, parts in tensors.items():
        found |= {f"method.{key}/{name}": value for name, value in parts.items()}
    found |= {f"array/{key}": value for key, value in methods.arrays().items()}
    return {key: value.contiguous().cpu() for key, value in found.items()}, values


@torch.no_grad()
def put_back(saved: Saved, slices: Slices, methods: Methods) -> None:
    """Set weights, the optimizer's state and that of methods.

    Raises:
        DataError: something is missing, of another shape, or not finite.
    """
    params, left = slices.parameters(), dict(saved.tensors)
    states: dict[str, Tensors] = {}
    for name, param in params.items():
        value = left.pop(f"weight/{name}", None)
        if value is None or value.shape != param.shape or value.dtype != param.dtype:
            raise saved.wrong(f"weight/{name}: is missing or of another shape")
        param.copy_(value)
    for key, value in left.items():
        kind, _, name = key.partition("/")
        if kind != "array" and name not in params:
            raise saved.wrong(f"{key}: is of no parameter")
        if not bool(value.isfinite().all()):
            raise saved.wrong(f"{key}: is not finite")
        if kind.startswith("optimizer."):
            if value.dim() and value.shape != params[name].shape:
                raise saved.wrong(f"{key}: is of another shape")
            device = params[name].device if value.dim() else "cpu"
            state = slices.optimizer.state[params[name]]
            state[kind.removeprefix("optimizer.")] = value.to(device)
        elif kind.startswith("method."):
            item = slices.find(name)
            if item is None or value.shape != item.master.shape:
                raise saved.wrong(f"{key}: is of another shape")
            part = states.setdefault(kind.removeprefix("method."), {})
            part[name] = value.to(item.master.device)
        elif kind != "array":
            raise saved.wrong(f"{key}: is not known")
    arrays = {key.removeprefix("array/"): v for key, v in left.items() if key.startswith("array/")}
    values = saved.value["methods"]
    try:
        methods.check_state(states, values)
        methods.check_arrays(arrays, values)
    except (ValueError, TypeError, AttributeError) as error:
        raise saved.wrong(f"methods.{error}") from None
    methods.load_state_dict(states, values)
    methods.load_arrays(arrays)


def save(
    folder: Path,
    position: Position,
    state: tuple[Tensors, Mapping[str, Any]],
    *,
    config: Any,
    records: Extent,
    seconds: float,
) -> None:
    """Publish the state, then remove the one before.

    Raises:
        CannotCreateError, StorageError: see files.atomic_open.
    """
    tensors, values = state
    path = folder / f"pack{position.pack}_task{position.task}_step{position.step}.safetensors"
    data = safetensors.torch.save(tensors)
    with atomic_open(path, "wb") as file:
        file.write(data)
    value = {
        "file": path.name,
        "sha256": sha256_file(path),
        "config": config,
        "position": position.as_json(),
        "methods": values,
        "records": {"num_bytes": records.num_bytes, "sha256": records.sha256},
        "seconds": seconds,
    }
    write_json(folder / LATEST, value)
    for old in folder.glob("*.safetensors"):
        if old.name != path.name:
            with contextlib.suppress(OSError):
                old.unlink()


def load(folder: Path) -> Saved | None:
    """The newest state; None if there is none.

    Raises:
        DataError: it is not what was written.
    """
    path = folder / LATEST
    try:
        value = json.loads(read_plain(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise Saved(path, {}, {}).wrong(f"cannot be read ({error})") from None
    saved = Saved(path, value if isinstance(value, dict) else {}, {})
    if set(saved.value) != KEYS:
        raise saved.wrong(f"must have {', '.join(sorted(KEYS))}")
    name = saved.value["file"]
    if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
        raise saved.wrong(f"file: {name!r:.40} is no name of a file")
    if type(saved.value["seconds"]) not in (int, float) or saved.value["seconds"] < 0:
        raise saved.wrong("seconds: is no time")
    try:
        if sha256_file(folder / name) != saved.value["sha256"]:
            raise saved.wrong(f"{name} is not what was written (sha256 differs)")
        tensors = safetensors.torch.load(read_plain(folder / name))
    except OSError as error:
        raise saved.wrong(f"{name} cannot be read ({error.strerror})") from None
    except safetensors.SafetensorError as error:
        raise saved.wrong(f"{name} is no file of tensors ({error})") from None
    return Saved(folder / name, value, tensors)
