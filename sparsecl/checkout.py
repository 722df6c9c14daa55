"""Where the files beside the package lie: configs to start from, and the scripts of launch/ and
tools/. Only a checkout has them (`pip install -e .` included); an installed wheel must be given
them by path."""

from pathlib import Path

from sparsecl.config_nodes import one_line
from sparsecl.errors import MissingInputError

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "launch" / "configs" / "demo.yaml"
ZERO2 = ROOT / "ds_configs" / "zero2.json"


def beside(path: Path, way_out: str) -> Path:
    """`path`, a file beside the package that nobody has named, so it may be missing.

    Raises:
        MissingInputError: it is; the line ends with the way out.
    """
    if not path.exists():
        raise MissingInputError(one_line(f"{path}: no such file; {way_out}"))
    return path
