"""What sparse storage and backends cost and save, against the dense model of the same shape.

--help says more; the work is in sparsecl/programs/bench.py.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # works from a checkout that was never installed
    sys.path.insert(0, str(ROOT))

from sparsecl.programs import bench  # noqa: E402

if __name__ == "__main__":
    bench.start()
