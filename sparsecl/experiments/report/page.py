"""The page and its pieces: one HTML file with its style inside, nothing fetched, no script.

All HTML stands in page.html. A piece is Markup; whatever is no Markup is text, and is escaped.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

STYLE = """
:root { color-scheme: light dark;
  --paper: #ffffff; --ink: #1f2328; --soft: #59636e; --line: #d5d9de; --shade: #f5f6f8;
  --link: #0b5cad; --warn: #8a4b00; --warn-paper: #fff4e0; --faint: #bbbbbb; --grid: #ececec;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #cc79a7; --c4: #e69f00; --c5: #56b4e9;
  --c6: #555555; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #16191d; --ink: #e3e6ea; --soft: #9ba4ae; --line: #3a4149; --shade: #1e2329;
  --link: #79b8ff; --warn: #ffc46b; --warn-paper: #33270f; --faint: #666c73; --grid: #2a2f36;
  --c0: #4aa8e0; --c1: #ff8a3d; --c2: #2fc79b; --c3: #e39cc4; --c4: #f0b429; --c5: #8fd0f5;
  --c6: #a8adb3; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 64rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.3rem; margin: 2.75rem 0 .75rem; padding-top: .5rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .5rem; }
p, ul, ol { max-width: 46rem; }
li { margin: .3rem 0; }
a { color: var(--link); }
code, pre { font: .85em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
code { overflow-wrap: anywhere; }
pre { background: var(--shade); padding: .75rem 1rem; overflow-x: auto; border-radius: 6px; }
.lead, .soft, figcaption { color: var(--soft); }
.banner { background: var(--warn-paper); color: var(--warn); padding: .6rem 1rem;
  border-left: 4px solid var(--warn); border-radius: 4px; margin: 1rem 0; }
.banner p, .banner ul { margin: .25rem 0; max-width: none; overflow-wrap: anywhere; }
nav ol { columns: 16rem 3; padding-left: 1.4rem; max-width: none; }
figure { margin: 1.25rem 0; }
figcaption { font-size: .88rem; margin-bottom: .4rem; max-width: 52rem; overflow-wrap: anywhere; }
svg.figure { display: block; width: 100%; height: auto; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px;
  width: fit-content; max-width: 100%; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; background: var(--shade); vertical-align: bottom; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); }
tbody tr:last-child td { border-bottom: 0; }
td { vertical-align: top; max-width: 26rem; overflow-wrap: break-word; }
td:last-child:not(.number) { min-width: 9rem; }
th.number, td.number { text-align: right; }
td.number { white-space: nowrap; }
td.bad { color: var(--warn); font-weight: 600; }
details { margin: .25rem 0 1rem; } summary { cursor: pointer; color: var(--soft); }
details > .scroll, details > figure { margin-top: .5rem; }
.files { white-space: nowrap; font-size: .8rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; max-width: 56rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .5rem; }
  body { padding: 1rem .75rem 3rem; } }
@media print { :root { --paper: #ffffff; --ink: #000000; --soft: #444444; --line: #bbbbbb;
    --shade: #f4f4f4; --link: #000000; --warn: #000000; --warn-paper: #eeeeee; --faint: #bbbbbb;
    --grid: #e8e8e8; --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #cc79a7; --c4: #e69f00;
    --c5: #56b4e9; --c6: #555555; }
  body { max-width: none; font-size: 10.5pt; padding: 0; } nav, .files { display: none; }
  figure, tr { break-inside: avoid; } h2, h3 { break-after: avoid; }
  .scroll { overflow: visible; border: 0; } table { font-size: 7.5pt; }
  th, td { padding: .15rem .3rem; } }
""".strip()


@dataclass(frozen=True)
class Section:
    """One part of the page."""

    name: str
    """In links."""
    title: str
    body: Markup


_TEMPLATE: Any = (
    Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    .get_template("page.html")
    .module
)


def page(title: str, lead: str, banner: Markup, sections: Sequence[Section]) -> str:
    """The whole document."""
    return str(_TEMPLATE.page(title, lead, banner, sections, Markup(STYLE)))


def join(parts: Iterable[str]) -> Markup:
    """Pieces of HTML one after the other; text among them is escaped."""
    return Markup().join(parts)


def paragraph(text: str) -> Markup:
    """Text as a paragraph."""
    return _TEMPLATE.paragraph(text)


def strong(text: str) -> Markup:
    """A paragraph that must be seen."""
    return _TEMPLATE.strong(text)


def heading(text: str) -> Markup:
    """A heading inside a section."""
    return _TEMPLATE.heading(text)


def bullets(lines: Sequence[str]) -> Markup:
    """Texts as a list; empty for none."""
    return _TEMPLATE.bullets(lines)


def facts(pairs: Sequence[tuple[str, str]]) -> Markup:
    """Names and values as a definition list."""
    return _TEMPLATE.facts(pairs)


def fold(title: str, body: str) -> Markup:
    """HTML that is shown when the reader asks for it; empty stays empty."""
    return _TEMPLATE.fold(title, body)


def listing(text: str) -> Markup:
    """Text whose lines stay as they are."""
    return _TEMPLATE.listing(text)


def banner(lead: str, lines: Sequence[str]) -> Markup:
    """A warning above everything."""
    return _TEMPLATE.banner(lead, lines)


def plot(name: str, caption: str, drawing: str) -> Markup:
    """A drawing with its caption and the files beside the page.

    Args:
        drawing: HTML, as matplotlib makes it.
    """
    return _TEMPLATE.plot(name, caption, Markup(drawing))


def grid(
    name: str,
    caption: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numeric: Sequence[bool],
    bad: Sequence[str],
    folded: bool,
) -> Markup:
    """A table in a box that scrolls by itself on a narrow window.

    Args:
        numeric: of each column.
        bad: cells that must be seen.
        folded: the rows are shown when the reader asks for them.
    """
    return _TEMPLATE.table(name, caption, headings, rows, numeric, bad, folded)
