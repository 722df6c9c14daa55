"""Run a study: many runs from one file, a few at a time, then one table and a report.

--help says more; the work is in sparsecl/programs/sweep.py.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # works from a checkout that was never installed
    sys.path.insert(0, str(ROOT))

from sparsecl.programs import sweep  # noqa: E402

if __name__ == "__main__":
    sweep.start()
