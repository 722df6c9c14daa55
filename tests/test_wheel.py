"""A wheel by itself, in an environment that cannot see the checkout."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.events import HANG
from tests.experiments.fake_study import FakeArm, write_study

ROOT = Path(__file__).resolve().parent.parent
FILES = ("pyproject.toml", "README.md", "LICENSE")
FOLDERS = ("sparsecl", "launch", "tools", "ds_configs")


def call(*words: str | Path, cwd: Path, **more: str) -> str:
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    env |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    env |= more
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd, env=env, capture_output=True, text=True, timeout=HANG,
    )  # fmt: skip
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of an environment with the wheel, and this one's other packages."""
    root = tmp_path_factory.mktemp("wheel")
    for name in FOLDERS:  # a copy, because building writes into its source
        shutil.copytree(ROOT / name, root / "source" / name, ignore=shutil.ignore_patterns("*.so"))
    for name in FILES:
        shutil.copy(ROOT / name, root / "source" / name)
    pip = (sys.executable, "-m", "pip")
    build = ("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", root, ".")
    call(*pip, *build, cwd=root / "source")
    (wheel,) = root.glob("*.whl")
    call(sys.executable, "-m", "venv", "--without-pip", root / "venv", cwd=root)
    python = root / "venv" / "bin" / "python"
    call(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=root)
    (site,) = (root / "venv").glob("lib/python*/site-packages")
    # A folder named in a .pth file has its own .pth files left alone: the checkout stays unseen.
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    shutil.rmtree(root / "source")
    return root / "venv" / "bin"


def plain(name: str) -> str:
    return name.lower().replace("_", "-")


def test_whatever_is_imported_is_asked_for() -> None:
    """Else it is there by chance: because another package happens to need it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    asked = {plain(*re.findall(r"^[\w.-]+", words)) for each in lists for words in each}
    imported: set[str] = set()
    for path in (ROOT / "sparsecl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    brought_by = packages_distributions()  # an extra may not be installed: its own name then
    foreign = imported - sys.stdlib_module_names - {"sparsecl"}
    assert not {n for n in foreign if not asked & set(map(plain, brought_by.get(n, [n])))}


@pytest.mark.slow
def test_the_wheel_brings_its_kernels(installed: Path, tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("no compiler")
    code = (
        "from sparsecl.model import attention; from sparsecl.sparse import native;"
        "print(native.missing(), attention.missing())"
    )
    assert call(installed / "python", "-c", code, cwd=tmp_path) == "None None\n"


@pytest.mark.slow
def test_it_installs_without_a_compiler(tmp_path: Path) -> None:
    """csr is then what `auto` measures, and the run says so."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so"))
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path / name)
    build = ("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", "out", ".")
    call(sys.executable, "-m", "pip", *build, cwd=tmp_path, CC="false")
    (wheel,) = (tmp_path / "out").glob("*.whl")
    shutil.unpack_archive(wheel, tmp_path / "site", "zip")
    code = (
        "import torch; from sparsecl.sparse import auto, backends, native;"
        "print(native.__file__, auto.candidates(backends.DEFAULT, torch.device('cpu')));"
        "print(native.slow(native.missing()))"
    )
    said = call(sys.executable, "-c", code, cwd=tmp_path / "site")
    assert said.startswith(str(tmp_path)) and "['dense', 'csr']" in said
    assert "not built" in said and "auto takes csr" in said


@pytest.mark.slow
def test_the_command_works_without_a_checkout(installed: Path, tmp_path: Path) -> None:
    look = "import sparsecl; print(sparsecl.__file__)"
    where = call(installed / "python", "-c", look, cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)
    sparsecl = installed / "sparsecl"
    assert "prepare-data" in call(sparsecl, "--help", cwd=tmp_path)
    assert "name: demo" in call(sparsecl, "train", "--dry-run", cwd=tmp_path)
    words = ("sweep", "exp1_density.yaml", "--dry-run", "--seeds", "2")
    assert "9 arms x 2 seeds" in call(sparsecl, *words, cwd=tmp_path)
    study = write_study(tmp_path / "study", [FakeArm(name="dense"), FakeArm(name="sparse")])
    call(sparsecl, "report", study, cwd=tmp_path)
    assert (study / "report" / "report.html").is_file()
