"""The README.md of every folder, read as a reader does."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("launch", "ds_configs", "slurm", "tools", "tests", "sparsecl")

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def _read() -> dict[str, str]:
    """Folder below ROOT ("." is ROOT) -> text of its page."""
    paths = [ROOT / "README.md"]
    paths += [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("README.md"))]
    return {
        path.parent.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths
    }


PAGES = _read()


def blocks(text: str, language: str) -> list[str]:
    """What stands between fences of a language, in order."""
    return [found[2] for found in _FENCE.finditer(text) if found[1] == language]


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", text)


def section(page: str, title: str) -> str:
    """The text below a heading of level 2, up to the next one."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGES[page], re.DOTALL | re.MULTILINE)
    assert found, f"{page}/README.md: no section {title}"
    return found[1]


def named_block(page: str, language: str, name: str) -> str:
    """The block whose first line is `# name`, without that line."""
    texts = [text for text in blocks(PAGES[page], language) if text.startswith(f"# {name}\n")]
    assert len(texts) == 1, f"{page}/README.md: {len(texts)} blocks {name}"
    return texts[0].partition("\n")[2]


def commands(page: str) -> list[str]:
    """Every command of a page's bash blocks, continued lines joined."""
    lines = "".join(blocks(PAGES[page], "bash")).replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.strip()]


def table(text: str, header: str) -> list[list[str]]:
    """Cells of each row of the first table whose header row begins so."""
    rows = text[text.index(f"\n| {header}") + 1 :].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def tree(page: str) -> list[tuple[str, str]]:
    """(path below the page's folder, what is said of it) of its file tree; folders end in "/"."""
    found = re.search(r"<!-- tree -->\n```text\n(.*?)```\n<!-- /tree -->", PAGES[page], re.DOTALL)
    assert found, f"{page}/README.md has no tree"
    lines, folders = [], []
    for line in found[1].splitlines():
        name, _, said = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2
        folders = folders[:depth]
        lines.append(("".join([*folders, name]), said.strip()))
        if name.endswith("/"):
            folders.append(name)
    return lines


def anchors(text: str) -> list[str]:
    """The names under which a page's headings can be linked to."""
    titles = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


def links(text: str) -> list[str]:
    """Targets of a page's links and pictures that lead to a file of ours."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(text))
    return [target for target in found if not target.startswith(("http://", "https://"))]
