"""Every fault that a run is built for, and the tests that show what becomes of it.

    python -m tests.faults.matrix FAST.xml SLOW.xml

prints the table with the result of each row, as Markdown, from what `make test
ARGS=--junitxml=FAST.xml` and `make test-slow ARGS=--junitxml=SLOW.xml` write. A row has passed if
each test with its mark ran and passed; what a machine without a GPU, without Slurm or with one
power supply cannot show stands in the notes.
"""

import ast
import functools
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from tests.faults.rows import ROWS, Row

TESTS = Path(__file__).resolve().parents[1]

# A row is the first of these that occurs among its cases: one that this machine skips counts only
# if nothing else ran.
STATES = ("failed", "not run", "passed", "skipped")
Results = Mapping[str, Counter[str]]
"""FILE::FUNCTION -> state -> count."""

SHOWN = ("passed", "skipped", "failed", "not run")


@functools.cache
def marked(folder: Path = TESTS) -> Mapping[str, Sequence[str]]:
    """Row -> FILE::FUNCTION of each test with its mark, `@pytest.mark.fault("C1", "C2")`."""
    tests: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            for mark in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault":
                    name = f"{path.relative_to(folder.parent).as_posix()}::{node.name}"
                    for row in map(ast.literal_eval, mark.args):
                        tests.setdefault(row, []).append(name)
    return tests


def read_results(*reports: Path) -> dict[str, Counter[str]]:
    """How often each test function passed, failed or was skipped, from junit XMLs of pytest.

    Returns:
        FILE::FUNCTION -> state -> count. A class within a file is left out of the name.
    """
    results: dict[str, Counter[str]] = {}
    cases = (case for report in reports for case in ElementTree.parse(report).iter("testcase"))
    for case in cases:
        parts = case.get("classname", "").split(".")
        file = "/".join(part for part in parts if not part[:1].isupper()) + ".py"
        name = f"{file}::{case.get('name', '').partition('[')[0]}"
        kinds = {child.tag for child in case}
        state = "passed"
        if kinds & {"failure", "error"}:
            state = "failed"
        elif "skipped" in kinds:
            state = "skipped"
        results.setdefault(name, Counter())[state] += 1
    return results


def result(tests: Iterable[str], results: Results) -> tuple[str, Counter[str]]:
    """The result of a row with these tests, and how many of their cases ended how."""
    counts: Counter[str] = Counter()
    for test in tests:
        counts += results.get(test) or Counter({"not run": 1})
    state = next((state for state in STATES if counts[state]), "not run")
    return state, counts


def markdown(rows: Iterable[Row], tests: Mapping[str, Sequence[str]], results: Results) -> str:
    """The table, and below it how many rows ended how."""
    lines = ["| # | fault | end | tests | result | not shown |", "|---|---|---|---|---|---|"]
    totals: Counter[str] = Counter()
    for row in rows:
        own = tests.get(row.id, ())
        state, counts = result(own, results)
        totals[state] += 1
        counted = ", ".join(f"{counts[s]} {s}" for s in SHOWN if counts[s])
        named = "<br>".join(f"`{test}`" for test in own) or "none"
        shown = f"{state} ({counted})" if counted else state
        cells = (row.id, row.fault, row.bound, named, shown, row.note)
        lines.append(f"| {' | '.join(cells)} |")
    ends = ", ".join(f"{totals[s]} {s}" for s in SHOWN if totals[s])
    return "\n".join([*lines, "", f"{sum(totals.values())} rows: {ends}."])


def main(arguments: list[str]) -> int:
    """Returns the exit code: 1 if a row has failed."""
    if not arguments:
        print("usage: python -m tests.faults.matrix REPORT.xml [REPORT.xml ...]", file=sys.stderr)
        return 64
    try:
        results = read_results(*map(Path, arguments))
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 66
    except ElementTree.ParseError as error:
        print(f"{' '.join(arguments)}: not the XML of a test report ({error})", file=sys.stderr)
        return 65
    tests = marked()
    print(markdown(ROWS, tests, results))
    return int(any(result(tests.get(row.id, ()), results)[0] == "failed" for row in ROWS))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
