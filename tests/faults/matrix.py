"""Every fault that a run is built for, and the tests that show what becomes of it.

    python -m tests.faults.matrix FAST.xml SLOW.xml

prints the table with the result of each row, as Markdown, from what `make test
ARGS=--junitxml=FAST.xml` and `make test-slow ARGS=--junitxml=SLOW.xml` write. A row has passed if
each of its tests ran and passed; what a machine without a GPU, without Slurm or with one power
supply cannot show stands in the notes.

P = processes, C = checkpoints, D = disks, N = numbers, K = configs, T = training data, J = jobs;
S = states, R = records, H = caches, F = files, X = signals and streams, G = devices.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from xml.etree import ElementTree

from tests.faults.cache_rows import CACHES
from tests.faults.device_rows import DEVICES
from tests.faults.disk_rows import CHECKPOINTS, DISKS
from tests.faults.file_rows import FILES
from tests.faults.input_rows import CONFIGS, TEXT
from tests.faults.record_rows import RECORDS
from tests.faults.row import Row
from tests.faults.run_rows import JOBS, NUMBERS, PROCESSES
from tests.faults.signal_rows import SIGNALS
from tests.faults.state_rows import STATES_OF_RUNS

DESIGN: tuple[Row, ...] = PROCESSES + CHECKPOINTS + DISKS + NUMBERS + CONFIGS + TEXT + JOBS
FOUND: tuple[Row, ...] = STATES_OF_RUNS + RECORDS + CACHES + FILES + SIGNALS + DEVICES
"""What looks at the built system have found, beyond the list of the design."""

ROWS = DESIGN + FOUND

# A row is the first of these that occurs among its cases: one that this machine skips counts only
# if nothing else ran.
STATES = ("failed", "not run", "passed", "skipped")
SHOWN = ("passed", "skipped", "failed", "not run")


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


def result(row: Row, results: Mapping[str, Counter[str]]) -> tuple[str, Counter[str]]:
    """The result of a row, and how many cases of its tests ended how."""
    counts: Counter[str] = Counter()
    for test in row.tests:
        counts += results.get(test) or Counter({"not run": 1})
    state = next((state for state in STATES if counts[state]), "not run")
    return state, counts


def markdown(rows: Iterable[Row], results: Mapping[str, Counter[str]]) -> str:
    """The table, and below it how many rows ended how."""
    lines = ["| # | fault | end | tests | result | not shown |", "|---|---|---|---|---|---|"]
    totals: Counter[str] = Counter()
    for row in rows:
        state, counts = result(row, results)
        totals[state] += 1
        counted = ", ".join(f"{counts[s]} {s}" for s in SHOWN if counts[s])
        tests = "<br>".join(f"`{test}`" for test in row.tests) or "none"
        shown = f"{state} ({counted})" if counted else state
        cells = (row.id, row.fault, row.bound, tests, shown, row.note)
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
    print(markdown(ROWS, results))
    return int(any(result(row, results)[0] == "failed" for row in ROWS))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
