"""Where the files beside the package lie: configs, studies, and the script of a run.

In a checkout (`pip install -e .` included) they lie beside the package; a wheel puts them into
share/sparsecl of the environment.
"""

from importlib import metadata
from pathlib import Path

from sparsecl.config_nodes import one_line
from sparsecl.errors import MissingInputError

PACKAGE = Path(__file__).resolve().parent


def _root() -> Path:
    """The folder that has launch/, tools/ and ds_configs/."""
    if not (PACKAGE.parent / "launch" / "train.py").is_file():
        try:
            files = metadata.files("sparsecl") or ()
        except metadata.PackageNotFoundError:  # a copy of the folder alone
            files = ()
        for file in files:
            if file.as_posix().endswith("share/sparsecl/launch/train.py"):
                return Path(str(file.locate())).resolve().parents[1]
    return PACKAGE.parent


ROOT = _root()
CONFIGS, DS_CONFIGS = ROOT / "launch" / "configs", ROOT / "ds_configs"
STUDIES = ROOT / "launch" / "experiments"
STREAMS = ROOT / "launch" / "streams"
SMALL_STREAM = STREAMS / "small.yaml"
DEMO = CONFIGS / "demo.yaml"
TRAIN = ROOT / "launch" / "train.py"
ZERO1 = DS_CONFIGS / "zero1.json"


def config_file(text: str) -> Path:
    """The run config that a command line names."""
    return shipped(Path(text), CONFIGS)


def ds_file(text: str) -> Path:
    """The DeepSpeed JSON that a command line names."""
    return shipped(Path(text), DS_CONFIGS)


def study_file(text: str) -> Path:
    """The study that a command line names."""
    return shipped(Path(text), STUDIES)


def stream_file(text: str) -> Path:
    """The config of a stream that a command line names."""
    return shipped(Path(text), STREAMS)


def shipped(path: Path, folder: Path = ROOT) -> Path:
    """`path` if it is there; else the file of this name that comes with the package, if there is
    one: `exp1_density.yaml`, or as in a checkout `launch/experiments/exp1_density.yaml`."""
    if not path.is_absolute() and not path.exists():
        for ours in (folder / path, ROOT / path):
            if ours.is_file():
                return ours
    return path


def beside(path: Path, way_out: str) -> Path:
    """`path`, a file beside the package that nobody has named, so it may be missing.

    Raises:
        MissingInputError: it is; the line ends with the way out.
    """
    if not path.exists():
        raise MissingInputError(one_line(f"{path}: no such file; {way_out}"))
    return path
