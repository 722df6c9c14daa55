"""What the README files tell a reader to add: a domain, a graph, a method, a backend.

The blocks of "Adding your own" of four pages are put into a copy of the package word for word, as a
reader would do it, and their laws are checked on that copy. A check runs in a process of its own,
forked from one that has imported torch already; this file is also the script that it runs.
"""

import json
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.readme.pages import commands, section

ROOT = Path(__file__).resolve().parents[2]
TITLE = "Adding your own"
GUIDES = {
    "domain": "sparsecl/data",
    "topology": "sparsecl/topology",
    "method": "sparsecl/methods",
    "backend": "sparsecl/sparse",
}
OURS = ("sparsecl", "launch", "tools", "tests")
SMALL = (
    "model={preset: null, layers: 1, width: 32, heads: 4, context: 16}",
    "tokenizer={kind: bytes}",
    "phases.steps=3",
    "batch={sequences: 4}",
    "eval={every: 0, tokens: 64}",
    "optimizer.lr=0.01",
    "audit.every=1",
    "data.cache_dir=cache",
)


# ---- the pages, read as a reader does ----------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A fenced block whose first line names the file that it belongs to."""

    language: str
    path: str
    text: str


def named_blocks(text: str) -> list[Block]:
    """All blocks that name a file, in order."""
    fence = r"^```(python|diff|yaml)\n# (\S+)\n(.*?)^```$"
    return [Block(*groups) for groups in re.findall(fence, text, re.M | re.S)]


def added_lines(text: str, hunk: str, where: str) -> str:
    """A file's text with one hunk of "+", "-" and context lines put in.

    Fails unless the lines that should be there are there exactly once.
    """
    lines = hunk.splitlines()
    assert all(line[0] in " +-" for line in lines), f"{where}: not a diff:\n{hunk}"
    before = [line[1:] for line in lines if line[0] in " -"]
    after = [line[1:] for line in lines if line[0] in " +"]
    there = text.splitlines()
    places = [at for at in range(len(there)) if there[at : at + len(before)] == before]
    assert before and len(places) == 1, f"{where}: found {len(places)} times:\n{hunk}"
    there[places[0] : places[0] + len(before)] = after
    return "\n".join(there) + "\n"


def follow(root: Path) -> None:
    """Do in the folder `root` all that the pages say of adding one's own."""
    for page in (*GUIDES.values(), "sparsecl"):
        for block in named_blocks(section(page, TITLE)):
            path = root / block.path
            if block.language == "diff":
                text = path.read_text(encoding="utf-8")
                for hunk in re.split(r"\n\n+", block.text.strip("\n")):
                    text = added_lines(text, hunk, f"{page}/README.md, {block.path}")
                path.write_text(text, encoding="utf-8")
            else:
                assert not path.exists(), f"{block.path} is there already"
                path.write_text(f"# {block.path}\n{block.text}", encoding="utf-8")


