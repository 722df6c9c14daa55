"""Who may import whom. The table is data; every import in sparsecl/ is checked against it.

Imports are read from the syntax tree, wherever they stand: inside functions, under TYPE_CHECKING,
and as constant strings given to importlib. A cycle that only a type checker sees is a cycle.
"""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import sparsecl

ROOT = Path(__file__).resolve().parents[1]

# Floor 0: single files. They may use each other (everybody raises UserError), without cycles.
GROUND = (
    "allocator",
    "bounds",
    "checkout",
    "command",
    "config",
    "config_kinds",
    "config_nodes",
    "dist",
    "errors",
    "extension",
    "faults",
    "files",
    "locks",
    "log",
    "meeting",
    "opening",
    "place",
    "progress",
    "seal",
    "seeding",
    "signals",
    "tensor_board",
    "wandb_run",
    "watchdog",
)

# part -> (floor, parts it may import besides itself and the ground floor)
FLOORS: dict[str, tuple[int, tuple[str, ...]]] = {
    **{name: (0, ()) for name in GROUND},
    "topology": (1, ()),
    "metrics": (1, ()),
    "data": (1, ()),
    "sparse": (2, ("topology",)),
    "optim": (2, ("topology",)),
    "model": (3, ("sparse", "topology", "optim.deepspeed")),
    "methods": (4, ("topology", "metrics", "data", "sparse", "optim")),
    "checkpoint": (4, ("topology", "metrics", "data", "sparse", "optim", "model")),
    "engine": (
        5,
        ("topology", "metrics", "data", "sparse", "optim", "model", "methods", "checkpoint"),
    ),
    "streams": (5, ("topology", "metrics", "sparse", "optim", "methods")),
    "analysis": (
        5,
        ("topology", "metrics", "data", "sparse", "optim", "model", "methods", "checkpoint"),
    ),
    "experiments": (
        6,
        (
            "engine.run_config",
            "methods.facts",
            "analysis",
            "metrics",
            "streams.config",
            "streams.records",
        ),
    ),
    "conversions": (6, ("topology", "data", "model", "checkpoint", "engine")),
    "benchmarks": (
        6,
        ("topology", "sparse", "optim", "model", "methods", "checkpoint", "engine"),
    ),
    "library": (
        7,
        (
            "topology",
            "metrics",
            "optim",
            "model",
            "checkpoint",
            "engine",
            "analysis",
            "experiments",
            "conversions",
        ),
    ),
    "planning": (7, ("topology", "metrics", "data", "model", "engine", "experiments")),
    "__main__": (9, ("programs",)),
    "programs": (
        8,
        (
            "topology",
            "metrics",
            "data",
            "model",
            "checkpoint",
            "engine",
            "analysis",
            "experiments",
            "conversions",
            "benchmarks",
            "planning",
            "streams",
        ),
    ),
}

# part -> its folder -> other folders of the part that it may import. Files of the part beside its
# folders may use all of them.
FOLDERS: dict[str, dict[str, tuple[str, ...]]] = {
    "engine": {
        "deepspeed": (),
        "observe": ("deepspeed",),
        "resume": ("deepspeed", "observe"),
        "loop": ("deepspeed", "observe", "resume"),
    },
    "experiments": {
        "study": (),
        "findings": ("study",),
        "running": ("study", "findings"),
        "plots": ("study", "findings"),
        "report": ("study", "findings", "plots"),
    },
}

