"""The table of faults is complete, names tests that exist, and prints what a report says."""

from collections import Counter
from pathlib import Path

import pytest

from tests.faults.matrix import ROWS, main, markdown, marked, read_results
from tests.faults.rows import Row

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


def test_every_fault_of_the_design_is_there_once():
    names = [row.id for row in ROWS]
    assert names[: len(IDS)] == IDS and len(set(names)) == len(names)


def test_every_mark_names_a_row():
    assert not marked().keys() - {row.id for row in ROWS}


@pytest.mark.parametrize("row", ROWS, ids=[row.id for row in ROWS])
def test_a_row_has_tests_or_says_why_not(row):
    assert row.fault and row.bound and (row.note or row.id in marked())
    assert "|" not in row.fault + row.bound + row.note  # it would end a cell of the table


def test_marks_are_read_from_the_files(tmp_path):
    """One that pytest does not know, or on no function of a file, is none."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_x.py").write_text(
        "import pytest\n"
        '@pytest.mark.fault("A1", "A2")\n@pytest.mark.slow\ndef test_one(): ...\n'
        '@pytest.mark.slow\n@pytest.mark.fault("A2")\ndef test_two(): ...\n'
        "def test_three(): ...\n"
    )
    one, two = "tests/test_x.py::test_one", "tests/test_x.py::test_two"
    assert marked(tmp_path / "tests") == {"A1": [one], "A2": [one, two]}


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
    row = Row("X1", "a fault", "70", "a note")
    tests = {"X1": [HERE + name for name in names]}
    lines = markdown([row], tests, read_results(report)).splitlines()
    assert len(lines) == 5 and lines[3] == ""
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[:3] == ["X1", "a fault", "70"] and cells[4:] == [shown, "a note"]
    assert cells[3] == ("<br>".join(f"`{HERE}{name}`" for name in names) or "none")
    assert lines[4] == f"1 rows: 1 {shown.partition(' (')[0]}."


def test_the_command(report, tmp_path, capsys):
    assert main([str(report)]) == 0  # no test of the table has failed in this report
    out = capsys.readouterr().out
    assert out.count("\n| ") == len(ROWS) and f"{len(ROWS)} rows: {len(ROWS)} not run." in out
    file, name = marked()["C5"][0].split("::")
    module = file.removesuffix(".py").replace("/", ".")
    case = f'<testcase classname="{module}" name="{name}"><failure/></testcase>'
    report.write_text(f"<testsuite>{case}</testsuite>")
    assert main([str(report)]) == 1
    assert f"1 failed, {len(ROWS) - 1} not run." in capsys.readouterr().out
    report.write_text("no XML")
    assert [main([str(report)]), main([str(tmp_path / "absent")]), main([])] == [65, 66, 64]