@pytest.fixture(scope="module")
def extended(server: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with all four examples in it, and text for its own.yaml."""
    root = tmp_path_factory.mktemp("own")
    for name in ("sparsecl", "launch", "ds_configs"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    follow(root)
    (root / "notes").mkdir()
    for name in "ab":
        text = "\n\n".join(f"Note {name}{i}: so it goes, {'on ' * i}." for i in range(40))
        (root / "notes" / f"{name}.txt").write_text(text, encoding="utf-8")
    (root / "lessons").mkdir()
    for n in range(40):
        cells = [f"# Lesson {n}\n", f"x = {n}\nx {'+ x ' * n}"]
        write_notebook(root / "lessons" / f"{n}.ipynb", *cells)
    return root


def write_notebook(path: Path, *cells: str) -> None:
    """Cells as lines, the last one as it is: a notebook may have both."""
    sources = [*(cell.splitlines(keepends=True) for cell in cells[:-1]), cells[-1]]
    content = {"cells": [{"cell_type": "code", "source": source} for source in sources]}
    path.write_text(json.dumps(content), encoding="utf-8")


def check(name: str, root: Path) -> None:
    """Run one of LAWS on the copy in `root`."""
    from tests.launch.starter import run_script

    ended = run_script(Path(__file__), [name], cwd=root)
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[-1] == f"{name}: all laws hold", ended.out


# ---- laws, in a process that imports the copy --------------------------------------------------


def domain() -> None:
    """Notebooks become documents; what is wrong is said in one line."""
    from sparsecl.data.config import DomainConfig
    from sparsecl.data.sources import open_source
    from sparsecl.errors import DataError, MissingInputError

    def read(**keys: object) -> list[str]:
        config = DomainConfig(name="lessons", source="notebooks", **keys)  # type: ignore[arg-type]
        return list(open_source(config, seed=0, max_document_bytes=1000).texts("train"))

    write_notebook(Path("by_hand.ipynb"), "# One\ntwo", "x = 1", "caf\u00e9")
    Path("link.ipynb").symlink_to("by_hand.ipynb")
    assert read(train=("by_hand.ipynb", "link.ipynb")) == ["# One\ntwo\n\nx = 1\n\ncaf\u00e9"]
    assert len(read(train=("lessons/*.ipynb",))) == 40
    for content, words in (
        (b"{}", r"bad\.ipynb: no notebook .*cells"),
        (b'{"cells": [{}]}', r"bad\.ipynb: no notebook .*source"),
        (b'{"cells": 1}', r"bad\.ipynb: no notebook "),
        (b"{oops", r"bad\.ipynb: no notebook "),
        (b"\xff", r"bad\.ipynb: no notebook .*utf-8"),
        (b"[" * 100_000, r"bad\.ipynb: no notebook "),
        (b"", r"bad\.ipynb is empty"),
    ):
        Path("bad.ipynb").write_bytes(content)
        with pytest.raises(DataError, match=words):
            read(train=("bad.ipynb",))
    with pytest.raises(MissingInputError, match="no.ipynb"):
        read(train=("no.ipynb",))
    with pytest.raises(ValueError, match="^train is empty"):
        read()
    with pytest.raises(ValueError, match="^separator has no meaning with source: notebooks"):
        read(train=("bad.ipynb",), separator="x")


def topology() -> None:
    """By hand at 8 x 8, then the laws of every graph."""
    from sparsecl import seeding
    from sparsecl.topology import hubs
    from tests.topology import test_build as laws

    def columns(rho: float) -> list[int]:
        """Live weights of each input, the most first."""
        edges = hubs.hubs(8, 8, rho=rho, rng=seeding.stream(0, "hubs"))
        assert (np.diff(edges) > 0).all() and edges.size == round(rho * 64)
        return sorted(np.bincount(edges % 8, minlength=8).tolist(), reverse=True)

    # 16 live weights, 8 of them for hubs: one column of eight. With 32 there are two.
    assert columns(0.25)[0] == 8 and columns(0.25)[1] < 8
    assert columns(0.5)[:2] == [8, 8] and columns(0.5)[2] < 8
    assert columns(0.125)[0] < 8  # four weights make no hub
    assert columns(1.0) == [8] * 8
    laws.test_slices_join_and_the_order_of_layers_does_not_matter("hubs")
    laws.test_seed_and_layer_name_change_the_bits("hubs")
    laws.test_kinds_have_graphs_of_their_own()
    exact = laws.test_any_shape_has_the_exact_count.hypothesis.inner_test
    for rho in (0.001, 0.1, 0.37, 0.9, 1.0):
        for sides in ((1, 1), (1, 31), (31, 1), (7, 12), (24, 8)):
            exact(name="hubs", out_features=sides[0], in_features=sides[1], rho=rho)


def method() -> None:
    """The gradient by hand on two weights, and state that goes and comes back."""
    from typing import Any

    import torch

    from sparsecl import config as configs
    from sparsecl.methods.config import MethodsConfig
    from sparsecl.methods.table import build_methods
    from tests.methods.plain import PlainContext

    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    context = PlainContext(weight, torch.optim.SGD([weight], lr=0.1))

    def gradient(methods: Any, *at: float) -> list[float]:
        weight.data = torch.tensor(at)
        weight.grad = torch.ones(2)
        methods.after_backward(context)
        return weight.grad.tolist()

    config = configs.load(MethodsConfig, None, ["l2_last.strength=0.5"])
    methods = build_methods(config)
    assert [found.name for found in methods.methods] == ["l2_last"]
    assert gradient(methods, 1.0, -2.0) == [1.0, 1.0]  # no phase before
    methods.phase_end(context)
    assert gradient(methods, 1.0, -2.0) == [1.0, 1.0]
    assert gradient(methods, 3.0, 0.0) == [2.0, 2.0]  # 1 + 0.5 * (3 - 1), 1 + 0.5 * (0 + 2)
    methods.phase_end(context)  # the anchor moves to (3, 0), the one before is forgotten
    assert gradient(methods, 3.0, 4.0) == [1.0, 3.0]
    resumed = build_methods(config)
    resumed.load_state_dict(*methods.state_dict())
    assert gradient(resumed, 3.0, 4.0) == [1.0, 3.0]
    with pytest.raises(ValueError, match="strength must be"):
        configs.load(MethodsConfig, None, ["l2_last.strength=-1"])


def backend() -> None:
    """Equal to the masked product: every graph and storage, whole and split, slabs of any size."""
    import torch

    from sparsecl.sparse import slab
    from sparsecl.sparse.backends import LinearOptions
    from sparsecl.topology.layer import LayerShape, LayerTopology
    from tests.sparse import test_product as products

    for kind in products.KINDS:
        graph = products.topology(kind)
        for storage in ("masked", "packed"):
            options = LinearOptions(storage=storage, backend="slab")
            for split, tp_size in ((0, 1), (0, 2), (1, 2)):
                make = products.SPLITS[split]
                layers = [
                    make(products.SHAPE, graph, tp_rank=rank, tp_size=tp_size, options=options)
                    for rank in range(tp_size)
                ]
                assert all(isinstance(layer.backend, slab.SlabBackend) for layer in layers)
                products.check(layers, split, graph.mask())
    mask = np.random.default_rng(0).random((7, 5)) < 0.4
    mask[2:4] = False  # a slab without a live weight
    graph = LayerTopology.from_mask("w", mask)
    for rows in (1, 2, 3, 7, 9):
        options = LinearOptions(storage="packed", backend="slab")
        layer = products.SPLITS[0](LayerShape("w", "up", 7, 5), graph, options=options)
        layer.backend = slab.SlabBackend(mask, rows)
        products.check([layer], 0, mask)
        assert all(len(part) <= rows for part in layer.backend.matrices(layer.weight))
    assert layer.backend.index_bytes > 0 and not list(layer.backend.parameters())
    assert all(buffer.dtype != torch.float32 for buffer in layer.backend.buffers())


def training() -> None:
    """The command of own.yaml, made small: all four parts in one run."""
    (command,) = commands("sparsecl")
    launcher, script, *words = shlex.split(command)
    assert (launcher, script) == ("deepspeed", "launch/train.py") and "own.yaml" in words
    sys.argv = [script, *words, "--run_dir", "run", "--set", *SMALL]
    train = runpy.run_path("launch/train.py")
    assert train["train"].main() == 0
    summary = json.loads(Path("run/results.json").read_text())
    assert summary["domains"] == ["notes", "lessons"]
    assert summary["phases"] == {"finished": 2, "planned": 2}
    assert summary["density"]["masked"] == pytest.approx(0.1, abs=1e-3)
    assert summary["audit"]["nonzero"] == 0 and summary["audit"]["checks"] >= 6
    losses = np.array(summary["matrix"]["loss"])
    assert losses.shape == (3, 2) and (losses[2] < losses[0]).all()
    # L2 has its anchors in the checkpoint.
    manifests = [path.read_text() for path in Path("run/checkpoints").rglob("manifest.json")]
    assert manifests and all("l2_last.target" in text for text in manifests)


LAWS: dict[str, Callable[[], None]] = {
    "domain": domain,
    "topology": topology,
    "method": method,
    "backend": backend,
    "training": training,
}


def main() -> None:
    """In the forked process: forget the package of the checkout, and take the copy's."""
    name = sys.argv[1]
    for module in [each for each in sys.modules if each.partition(".")[0] in OURS]:
        del sys.modules[module]
    sys.path[:0] = [str(Path.cwd()), str(ROOT)]  # the copy has no tests; they come from here
    import sparsecl

    assert Path(sparsecl.__path__[0]).parent == Path.cwd()
    LAWS[name]()
    print(f"{name}: all laws hold", flush=True)


# ---- tests -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAWS)
def test_an_example_of_the_readme_does_what_it_says(name: str, extended: Path) -> None:
    check(name, extended)


@pytest.mark.parametrize("page", GUIDES.values())
def test_each_addition_is_one_new_file_and_a_few_lines_in_others(page: str) -> None:
    languages = [block.language for block in named_blocks(section(page, TITLE))]
    assert languages[0] == "python" and 1 <= languages.count("diff") <= 3
    assert len(languages) == 1 + languages.count("diff")


def test_a_hunk_must_fit_exactly_once() -> None:
    assert added_lines("a\nb\n", " a\n+x", "here") == "a\nx\nb\n"
    assert added_lines("a\nb\n", "-b\n+x", "here") == "a\nx\n"
    for text in ("b\n", "a\na\n"):
        with pytest.raises(AssertionError, match="here: found"):
            added_lines(text, " a\n+x", "here")


if __name__ == "__main__":
    main()
