"""The table of faults is complete, names tests that exist, and prints what a report says."""

import ast
import functools
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.matrix import DESIGN, ROWS, main, markdown, read_results
from tests.faults.row import Row

ROOT = Path(__file__).resolve().parents[2]

# fmt: off
IDS = [
    "P1", "P2", "P3", "P4", "P5", "P6", "P7", "P8", "P9", "P10", "P11", "P12", "P13",
    "C1", "C2", "C3", "C4", "C5", "C6", "C7", "C8", "C9", "C10", "C11", "C12", "C13", "C14",
    "C15", "C16", "C17",
    "D1", "D2", "D3", "D4",
    "N1", "N2", "N3", "N4", "N5", "N6", "N7",
    "K1", "K2", "K3", "K4", "K5", "K6",
    "T1", "T2", "T3", "T4", "T5", "T6", "T7", "T8",
    "J1", "J2", "J3", "J4", "J5", "J6",
]
# fmt: on


@functools.cache
def functions(file: str) -> set[str]:
    """Names of the test functions at the top of a file."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    return {name for name in names if name.startswith("test_")}


def test_every_fault_of_the_design_is_there_once():
    assert [row.id for row in DESIGN] == IDS


def test_no_two_rows_share_a_name():
    names = [row.id for row in ROWS]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("row", ROWS, ids=[row.id for row in ROWS])
def test_a_row_names_tests_that_exist_or_says_why_not(row):
    assert row.fault and row.bound and (row.tests or row.note)
    assert len(set(row.tests)) == len(row.tests)
    for test in row.tests:
        file, name = test.split("::")
        assert re.fullmatch(r"tests/[a-z0-9_/]+\.py", file), test
        assert name in functions(file), test
    assert "|" not in row.fault + row.bound + row.note  # it would end a cell of the table


REPORT = """<?xml version="1.0" encoding="utf-8"?>
<testsuites><testsuite name="pytest">
<testcase classname="tests.a.test_x" name="test_good[1-a::b[c]]" time="0.1"/>
<testcase classname="tests.a.test_x" name="test_good[2]"><skipped message="no GPU"/></testcase>
<testcase classname="tests.a.test_x" name="test_bad[1]"/>
<testcase classname="tests.a.test_x" name="test_bad[2]"><failure message="m">t</failure></testcase>
<testcase classname="tests.a.test_x.TestSome" name="test_broken"><error message="m"/></testcase>
<testcase classname="tests.a.test_x" name="test_left_out"><skipped message="m"/></testcase>
</testsuite></testsuites>
"""
HERE = "tests/a/test_x.py::test_"


@pytest.fixture
def report(tmp_path) -> Path:
    path = tmp_path / "report.xml"
    path.write_text(REPORT)
    return path


def test_several_reports_are_read_as_one(report, tmp_path):
    other = tmp_path / "slow.xml"
    other.write_text(
        '<testsuite><testcase classname="tests.a.test_x" name="test_bad"/></testsuite>'
    )
    found, both = read_results(report), read_results(report, other)
    assert both.pop(HERE + "bad") == found.pop(HERE + "bad") + Counter(passed=1)
    assert both == found


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (("good",), "passed (1 passed, 1 skipped)"),
        (("good", "bad"), "failed (2 passed, 1 skipped, 1 failed)"),
        (("bad", "absent"), "failed (1 passed, 1 failed, 1 not run)"),
        (("broken",), "failed (1 failed)"),
        (("left_out",), "skipped (1 skipped)"),
        (("good", "absent"), "not run (1 passed, 1 skipped, 1 not run)"),
        (("left_out", "absent"), "not run (1 skipped, 1 not run)"),
        ((), "not run"),
    ],
)
def test_the_result_of_a_row(report, names, shown):
    row = Row("X1", "a fault", tuple(HERE + name for name in names), "70", "a note")
    lines = markdown([row], read_results(report)).splitlines()
    assert len(lines) == 5 and lines[3] == ""
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[:3] == ["X1", "a fault", "70"] and cells[4:] == [shown, "a note"]
    assert cells[3] == ("<br>".join(f"`{HERE}{name}`" for name in names) or "none")
    assert lines[4] == f"1 rows: 1 {shown.partition(' (')[0]}."


def test_the_command(report, tmp_path, capsys):
    assert main([str(report)]) == 0  # no test of the table has failed in this report
    out = capsys.readouterr().out
    assert out.count("\n| ") == len(ROWS) and f"{len(ROWS)} rows: {len(ROWS)} not run." in out
    file, name = ROWS[0].tests[0].split("::")
    module = file.removesuffix(".py").replace("/", ".")
    case = f'<testcase classname="{module}" name="{name}"><failure/></testcase>'
    report.write_text(f"<testsuite>{case}</testsuite>")
    assert main([str(report)]) == 1
    assert f"1 failed, {len(ROWS) - 1} not run." in capsys.readouterr().out
    report.write_text("no XML")
    assert [main([str(report)]), main([str(tmp_path / "absent")]), main([])] == [65, 66, 64]
