"""Convert, compare and check checkpoints offline, one tensor at a time.

--help says more; the work is in sparsecl/programs/convert.py.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # works from a checkout that was never installed
    sys.path.insert(0, str(ROOT))

from sparsecl.programs import convert  # noqa: E402

if __name__ == "__main__":
    convert.start()