# Third party -> number of files of sparsecl/ that may import it.
DOORS = {"deepspeed": 3, "megatron": 3, "datasets": 1}
# Third party -> the only folders and files of sparsecl/ that may import it.
ROOMS = {"matplotlib": ("sparsecl.experiments.plots", "sparsecl.benchmarks.plot")}
# Of megatron only the core: the training loop is ours.
FORBIDDEN = ("megatron.training", "megatron.legacy", "deepspeed.compression")
# What DeepSpeed's interface does not promise, and the only folder that may know it.
PRIVATE = frozenset(
    """
    ds_id ds_tensor ds_shape ds_numel _hp_mapping _index_in_param_group get_param_id grad_position
    averaged_gradients norm_for_param_grads basic_optimizer loss_scale_config loss_scaler cur_scale
    fp16_groups fp32_groups fp32_groups_flat fp32_groups_flat_partition fp32_groups_gradients
    fp32_groups_gradient_dict fp32_partitioned_groups_flat single_partition_of_fp32_groups
    round_robin_bit16_groups round_robin_bit16_offsets micro_steps
    """.split()
)
PRIVATE_ROOM = "sparsecl/optim/deepspeed"
ASKING = ("getattr", "hasattr", "setattr")
WITHOUT_TORCH = ("metrics", "experiments")  # figures can be redrawn on any laptop
SCRIPTS = ("launch", "tools", "tests")  # the top floor: nobody imports a script
MAX_SCRIPT_LINES = 30  # a script finds the package and starts one of sparsecl/programs/
MAX_FILE_LINES, MAX_FUNCTION_LINES = 500, 100


@dataclass(frozen=True)
class Source:
    """One parsed file of sparsecl/; `imports` = (line, absolute dotted name)."""

    path: Path
    module: str
    imports: tuple[tuple[int, str], ...]

    @property
    def part(self) -> str:
        """First name below sparsecl; "" for the package itself."""
        return (self.module.split(".") + [""])[1]


