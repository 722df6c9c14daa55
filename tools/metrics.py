"""Recompute every score of one or more runs from their scalars.jsonl alone.

--help says more; the work is in sparsecl/programs/metrics.py.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # works from a checkout that was never installed
    sys.path.insert(0, str(ROOT))

from sparsecl.programs import metrics  # noqa: E402

if __name__ == "__main__":
    metrics.start()
