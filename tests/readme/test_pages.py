"""What stands in the README files beside commands: trees, links, tables, sizes."""

import hashlib
import re
import tomllib
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml

from sparsecl import errors
from sparsecl.programs import convert
from sparsecl.topology.config import TopologyConfig, TopologyKind
from tests.readme.pages import (
    FOLDERS,
    PAGES,
    ROOT,
    anchors,
    blocks,
    commands,
    links,
    named_block,
    prose,
    section,
    table,
    tree,
)
from tests.test_floors import FLOORS, GROUND

# Pages that tools/report.py --publish writes.
KEPT = ("launch/experiments/results/", "launch/streams/results/")
WRITTEN = [page for page in PAGES if not page.startswith(KEPT)]
# Pages with a file tree -> names of the files that it must have.
TREES = {
    "sparsecl": ("*.py", "*.c"),
    "launch": ("*.py", "*.yaml"),
    "launch/experiments": ("*.yaml",),
    "launch/streams": ("*.yaml",),
    "tools": ("*.py",),
    "ds_configs": ("*.json",),
    "slurm": ("*",),
}
APACHE = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


# ---- the first page ----------------------------------------------------------------------------


def test_the_first_page_has_three_screens():
    assert len(PAGES["."].splitlines()) < 300


def test_the_first_page_goes_from_the_question_to_the_map():
    lines = PAGES["."].splitlines()
    assert lines[0] == "# sparsecl" and lines[2].endswith("?"), "the question comes first"
    assert re.findall(r"^## (.*)$", prose(PAGES["."]), re.MULTILINE) == [
        "Why it matters",
        "The answer so far",
        "Install",
        "Demo",
        "Dense against sparse",
        "Your own text",
        "Several GPUs",
        "Studies",
        "Methods",
        "What is guaranteed",
        "Folders",
    ]


def test_the_answer_has_a_figure_and_no_number_that_the_studies_do_not_tell():
    (answer,) = re.findall(r"<!-- answer -->\n(.*?)<!-- /answer -->", PAGES["."], re.DOTALL)
    assert len(re.findall(r"!\[[^]]+\]\(", answer)) == 1
    told = set(re.findall(r"\d[\d.,]*\d|\d", PAGES["launch/experiments"]))
    numbers = re.findall(r"\d[\d.,]*\d|\d", re.sub(r"\]\([^)]*\)", "", answer))
    assert numbers and [number for number in numbers if number not in told] == []


def test_the_map_has_every_folder_and_package_and_links_to_their_pages():
    rows = table(section(".", "Folders"), "folder")
    assert all(said for _, said in rows)
    named = {re.sub(r"\[?`(.*?)/`.*", r"\1", cell): cell for cell, _ in rows}
    assert len(named) == len(rows)
    packages = {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("sparsecl/*/*.py")}
    assert set(named) == {*FOLDERS, *packages, "launch/experiments"}
    ours = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    assert ours == ["sparsecl*"] and all((ROOT / name).is_dir() for name in FOLDERS)
    for name, cell in named.items():
        assert (f"({name}/README.md)" in cell) == (name in PAGES), name


# ---- every page --------------------------------------------------------------------------------


@pytest.mark.parametrize("page", WRITTEN)
def test_it_fits_the_page(page):
    wide = 100 if page == "." else 110
    lines = [line for line in PAGES[page].splitlines() if not line.startswith(("|", "!["))]
    assert [line for line in lines if len(line) > wide] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    lost = []
    for link in links(PAGES[page]):
        name, _, anchor = link.partition("#")
        path = (ROOT / page / name).resolve() if name else ROOT / page / "README.md"
        folder = path.parent.relative_to(ROOT).as_posix()
        if not path.exists() or (anchor and anchor not in anchors(PAGES[folder])):
            lost.append(link)
    assert lost == []


@pytest.mark.parametrize("page", PAGES)
def test_no_two_headings_share_an_anchor(page):
    assert len(set(anchors(PAGES[page]))) == len(anchors(PAGES[page]))


def test_every_page_is_found_from_the_first():
    reached, left = {"."}, ["."]
    while left:
        page = left.pop()
        for link in links(PAGES[page]):
            path = (ROOT / page / link.partition("#")[0]).resolve()
            found = path.parent.relative_to(ROOT).as_posix()
            if path.name == "README.md" and found not in reached:
                reached.add(found)
                left.append(found)
    assert reached == set(PAGES)


@pytest.mark.parametrize("page", WRITTEN)
def test_files_that_are_named_are_there(page):
    """Paths in backticks, below the checkout or the page's own folder."""
    named = re.findall(r"`([\w./]+/[\w./]*\.(?:py|yaml|json|md|env))`", prose(PAGES[page]))
    places = (ROOT, ROOT / page, ROOT / "sparsecl")
    lost = [name for name in named if not any((place / name).exists() for place in places)]
    # Of a run folder, of OUT and of a reader's own.
    assert [name for name in lost if name.split("/")[0] not in ("runs", "diagnostics")] == []


@pytest.mark.parametrize("page", WRITTEN)
def test_shell_commands_are_in_blocks_that_a_test_runs(page):
    assert not blocks(PAGES[page], "sh") and not blocks(PAGES[page], "")


# ---- file trees --------------------------------------------------------------------------------


