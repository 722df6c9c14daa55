"""Source `installed`: real text that comes with every installation, read without importing it.

    code      .py files of the Python standard library
    math      docstrings of SymPy, without their interactive sessions
    manual    docstrings of PyTorch, without their interactive sessions
    legal     licence files of this project's dependencies and of Python
    dialogue  interactive sessions in the docstrings of SymPy, SciPy, NumPy and PyTorch, as turns

The standard library's sessions are left out of dialogue, because code has them already. The text
changes with the installed versions; they are part of the key.
"""

import importlib.metadata
import importlib.util
import platform
import re
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sparsecl.data.config import DomainConfig
from sparsecl.data.sources import docstrings
from sparsecl.data.sources.reads import Reads, read_bytes
from sparsecl.data.sources.source import Source
from sparsecl.errors import MissingInputError

# Tests, generated tables, bundled copies: little of it reads like code that a person wrote.
_NOT_CODE = {
    "test", "tests", "idle_test", "idlelib", "turtledemo", "site-packages", "dist-packages",
    "__pycache__", "_bundled", "pydoc_data", "lib2to3", "encodings",
}  # fmt: skip
_LICENCE = re.compile(r"(licen[sc]e|copying|notice|copyright)[^/]*", re.IGNORECASE)
_ROOTS = (
    "datasets", "deepspeed", "matplotlib", "megatron-core", "pyarrow", "pyyaml", "safetensors",
    "scipy", "sentencepiece", "sympy", "tensorboard", "torch", "tqdm",
)  # fmt: skip
_NOT_TEXT = {".py", ".pyc", ".pyi", ".so", ".js", ".h", ".json"}


@dataclass(frozen=True)
class _Recipe:
    """Where a domain's text is.

    Attributes:
        required, optional: packages it is read from.
        read: folders of the packages that are there -> documents; notes the files.
    """

    read: Callable[[list[Path], Reads], Iterator[str]]
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


def open_source(domain: DomainConfig, *, seed: int, max_document_bytes: int) -> Source:
    """Find the packages of an installed domain and their versions.

    Raises:
        MissingInputError: if a package is not installed.
    """
    del seed, max_document_bytes  # the text is what it is, and each file fits in memory
    recipe = _RECIPES[domain.name]
    folders: list[Path] = []
    versions = {"python": platform.python_version()}
    for package in (*recipe.required, *recipe.optional):
        folder = _package_folder(package)
        if folder is not None:
            folders.append(folder)
            versions[package] = importlib.metadata.version(package)
        elif package in recipe.required:
            raise MissingInputError(
                f"domain {domain.name}: source installed reads the package {package}, which is "
                f"not installed; install it or take another source"
            )
    if domain.name == "legal":
        versions |= {name: found.version for name, found in _dependencies().items()}

    reads: Reads = {}

    def texts(split: str) -> Iterator[str]:
        return recipe.read(folders, reads) if split == "train" else iter(())

    key = {"source": "installed", "domain": domain.name, "versions": versions}
    return Source(key=key, texts=texts, reads=reads)


def _package_folder(package: str) -> Path | None:
    # For a top-level name find_spec only looks; it runs no code of the package.
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec else None
    return Path(next(iter(places))) if places else None


def _code(_: list[Path], reads: Reads) -> Iterator[str]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        generated = parts[0].startswith(("config-", "_sysconfigdata"))
        if not generated and not _NOT_CODE & set(parts):
            yield _read(path, reads)


def _prose(folders: list[Path], reads: Reads) -> Iterator[str]:
    yield from map(docstrings.prose, _docstrings(folders, reads))


def _dialogue(folders: list[Path], reads: Reads) -> Iterator[str]:
    yield from map(docstrings.dialogue, _docstrings(folders, reads))


def _docstrings(folders: list[Path], reads: Reads) -> Iterator[str]:
    for folder in folders:
        found, files = docstrings.docstrings(folder)
        reads.update(files)
        yield from found


def _legal(_: list[Path], reads: Reads) -> Iterator[str]:
    """Licences in the order of packages and paths; exact copies are dropped by the caller."""
    for distribution in _dependencies().values():
        for file in sorted(distribution.files or (), key=str):
            if _LICENCE.fullmatch(file.name) and file.suffix.lower() not in _NOT_TEXT:
                path = Path(str(distribution.locate_file(file)))
                if path.is_file():
                    yield _read(path, reads)
    own = Path(sysconfig.get_path("stdlib")) / "LICENSE.txt"
    if own.is_file():
        yield _read(own, reads)


def _dependencies() -> dict[str, importlib.metadata.Distribution]:
    """Installed packages that _ROOTS need, directly or not, in the order of their names.

    Not all that is installed: the text would change with every unrelated package, and even with
    what was imported before, because setuptools adds its vendored packages to the search path.
    Requirements with a marker (extras, platforms) are left out for the same reason.
    """
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting: list[str] = list(_ROOTS)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        for requirement in found[name].requires or ():
            match = re.match(r"[A-Za-z0-9_.-]+", requirement)
            if match and ";" not in requirement:
                waiting.append(re.sub(r"[-_.]+", "-", match[0]).lower())
    return dict(sorted(found.items()))


def _read(path: Path, reads: Reads) -> str:
    # Old licence files are in Latin-1; a replaced letter in a name does no harm here.
    return read_bytes(path, reads).decode(errors="replace").replace("\0", "\ufffd")


_RECIPES: dict[str, _Recipe] = {
    "code": _Recipe(read=_code),
    "math": _Recipe(read=_prose, required=("sympy",)),
    "manual": _Recipe(read=_prose, required=("torch",)),
    "legal": _Recipe(read=_legal),
    "dialogue": _Recipe(read=_dialogue, required=("sympy", "torch"), optional=("numpy", "scipy")),
}