def read_sources(root: Path) -> dict[str, Source]:
    """All files of root/sparsecl by module name. An import of a name in a module counts as the
    module, unless that name is itself a file."""
    modules = {}
    for path in sorted((root / "sparsecl").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    sources = {}
    for module, path in modules.items():
        tree = ast.parse(path.read_text(), str(path))
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        names = imported_names(tree, package)
        # One statement that takes ten names from a file is one import of that file.
        found = dict.fromkeys((line, resolve(name, modules)) for line, name in names)
        sources[module] = Source(path.relative_to(root), module, tuple(found))
    return sources


def imported_names(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import; `from a import b` yields a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")
                above = above[: len(above) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            function = ast.unparse(node.func)
            first = node.args[0]
            if function in ("importlib.import_module", "import_module", "__import__"):
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    yield node.lineno, first.value


def resolve(name: str, modules: dict[str, Path]) -> str:
    """The file that an import of ours reaches; other names are returned unchanged."""
    if name.split(".")[0] != "sparsecl":
        return name
    while name not in modules and "." in name:
        name = name.rpartition(".")[0]
    return name


def check_floors(sources: dict[str, Source]) -> list[str]:
    """Imports between parts that the table does not allow."""
    problems = []
    for source in sources.values():
        if source.part and source.part not in FLOORS:
            problems.append(f"{source.path}: part {source.part} has no floor")
            continue
        for line, name in source.imports:
            top = name.split(".")[0]
            if top in SCRIPTS:
                problems.append(f"{source.path}:{line}: imports the script folder {top}")
            elif top == "sparsecl" and not allowed(source.part, name):
                problems.append(f"{source.path}:{line}: {source.part or 'sparsecl'} -> {name}")
    return problems


def check_folders(sources: dict[str, Source]) -> list[str]:
    """Imports between the folders of a part that the table does not allow."""
    problems = []
    for source in sources.values():
        table = FOLDERS.get(source.part, {})
        folder = (source.module.split(".") + ["", ""])[2]
        if folder not in table:
            continue
        for line, name in source.imports:
            top, part, other, *_ = [*name.split("."), "", "", ""]
            mine = (top, part) == ("sparsecl", source.part) and other in table
            if mine and other not in (folder, *table[folder]):
                problems.append(f"{source.path}:{line}: {source.part}/{folder} -> {name}")
    return problems


def allowed(part: str, name: str) -> bool:
    """May a file of `part` import the module `name` of ours?"""
    target = name.removeprefix("sparsecl").removeprefix(".")
    if not part:
        return False  # `import sparsecl` must stay free
    if not target:
        return True  # the package itself imports nothing
    if target.split(".")[0] in (part, *GROUND):
        return True
    return any(target == free or target.startswith(f"{free}.") for free in FLOORS[part][1])


def check_cycles(sources: dict[str, Source]) -> list[str]:
    """One message for each circle of files, found by depth-first search."""
    problems: list[str] = []
    state: dict[str, str] = {}

    def visit(module: str, trail: list[str]) -> None:
        state[module] = "open"
        for _, name in sources[module].imports:
            if name == module or name not in sources:
                continue
            if state.get(name) == "open":
                circle = [*trail[trail.index(name) :], name]
                problems.append("import cycle: " + " -> ".join(circle))
            elif name not in state:
                visit(name, [*trail, name])
        state[module] = "done"

    for module in sources:
        if module not in state:
            visit(module, [module])
    return problems


def check_doors(sources: dict[str, Source]) -> list[str]:
    """Third parties that come in through too many files, or where they must not."""
    problems = []
    for package, limit in DOORS.items():
        users = [
            str(source.path)
            for source in sources.values()
            if any(name.split(".")[0] == package for _, name in source.imports)
        ]
        if len(users) > limit:
            problems.append(f"{package}: {len(users)} files, {limit} allowed: {', '.join(users)}")
    for source in sources.values():
        for line, name in source.imports:
            rooms = ROOMS.get(name.split(".")[0], ())
            if rooms and not any(f"{source.module}.".startswith(f"{room}.") for room in rooms):
                problems.append(f"{source.path}:{line}: {name} is for {', '.join(rooms)} only")
            if source.part in WITHOUT_TORCH and name.split(".")[0] == "torch":
                problems.append(f"{source.path}:{line}: {source.part} must not import torch")
            if any(name == bad or name.startswith(f"{bad}.") for bad in FORBIDDEN):
                problems.append(f"{source.path}:{line}: {name} is not used in this project")
    return problems


def check_private_names(root: Path) -> list[str]:
    """Names of DeepSpeed's insides that are read, or asked for as text, beside their room."""
    problems = []
    for path in sorted((root / "sparsecl").rglob("*.py")):
        where = path.relative_to(root)
        if where.is_relative_to(PRIVATE_ROOM):
            continue
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            name = None
            if isinstance(node, ast.Attribute):
                name = node.attr
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ASKING and node.args[1:]:
                name = getattr(node.args[1], "value", None)
            if name in PRIVATE:
                problems.append(f"{where}:{node.lineno}: {name} is for {PRIVATE_ROOM} only")
    return problems


def check_sizes(root: Path, folders: Sequence[str] = ("sparsecl", "launch", "tools")) -> list[str]:
    """Files and functions (docstring and decorators counted) that are too long."""
    problems = []
    for path in sorted(path for folder in folders for path in (root / folder).rglob("*.py")):
        text = path.read_text()
        where = path.relative_to(root)
        num_lines = len(text.splitlines())
        if where.parts[0] in SCRIPTS and num_lines > MAX_SCRIPT_LINES:
            problems.append(f"{where}: {num_lines} lines, a script has {MAX_SCRIPT_LINES}")
        if num_lines > MAX_FILE_LINES:
            problems.append(f"{where}: {num_lines} lines, {MAX_FILE_LINES} allowed")
        for node in ast.walk(ast.parse(text, str(path))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                size = (node.end_lineno or first) - first + 1
                if size > MAX_FUNCTION_LINES:
                    problems.append(f"{where}:{node.lineno}: {node.name} has {size} lines")
    return problems


def check_all(root: Path) -> list[str]:
    sources = read_sources(root)
    return [
        *check_floors(sources),
        *check_folders(sources),
        *check_cycles(sources),
        *check_doors(sources),
        *check_sizes(root),
    ]


def test_sparsecl_keeps_its_floors():
    sources = read_sources(ROOT)
    assert "sparsecl.errors" in sources and "sparsecl.metrics.records" in sources
    assert check_floors(sources) == []
    assert check_folders(sources) == []


def test_sparsecl_has_no_import_cycles():
    assert check_cycles(read_sources(ROOT)) == []


def test_only_users_take_the_librarys_names_from_the_package():
    """It looks them up by text, past this table: a part would reach up to the library with them."""
    names = sparsecl.__all__
    for path in sorted((ROOT / "sparsecl").rglob("*.py")):
        tree = ast.parse(path.read_text(), str(path))
        taken = {name.removeprefix("sparsecl.") for _, name in imported_names(tree, "")}
        assert not taken & set(names), path


def test_third_parties_come_in_by_few_doors():
    assert check_doors(read_sources(ROOT)) == []


def test_deepspeeds_insides_are_known_in_one_folder():
    assert check_private_names(ROOT) == []


def test_private_names_are_reported(tmp_path):
    text = "x.ds_tensor\nhasattr(x, 'ds_id')\ndef f(ds_id): return ds_id\n"
    root = plant(tmp_path, {"sparsecl/a.py": text, f"{PRIVATE_ROOM}/b.py": text})
    assert check_private_names(root) == [
        f"sparsecl/a.py:{line}: {name} is for {PRIVATE_ROOM} only"
        for line, name in ((1, "ds_tensor"), (2, "ds_id"))
    ]


def test_files_and_functions_stay_short():
    assert check_sizes(ROOT) == []


def test_the_table_itself_goes_down_only():
    for part, (floor, below) in FLOORS.items():
        for name in below:
            target = name.split(".")[0]
            assert FLOORS[target][0] < floor, f"{part} -> {name}"


def plant(root: Path, files: dict[str, str]) -> Path:
    """A fake checkout; packages get an empty __init__.py."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for folder in path.relative_to(root).parents:
            if folder.parts[:1] == ("sparsecl",) and not (root / folder / "__init__.py").exists():
                (root / folder / "__init__.py").write_text("")
    return root


def test_a_clean_tree_has_no_problems(tmp_path):
    files = {
        "sparsecl/errors.py": "import json\n",
        "sparsecl/files.py": "from sparsecl.errors import UserError\n",
        "sparsecl/topology/er.py": "from .spec import Spec\nfrom .. import files\n",
        "sparsecl/topology/spec.py": "import numpy\nfrom sparsecl import errors\n",
        "sparsecl/sparse/linear.py": "import torch\nimport sparsecl.topology.er as er\n",
        "sparsecl/engine/run_config.py": "from sparsecl.sparse import linear\n",
        "sparsecl/experiments/grid.py": "from sparsecl.engine.run_config import RunConfig\n",
        "launch/train.py": "import deepspeed\nfrom sparsecl.engine import run_config\n",
    }
    assert check_all(plant(tmp_path, files)) == []


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("topology/a.py", "from sparsecl.sparse import x", "a.py:1: topology -> sparsecl.sparse"),
        ("metrics/a.py", "import sparsecl.topology", "metrics -> sparsecl.topology"),
        ("data/a.py", "from ..metrics import x", "data -> sparsecl.metrics"),
        ("data/a.py", "from .. import metrics", "data -> sparsecl.metrics"),
        ("model/a.py", "def f():\n    from sparsecl import optim", "a.py:2: model ->"),
        (
            "sparse/a.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from sparsecl.model import M",
            "a.py:3: sparse -> sparsecl.model",
        ),
        ("methods/a.py", "from sparsecl.model import M", "methods -> sparsecl.model"),
        ("checkpoint/a.py", "import sparsecl.methods", "checkpoint -> sparsecl.methods"),
        ("analysis/a.py", "import sparsecl.engine", "analysis -> sparsecl.engine"),
        ("experiments/a.py", "import sparsecl.engine", "experiments -> sparsecl.engine"),
        ("experiments/a.py", "import sparsecl.sparse", "experiments -> sparsecl.sparse"),
        ("errors.py", "from sparsecl import topology", "errors -> sparsecl.topology"),
        (
            "topology/a.py",
            "import importlib\nimportlib.import_module('sparsecl.engine')",
            "a.py:2: topology -> sparsecl.engine",
        ),
        ("engine/a.py", "from tools import metrics", "imports the script folder tools"),
        ("__init__.py", "from sparsecl import errors", "sparsecl -> sparsecl.errors"),
        ("extras/a.py", "", "part extras has no floor"),
        ("metrics/a.py", "import torch.nn", "metrics must not import torch"),
        ("experiments/a.py", "def f():\n    import torch", "a.py:2: experiments must not"),
        ("experiments/plots_a.py", "import matplotlib.figure", "is for sparsecl.experiments.plots"),
        ("engine/a.py", "from megatron import training", "megatron.training is not used"),
        ("engine/a.py", "import deepspeed.compression.x", "deepspeed.compression.x is not used"),
        ("data/a.py", "x = 1\n" * 501, "a.py: 501 lines, 500 allowed"),
        ("data/a.py", "def f():\n" + "    x = 1\n" * 100, "a.py:1: f has 101 lines"),
    ],
)
def test_each_violation_is_reported(tmp_path, file, text, problem):
    parts = ("topology", "metrics", "data", "sparse", "optim", "model", "methods", "engine")
    tree = {f"sparsecl/{part}/__init__.py": "" for part in parts}
    root = plant(tmp_path, {**tree, "sparsecl/errors.py": "", f"sparsecl/{file}": text})
    problems = [p for p in check_all(root) if "extras/__init__.py" not in p]
    assert len(problems) == 1 and problem in problems[0]


def test_folders_of_a_part_have_an_order(tmp_path):
    files = {
        "sparsecl/engine/loop/a.py": "from sparsecl.engine.observe import b\n",
        "sparsecl/engine/observe/b.py": "from sparsecl.engine import c\n",
        "sparsecl/engine/observe/d.py": "from ..loop import a\n",
        "sparsecl/engine/c.py": "",
    }
    assert check_folders(read_sources(plant(tmp_path, files))) == [
        "sparsecl/engine/observe/d.py:1: engine/observe -> sparsecl.engine.loop.a"
    ]


def test_sizes_are_checked_in_scripts_too(tmp_path):
    long = "@decorator\nclass A:\n    async def f(self):\n" + "        x = 1\n" * 100
    root = plant(tmp_path, {"launch/a.py": long, "tools/b.py": "x = 1\n" * 31})
    assert check_sizes(root) == [
        "launch/a.py: 103 lines, a script has 30",
        "launch/a.py:3: f has 101 lines",
        "tools/b.py: 31 lines, a script has 30",
    ]


@pytest.mark.parametrize(("package", "limit"), sorted(DOORS.items()))
def test_one_door_too_many_is_reported(tmp_path, package, limit):
    text = f"def f():\n    from {package}.core import x\n"
    files = {f"sparsecl/engine/door{k}.py": text for k in range(limit)}
    assert check_doors(read_sources(plant(tmp_path, files))) == []
    files["sparsecl/data/one_more.py"] = f"import {package}"
    (problem,) = check_doors(read_sources(plant(tmp_path, files)))
    assert f"{package}: {limit + 1} files, {limit} allowed" in problem
    assert "sparsecl/data/one_more.py" in problem


def test_cycles_are_reported(tmp_path):
    files = {
        "sparsecl/data/a.py": "from sparsecl.data.b import x\n",
        "sparsecl/data/b.py": "def f():\n    from .c import y\n",
        "sparsecl/data/c.py": "from sparsecl.data import a\nfrom sparsecl.data import d\n",
        "sparsecl/data/d.py": "from sparsecl.data import d\n",
    }
    assert check_cycles(read_sources(plant(tmp_path, files))) == [
        "import cycle: sparsecl.data.a -> sparsecl.data.b -> sparsecl.data.c -> sparsecl.data.a"
    ]


def test_a_package_that_imports_its_own_files_is_a_cycle_only_if_they_import_it(tmp_path):
    files = {"sparsecl/data/__init__.py": "from .a import f\n", "sparsecl/data/a.py": "f = 1\n"}
    assert check_cycles(read_sources(plant(tmp_path, files))) == []
    plant(tmp_path, {"sparsecl/data/a.py": "from sparsecl.data import f\n"})
    assert check_cycles(read_sources(tmp_path)) == [
        "import cycle: sparsecl.data -> sparsecl.data.a -> sparsecl.data"
    ]
