"""Runs cases of a test module under Triton's interpreter, in a child process.

The interpreter is chosen by an environment variable that Triton reads when it is imported, so the
process of the other tests cannot switch to it. A module gives its cases as a dict CASES: name ->
(function, arguments).
"""

import importlib
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

from tests.events import HANG

ROOT = Path(__file__).resolve().parent.parent.parent


def run_cases(module: str) -> dict[str, str]:
    """Run all cases of `module`. Returns name -> "passed" or the traceback."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.sparse.interpreted", module],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def main(module: str) -> None:
    """In the child: print the results as one line of JSON."""
    results = {}
    for name, (function, arguments) in importlib.import_module(module).CASES.items():
        try:
            function(*arguments)
            results[name] = "passed"
        except Exception:
            results[name] = traceback.format_exc()
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1])