@pytest.mark.parametrize("page", TREES)
def test_a_tree_names_every_file_once_and_no_other(page):
    others = [ROOT / other for other in TREES if other.startswith(f"{page}/")]
    files = [
        path.relative_to(ROOT / page).as_posix()
        for pattern in TREES[page]
        for path in (ROOT / page).rglob(pattern)
        if path.is_file() and path.name not in ("__init__.py", "README.md")
        if not any(path.is_relative_to(other) for other in others)
    ]
    named = [path for path, _ in tree(page) if not path.endswith("/")]
    assert sorted(named) == sorted(files)


@pytest.mark.parametrize("page", TREES)
def test_what_a_tree_names_is_there_and_something_is_said_of_it(page):
    assert [path for path, _ in tree(page) if not (ROOT / page / path).exists()] == []
    assert [path for path, said in tree(page) if not said and not path.endswith("/")] == []


def test_every_tree_is_tested():
    assert sorted(page for page in PAGES if "<!-- tree -->" in PAGES[page]) == sorted(TREES)


# ---- tables that the code has too --------------------------------------------------------------


def test_exit_codes_are_those_of_the_code():
    classes = [value for value in vars(errors).values() if hasattr(value, "exit_code")]
    rows = table(section("launch", "When things go wrong"), "exit code")
    codes = {int(row[0]) for row in rows if row[0].isdigit()}
    assert {found.exit_code for found in classes} == codes - {0, 1, 2, 130}


def test_the_floors_are_those_of_the_test():
    floors = {int(floor): parts for floor, parts in table(section("sparsecl", "Floors"), "floor")}
    above = max(floors)  # scripts, which no part may import
    for floor in range(1, above):
        named = set(re.findall(r"`(\w+)/`", floors[floor]))
        assert named == {part for part, (at, _) in FLOORS.items() if at == floor}
    assert {part for part, (at, _) in FLOORS.items() if at == 0} == set(GROUND)
    assert set(re.findall(r"`(\w+)/`", floors[above])) == {"launch", "tools", "tests"}


def test_the_graphs_are_those_of_the_config():
    rows = table(PAGES["sparsecl/topology"], "kind")
    kinds = [kind for row in rows for kind in re.findall(r"`(\w+)`", row[0])]
    assert sorted(kinds) == sorted(get_args(TopologyKind))


@pytest.mark.parametrize("key", ["storage", "backend"])
def test_storages_and_backends_are_those_of_the_config(key):
    rows = table(PAGES["sparsecl/sparse"], f"`topology.{key}`")
    choices = get_args(get_type_hints(TopologyConfig)[key])
    flat = [name for choice in choices for name in (get_args(choice) or (choice,))]
    assert [row[0].strip("`") for row in rows] == flat


def test_the_conversions_are_those_of_the_tool():
    rows = table(section("tools", "Convert"), "command")
    (choices,) = (a.choices for a in convert.parser()._actions if isinstance(a.choices, dict))
    assert sorted(row[0].strip("`").split()[0] for row in rows) == sorted(choices)


def test_the_marks_are_those_of_pytest():
    marks = PROJECT["tool"]["pytest"]["ini_options"]["markers"]
    rows = table(section("tests", "Running them"), "mark")
    assert sorted(f"{row[0].strip('`')}: {row[1]}" for row in rows) == sorted(marks)


# ---- how it may be used, and cited -------------------------------------------------------------


def test_the_licence_is_the_text_of_apache_and_what_names_it_agrees():
    # https://www.apache.org/licenses/LICENSE-2.0.txt
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE
    assert PROJECT["project"]["license"] == citation()["license"] == "Apache-2.0"


def citation() -> dict[str, object]:
    return yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def test_the_citation_has_what_its_format_asks_for_and_the_version_of_the_package():
    found = citation()
    assert found["cff-version"] == "1.2.0" and found["type"] == "software"
    assert found["message"] and found["title"] == PROJECT["project"]["name"]
    assert found["authors"] == [{"name": "The sparsecl developers"}]
    assert found["version"] == PROJECT["project"]["version"]
    known = "cff-version message type title abstract authors version license keywords".split()
    assert set(found) <= set(known)


# ---- the tests' own reading --------------------------------------------------------------------


def test_a_reader_of_pages_reads_them(monkeypatch):
    text = """# A page: it's `x` (new)

See [there](b/README.md#a-b), [web](https://x.org), ![p](c.png).

```bash
one --a \\
    b
two  c
```

## A b

| k | v |
|---|---|
| `x` | 1 |

<!-- tree -->
```text
a.py     one file
b/
  c.py   another
```
<!-- /tree -->

```python
# e.py
# Not a heading, [not](a-link)
```
"""
    monkeypatch.setitem(PAGES, "x", text)
    assert commands("x") == ["one --a b", "two c"]
    assert anchors(text) == ["a-page-its-x-new", "a-b"]
    assert links(text) == ["b/README.md#a-b", "c.png"]
    assert table(section("x", "A b"), "k") == [["`x`", "1"]]
    assert tree("x") == [("a.py", "one file"), ("b/", ""), ("b/c.py", "another")]
    assert named_block("x", "python", "e.py").startswith("# Not a heading")
    assert Path(ROOT / "README.md").exists()
