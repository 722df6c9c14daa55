"""Live weights and where they lie, in one safetensors file that needs no library of ours.

Of a matrix on a topology the file holds `NAME.values`, fp32 [N], and `NAME.indices`, flat
row-major indices o * I + i in ascending order, int32 [N] (int64 where the matrix has 2^31 cells or
more). Every other parameter is there as it is, fp32, under its NAME. The header's metadata has
`sparse`: JSON, {NAME: [O, I]} of the matrices on a topology. A reader in numpy alone:

    import json

    import numpy as np

    def read_weights(path):
        raw = np.memmap(path, np.uint8, "r")
        start = 8 + int(raw[:8].view("<u8")[0])
        header, found = json.loads(raw[8:start].tobytes()), {}
        about, kinds = header.pop("__metadata__"), {"F32": "<f4", "I32": "<i4", "I64": "<i8"}
        for key, entry in header.items():
            data = raw[start:][slice(*entry["data_offsets"])]
            found[key] = data.view(kinds[entry["dtype"]]).reshape(entry["shape"])
        for name, shape in json.loads(about["sparse"]).items():
            whole = found.setdefault(name, np.zeros(shape, np.float32))
            np.put(whole, found.pop(f"{name}.indices"), found.pop(f"{name}.values"))
        return found
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from sparsecl.checkpoint.canonical import MASTER, Advance, TensorSource, live_mask, num_bytes
from sparsecl.checkpoint.new_output import new_file
from sparsecl.checkpoint.stream_file import Spec, TensorFileWriter
from sparsecl.errors import DataError


@dataclass(frozen=True)
class Sizes:
    """What was written, and what the dense model would have taken."""

    live: int
    """Live weights of the matrices on a topology."""

    cells: int
    """All weights of these matrices."""

    num_bytes: int
    """Bytes of the tensors in the file."""

    dense_bytes: int
    """Bytes of all parameters, dense, in fp32."""


def export_sparse(source: TensorSource, out: Path, *, advance: Advance | None = None) -> Sizes:
    """Write the masters of a checkpoint as the new file `out`; see the module for its form.

    Args:
        advance: called with the bytes done, `num_bytes` of the masters in all.

    Raises:
        DataError: if a parameter has no master.
        CannotCreateError: if `out` is there already or cannot be made.
        StorageError: if it cannot be written; nothing is left then.
    """
    specs = _specs(source)
    sparse = {name: list(source.manifest.parameters[name].shape) for name in source.topologies}
    about = {"format": "pt", "step": str(source.manifest.step), "sparse": json.dumps(sparse)}
    with new_file(out) as path, TensorFileWriter(path, specs, about) as writer:
        for name in source.manifest.parameters:
            _copy(source, name, writer, specs)
            if advance:
                advance(num_bytes(source, [(MASTER, name)]))
    topologies = source.topologies.values()
    return Sizes(
        live=sum(topology.num_live for topology in topologies),
        cells=sum(topology.num_cells for topology in topologies),
        num_bytes=sum(spec.num_bytes for spec in specs.values()),
        dense_bytes=num_bytes(source, [(MASTER, name) for name in source.manifest.parameters]),
    )


def _specs(source: TensorSource) -> dict[str, Spec]:
    specs = {}
    for name, entry in source.manifest.parameters.items():
        if not source.has(MASTER, name):
            raise DataError(f"the checkpoint holds no weights of {name}")
        if name in source.topologies:
            topology = source.topologies[name]
            small = topology.num_cells < 2**31
            specs[f"{name}.values"] = Spec(torch.float32, (topology.num_live,))
            specs[f"{name}.indices"] = Spec(
                torch.int32 if small else torch.int64, (topology.num_live,)
            )
        else:
            specs[name] = Spec(torch.float32, entry.shape)
    return specs


def _copy(
    source: TensorSource, name: str, writer: TensorFileWriter, specs: dict[str, Spec]
) -> None:
    """A function of its own, so that no two tensors are ever held."""
    master = source.read(MASTER, name)
    if name not in source.topologies:
        writer.write(name, master)
        return
    topology = source.topologies[name]
    writer.write(f"{name}.values", master.masked_select(live_mask(topology, -1, 0, 1)))
    indices = torch.from_numpy(topology.edges)
    writer.write(f"{name}.indices", indices.to(specs[f"{name}.indices"].dtype))
