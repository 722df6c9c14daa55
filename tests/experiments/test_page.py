"""The pieces of the report's page: what comes from outside is text, and stays text."""

import re
from pathlib import Path

import pytest
from markupsafe import Markup

from sparsecl.experiments.report import page as pieces
from sparsecl.experiments.report.page import Section

EVIL = "<script>alert(1)</script>"


@pytest.mark.parametrize(
    "made",
    [
        pieces.page(EVIL, EVIL, pieces.banner(EVIL, [EVIL]), [Section("a", EVIL, Markup())]),
        pieces.heading(EVIL) + pieces.strong(EVIL) + pieces.paragraph(EVIL),
        pieces.bullets([EVIL]) + pieces.facts([(EVIL, EVIL)]) + pieces.listing(EVIL),
        pieces.fold(EVIL, EVIL),
        pieces.plot(EVIL, EVIL, ""),
        pieces.grid(
            EVIL, EVIL, [EVIL], [[EVIL]], numeric=[False], bad=[], folded=True
        ),
        pieces.join([EVIL, pieces.paragraph(EVIL)]),
    ],
)  # fmt: skip
def test_every_piece_of_the_page_escapes_what_it_is_given(made):
    assert "<script" not in made and "&lt;script&gt;" in made


def test_no_html_is_made_by_hand():
    """It all stands in the template, whose environment escapes."""
    for path in Path(pieces.__file__).parent.glob("*.py"):
        assert not re.search(r"</|<[a-z]+[ >]", path.read_text()), path.name
