"""Tickets of several runs side by side, and when the mask of one run stops to change.

--help says more; the work is in sparsecl/programs/tickets.py.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # works from a checkout that was never installed
    sys.path.insert(0, str(ROOT))

from sparsecl.programs import tickets  # noqa: E402

if __name__ == "__main__":
    tickets.start()
