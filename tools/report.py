"""Make the report of a study from its folder: a page, figures, tables.

--help says more; the work is in sparsecl/programs/report.py.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # works from a checkout that was never installed
    sys.path.insert(0, str(ROOT))

from sparsecl.programs import report  # noqa: E402

if __name__ == "__main__":
    report.start()
