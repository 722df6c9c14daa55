"""sparse-export: live weights and their indices as one safetensors file."""

import argparse
from pathlib import Path
from typing import Any

from sparsecl.conversions.common import CKPT_HELP, open_checkpoint, progress, size_text


def add_parser(subparsers: Any) -> None:
    """The command line of `sparse-export`."""
    parser = subparsers.add_parser(
        "sparse-export",
        help="live weights and their indices in one safetensors file",
        description="NAME.values and NAME.indices (flat, row-major) of every matrix on a topology, "
        "everything else as it is. sparsecl/checkpoint/sparse_file.py has a reader in numpy.",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help=CKPT_HELP)
    parser.add_argument("out", type=Path, metavar="OUT", help="new file, for example x.safetensors")


def run(args: argparse.Namespace) -> int:
    """Convert; the exit code."""
    from sparsecl.checkpoint.canonical import MASTER, num_bytes
    from sparsecl.checkpoint.sparse_file import export_sparse

    found, reader = open_checkpoint(args.checkpoint)
    masters = [(MASTER, name) for name in reader.manifest.parameters]
    with progress("sparse-export", num_bytes(reader, masters)) as advance:
        sizes = export_sparse(reader, args.out, advance=advance)
    share = sizes.live / sizes.cells if sizes.cells else 1.0
    ratio = sizes.num_bytes / sizes.dense_bytes
    print(
        f"wrote {args.out}: weights of {found.folder}\n"
        f"live weights   {sizes.live} of {sizes.cells} in {len(reader.topologies)} matrices on a "
        f"topology (density {share:.4g})\n"
        f"bytes          {size_text(sizes.num_bytes)}, {ratio:.3g} of the dense "
        f"model's {size_text(sizes.dense_bytes)}"
    )
    return 0
