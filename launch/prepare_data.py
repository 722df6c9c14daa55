"""Prepare the data of a run ahead of time, and print what there is of it.

--help says more; the work is in sparsecl/programs/prepare_data.py.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # works from a checkout that was never installed
    sys.path.insert(0, str(ROOT))

from sparsecl.programs import prepare_data  # noqa: E402

if __name__ == "__main__":
    prepare_data.start()
